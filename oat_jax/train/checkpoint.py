"""Checkpoints: `checkpoints/STEP/{params,train,data}`; the only file that knows orbax.

`params` is the parameters' average, what acting and exporting need; `train` is the rest of the
state; `data` is the integer step, the seed and the dataset's fingerprint, from which the stream of
batches continues.
"""

import os
import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from oat_jax.train.state import TrainState


class Checkpointer:
  """Saves and restores a run's state; a step is either whole on disk or not there."""

  def __init__(
    self, workdir: str | os.PathLike, keep: int, keep_every: int = 0, keep_best: str = ""
  ):
    """Opens `workdir`/checkpoints.

    Args:
      workdir: of the run.
      keep: the newest steps are kept, as many as this.
      keep_every: and every step that is a multiple of this; 0: none.
      keep_best: and the step where this metric is least, among those saved with metrics; "": none.
    """
    always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    kept = ocp.training.preservation_policies
    policies: list[Any] = [kept.LatestN(keep)]
    if keep_every:
      policies.append(kept.EveryNSteps(keep_every))
    if keep_best:
      # The last in the order of the metric is kept: the least is made the last.
      best = lambda metrics: -metrics[keep_best]
      policies.append(
        kept.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False)
      )
    any_of: Any = kept.AnyPreservationPolicy(policies)
    self._orbax = ocp.training.Checkpointer(
      str(directory(workdir)),
      save_decision_policy=always,
      preservation_policy=any_of,
      cleanup_tmp_directories=True,  # of a process that was killed while it saved
    )

  def latest_step(self) -> int | None:
    return None if self._orbax.latest is None else self._orbax.latest.step

  def save(
    self,
    step: int,
    state: TrainState,
    data: dict[str, Any],
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Starts to save; waits only for an earlier save that is still being written.

    Args:
      step: its number.
      state, data: what is saved.
      metrics: of the held-out data at this step, if they were measured.
    """
    contents = {"params": state.ema_params, "train": _train(state), "data": data}
    self._orbax.save_checkpointables_async(step, contents, metrics=metrics)

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Returns (state, data), every array with the sharding of `like`."""
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    contents = {"params": abstract.ema_params, "train": _train(abstract), "data": None}
    out = self._orbax.load_checkpointables(step, contents)
    return TrainState(ema_params=out["params"], **out["train"]), out["data"]

  def close(self) -> None:
    """Waits until what was saved is on disk."""
    self._orbax.close()


def _train(state: TrainState) -> dict[str, Any]:
  """Returns what is saved as `train`: all but the average, which is `params`."""
  return {name: value for name, value in state._asdict().items() if name != "ema_params"}


def directory(workdir: str | os.PathLike) -> pathlib.Path:
  return pathlib.Path(workdir).absolute() / "checkpoints"


def steps(workdir: str | os.PathLike) -> list[int]:
  """Returns the steps that are whole on disk, ascending."""
  return sorted(int(path.name) for path in directory(workdir).glob("*") if path.name.isdigit())


def check_done(workdir: str | os.PathLike, steps_wanted: int, stage: str) -> None:
  """Raises ValueError, naming the stage to run, unless a run has got to its last step."""
  step = max(steps(workdir), default=0)
  if step != steps_wanted:
    raise ValueError(
      f"{workdir} is at step {step} of {steps_wanted}; run the stage '{stage}' to its end first"
    )


def load_params(workdir: str | os.PathLike, step: int | None = None) -> tuple[int, Any]:
  """Returns (step, params) of a working directory as numpy arrays, whatever devices wrote them.

  Raises:
    FileNotFoundError: there is no checkpoint, or not of that step.
  """
  saved = steps(workdir)
  if not saved:
    raise FileNotFoundError(f"{workdir} holds no checkpoint; train it first")
  if step is not None and step not in saved:
    raise FileNotFoundError(f"{workdir} holds no checkpoint of step {step}; there are {saved}")
  path = directory(workdir) / str(saved[-1] if step is None else step)
  metadata = ocp.checkpointables_metadata(str(path)).metadata["params"]
  is_leaf = lambda x: hasattr(x, "shape") and hasattr(x, "dtype")
  like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata, is_leaf=is_leaf)
  return int(path.name), ocp.load_checkpointables(str(path), {"params": like})["params"]
