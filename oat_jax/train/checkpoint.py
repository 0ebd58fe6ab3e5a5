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

  def __init__(self, workdir: str | os.PathLike, keep: int):
    """Opens `workdir`/checkpoints, keeping the newest `keep` steps."""
    always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    newest: Any = ocp.training.preservation_policies.LatestN(keep)
    self._orbax = ocp.training.Checkpointer(
      str(directory(workdir)), save_decision_policy=always, preservation_policy=newest
    )

  def latest_step(self) -> int | None:
    return None if self._orbax.latest is None else self._orbax.latest.step

  def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
    """Starts to save; waits only for an earlier save that is still being written."""
    train = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    contents = {"params": state.ema_params, "train": train, "data": data}
    self._orbax.save_checkpointables_async(step, contents)

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Returns (state, data), every array with the sharding of `like`."""
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    train = {"step": abstract.step, "params": abstract.params, "opt_state": abstract.opt_state}
    contents = {"params": abstract.ema_params, "train": train, "data": None}
    out = self._orbax.load_checkpointables(step, contents)
    train = out["train"]
    return TrainState(train["step"], train["params"], out["params"], train["opt_state"]), out[
      "data"
    ]

  def close(self) -> None:
    """Waits until what was saved is on disk."""
    self._orbax.close()


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
