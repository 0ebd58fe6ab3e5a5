"""Starting from another run's parameters: what fits is taken over, the rest is listed."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from oat_jax.train import checkpoint
from oat_jax.train import models
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train import state as state_lib


def start_from(
  workdir: str, state: state_lib.TrainState, axes: Any, description: dict[str, Any]
) -> tuple[state_lib.TrainState, str]:
  """Takes over another run's trained parameters where path, shape and meaning agree.

  Rows that stand for tasks mean something else where the tasks are others, and rows that stand for
  tokens where the tokenizer is another, whatever their shape.

  Args:
    workdir: of the other run.
    state: of this run, at its initialisation.
    axes: the trained parameters' logical axes, `model.axes()`.
    description: of this run, `models.describe(...)`.

  Returns:
    the state, and a text that lists what starts afresh.

  Raises:
    FileNotFoundError, ValueError: `workdir` is no working directory, holds no checkpoint, or
    nothing that fits.
  """
  theirs = models.read_description(workdir)
  _, other = checkpoint.load_params(workdir)
  others = {}
  if theirs["spec"]["task_names"] != description["spec"]["task_names"]:
    others["task"] = "of other tasks there"
  if theirs["tokenizer"] != description["tokenizer"]:
    others["vocab"] = "of another tokenizer there"
  # What training changes: by gradients, and codebooks, which it updates.
  changed = lambda params: {k: params[k] for k in ("network", "codebook") if k in params}
  known = _by_name(changed(other))
  names = _by_name(axes, is_leaf=lambda x: isinstance(x, tuple))
  fresh = []

  def one(path, leaf):
    name = optimizer_lib.path_name(path)
    found = known.get(name)
    reasons = [why for axis, why in others.items() if axis in names.get(name, ())]
    if found is None:
      reasons = ["missing there"]
    elif found.shape != leaf.shape:
      reasons = [f"{list(found.shape)} there"]
    if reasons:
      fresh.append(f"  {name.removeprefix('network/')} {list(leaf.shape)} ({', '.join(reasons)})")
      return leaf
    assert found is not None
    return jax.device_put(found.astype(leaf.dtype), leaf.sharding)

  taken = jax.tree_util.tree_map_with_path(one, changed(state.params))
  total = len(jax.tree.leaves(taken))
  if len(fresh) == total:
    raise ValueError(f"config.init_from {workdir} holds nothing that fits this run")
  text = f"{total - len(fresh)} of {total} arrays start from {workdir}; initialised afresh:\n"
  text += "\n".join(fresh or ["  none"]) + "\n"
  params = state.params | taken
  # Two copies: a donated step may not be given the same buffer twice.
  copy = jax.tree.map(lambda x: x.copy(), params)
  return state._replace(params=params, ema_params=copy), text


def place(
  state: state_lib.TrainState, arrays: Mapping[str, np.ndarray], where: str
) -> state_lib.TrainState:
  """Returns the state with `arrays`, {path below `where`: array}, as parameters and average."""
  if not arrays:
    return state
  left = {f"{where}/{name}": array for name, array in arrays.items()}

  def one(path, leaf):
    found = left.pop(optimizer_lib.path_name(path), None)
    return leaf if found is None else jax.device_put(found.astype(leaf.dtype), leaf.sharding)

  params = jax.tree_util.tree_map_with_path(one, state.params)
  if left:
    raise ValueError(f"there are no parameters {sorted(left)}")
  # Two copies: a donated step may not be given the same buffer twice.
  return state._replace(params=params, ema_params=jax.tree.map(lambda x: x.copy(), params))


def _by_name(tree: Any, **options: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree, **options)
  return {optimizer_lib.path_name(path): leaf for path, leaf in leaves}
