"""Starting from another run's parameters: what fits is taken over, the rest is listed."""

from typing import Any

import jax

from oat_jax.train import checkpoint
from oat_jax.train import models
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train import state as state_lib


def start_from(
  workdir: str, state: state_lib.TrainState, axes: Any, description: dict[str, Any]
) -> state_lib.TrainState:
  """Takes over another run's trained parameters where path, shape and meaning agree.

  Rows that stand for tasks mean something else where the tasks are others, and rows that stand for
  tokens where the tokenizer is another, whatever their shape. Prints what starts afresh.

  Args:
    workdir: of the other run.
    state: of this run, at its initialisation.
    axes: the trained parameters' logical axes, `model.axes()`.
    description: of this run, `models.describe(...)`.

  Raises:
    FileNotFoundError, ValueError: `workdir` is no working directory, or holds no checkpoint.
  """
  theirs = models.read_description(workdir)
  _, other = checkpoint.load_params(workdir)
  others = {}
  if theirs["spec"]["task_names"] != description["spec"]["task_names"]:
    others["task"] = "of other tasks there"
  if theirs["tokenizer"] != description["tokenizer"]:
    others["vocab"] = "of another tokenizer there"
  known = _by_name(other["network"])
  names = _by_name(axes["network"], is_leaf=lambda x: isinstance(x, tuple))
  fresh = []

  def one(path, leaf):
    name = optimizer_lib.path_name(path)
    found = known.get(name)
    reasons = [why for axis, why in others.items() if axis in names[name]]
    if found is None:
      reasons = ["missing there"]
    elif found.shape != leaf.shape:
      reasons = [f"{list(found.shape)} there"]
    if reasons:
      fresh.append(f"  {name} {list(leaf.shape)} ({', '.join(reasons)})")
      return leaf
    assert found is not None
    return jax.device_put(found.astype(leaf.dtype), leaf.sharding)

  network = jax.tree_util.tree_map_with_path(one, state.params["network"])
  total = len(jax.tree.leaves(network))
  print(
    f"{total - len(fresh)} of {total} arrays start from {workdir}; initialised afresh:", flush=True
  )
  print("\n".join(fresh) or "  none", flush=True)
  params = state.params | {"network": network}
  # Two copies: a donated step may not be given the same buffer twice.
  return state._replace(params=params, ema_params=jax.tree.map(lambda x: x.copy(), params))


def _by_name(tree: Any, **options: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree, **options)
  return {optimizer_lib.path_name(path): leaf for path, leaf in leaves}
