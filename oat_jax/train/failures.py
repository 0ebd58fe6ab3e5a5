"""What is kept of a step whose loss or gradient was not finite: its batch, the state before it."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import numpy as np

from oat_jax.train import optimizer as optimizer_lib


def check(
  failures: int, limit: int, workdir: pathlib.Path, state: Any, batch_of: Any, save: Any
) -> None:
  """Raises FloatingPointError where there were more failures than the limit; keeps what led to it.

  Args:
    failures: as the state counts them.
    limit: `config.optimizer.max_failures`.
    workdir: the batch goes to `workdir`/failures/step_K_process_P.npz, an array a leaf.
    state: which the failed step left as it was.
    batch_of: (step) -> this process's rows of that step's batch.
    save: (step), saves the state as the checkpoint of that step, if there is none.
  """
  if failures <= limit:
    return
  done = int(state.step)  # the state is that of step `done`: nothing changed it since
  path = workdir / "failures" / f"step_{done + 1}_process_{jax.process_index()}.npz"
  path.parent.mkdir(exist_ok=True)
  arrays: Any = _flat(batch_of(done + 1))
  np.savez(path, **arrays)
  kept = ""
  if done:
    save(done)
    kept = f"; the state before it is checkpoint {done}"
  raise FloatingPointError(
    f"loss or gradient is not finite at step {done + 1}, after {limit} such steps that were passed "
    f"over; its batch is in {path}{kept}. Go on with a larger config.optimizer.max_failures, or "
    "begin another directory with a lower learning_rate, from these parameters by config.init_from"
  )


def _flat(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(batch)
  return {optimizer_lib.path_name(path).replace("/", "."): np.asarray(x) for path, x in leaves}
