"""What a model is worth on held-out windows: means of what its `evaluate` says of each."""

from collections.abc import Callable
import difflib
from typing import Any

import jax
import numpy as np

from oat_jax.data import pipeline
from oat_jax.parallel import mesh as mesh_lib


def evaluate(
  compiled: Callable[..., Any],
  params: Any,
  windows: Any,
  batch_size: int,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, float]:
  """Averages a model's `evaluate` over all windows.

  Floats are averaged over rows, integers (tokens) counted as distinct values; a column k of a (B,
  N) value is named `name_k`, counted from 1. On a mesh every process brings its rows of a batch.
  """
  mine_R = mesh_lib.process_rows(mesh, batch_size) if mesh is not None else np.arange(batch_size)
  rows: dict[str, list[np.ndarray]] = {}
  for batch, valid_B in pipeline.epoch(windows, batch_size, mine_R):
    if mesh is not None:
      batch = mesh_lib.global_batch(batch, mine_R, mesh, batch_size)
    for name, values in compiled(params, batch).items():
      rows.setdefault(name, []).append(np.asarray(values)[valid_B])
  out: dict[str, float] = {}
  for name, parts in rows.items():
    values = np.concatenate(parts)
    if values.dtype.kind in "iu":
      out[f"distinct_{name}"] = float(len(np.unique(values)))
    elif values.ndim == 1:
      out[name] = float(values.mean())
    else:
      out |= {f"{name}_{k + 1}": float(mean) for k, mean in enumerate(values.mean(0))}
  return out


def check_name(name: str, model: Any, params: Any, batch: Any) -> None:
  """Raises ValueError where `evaluate` gives no metric of this name; "" asks for none."""
  if not name:
    return
  names = []
  for base, values in jax.eval_shape(model.evaluate, params, batch).items():
    if np.issubdtype(values.dtype, np.integer):
      names.append(f"distinct_{base}")
    elif values.ndim == 1:
      names.append(base)
    else:
      names += [f"{base}_{k + 1}" for k in range(values.shape[1])]
  if name not in names:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"config.keep_best is '{name}'; {hint}there are {', '.join(names)}")


def shown(values: dict[str, float]) -> tuple[str, ...]:
  """The validation values for a line: plain ones, and the others' first and last column."""
  last = max(
    (int(name.rsplit("_", 1)[1]) for name in values if name.rsplit("_", 1)[-1].isdigit()), default=1
  )
  tails = (f"_{last}", "_1")
  return tuple(
    name for name in values if not name.rsplit("_", 1)[-1].isdigit() or name.endswith(tails)
  )
