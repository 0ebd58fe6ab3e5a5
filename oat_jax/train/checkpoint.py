"""Checkpoints: `checkpoints/STEP/{params,train,data}`; the only file that knows orbax.

`params` is the parameters' average, what acting and exporting need; `train` is the rest of the
state; `data` is the integer step, the seed and the dataset's fingerprint, from which the stream of
batches continues.
"""

from concurrent import futures
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from oat_jax.train.state import TrainState

_ANSWER = "why it cannot be read: "


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
      policies.append(kept.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False))
    any_of: Any = kept.AnyPreservationPolicy(policies)
    # The step that was asked for last, and whether it is being written still.
    self._workdir, self._last = workdir, 0
    self._written: Any = None
    self._thread = futures.ThreadPoolExecutor(1, "checkpoint")
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
    metrics: Any = None,
  ) -> None:
    """Starts to save; waits only for an earlier save that is still being written.

    What cannot be written, e.g. because the disk is full, is said and left out: see `settle`.

    Args:
      step: its number.
      state, data: what is saved.
      metrics: of the held-out data at this step, if they were measured.
    """
    self.settle()
    self._last, own = step, {"params": state.ema_params, "train": _train(state), "data": data}
    if jax.process_count() == 1:
      # Orbax prepares a save for longer than a small model's step takes: it works on a copy, beside
      # the loop. Several processes meet in a save, and so begin it in the loop.
      own = jax.tree.map(lambda x: np.array(x) if isinstance(x, jax.Array) else x, own)
      self._written = self._thread.submit(lambda: self._start(step, own, metrics).result())
      return
    try:
      self._written = self._start(step, own, metrics)
    except Exception as error:
      self._failed(error)

  def _start(self, step: int, own: dict[str, Any], metrics: Any) -> Any:
    start = lambda: self._orbax.save_checkpointables_async(step, dict(own), metrics=metrics)
    try:
      return start()
    except Exception:  # of the save before, which orbax tells of once more
      return start()

  def settle(self) -> bool:
    """Waits for what is being written; says so where it cannot be.

    Returns whether the last step that was to be saved, if there was one, is whole on disk.
    """
    writing, self._written = self._written, None
    if writing is not None:
      try:
        writing.result()
      except Exception as error:
        self._failed(error)
    return not self._last or self._last in steps(self._workdir)

  def _failed(self, error: Exception) -> None:
    if jax.process_index() == 0:  # what was written of it takes room
      for part in directory(self._workdir).glob(f"{self._last}.*"):
        shutil.rmtree(part, ignore_errors=True)
    kept = steps(self._workdir)
    before = f"checkpoint {kept[-1]} is kept" if kept else "there is none before it"
    text = " ".join(str(error).split())[:300]
    print(
      f"{self._workdir}: checkpoint {self._last} could not be written ({text}); {before}, and the "
      "next one will be tried",
      file=sys.stderr,
      flush=True,
    )

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
    self.settle()
    with contextlib.suppress(Exception):  # `settle` has said it
      self._orbax.close()
    self._thread.shutdown()


def _train(state: TrainState) -> dict[str, Any]:
  """Returns what is saved as `train`: all but the average, which is `params`."""
  return {name: value for name, value in state._asdict().items() if name != "ema_params"}


def directory(workdir: str | os.PathLike) -> pathlib.Path:
  return pathlib.Path(workdir).absolute() / "checkpoints"


def steps(workdir: str | os.PathLike) -> list[int]:
  """Returns the steps that are whole on disk, ascending."""
  return sorted(int(path.name) for path in directory(workdir).glob("*") if path.name.isdigit())


def newest_readable(workdir: str | os.PathLike) -> int:
  """Returns the newest step that can be read to its end, 0 where there is none at all.

  Files that are missing, cut off or cannot be decoded are found; orbax keeps no checksums. Newer
  steps, which a failing disk or a copy that broke off has left, are said, and moved to
  `workdir`/unreadable. Of several processes the first one reads, and tells the others.

  Raises:
    ValueError: there are checkpoints, and none can be read; all are left where they are.
  """
  found, bad = 0, {}
  if jax.process_index() == 0:
    for step in reversed(steps(workdir)):
      error = unreadable(directory(workdir) / str(step))
      if not error:
        found = step
        break
      bad[step] = error
    if bad and not found:
      found = -1
    for step in bad if found > 0 else ():
      target = pathlib.Path(workdir) / "unreadable" / str(step)
      shutil.rmtree(target, ignore_errors=True)
      target.parent.mkdir(exist_ok=True)
      (directory(workdir) / str(step)).replace(target)
      print(
        f"{workdir}: checkpoint {step} cannot be read ({bad[step]}); it is moved to {target}, and "
        f"the run goes on from {found}",
        file=sys.stderr,
        flush=True,
      )
  if jax.process_count() > 1:
    found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
  if found < 0:
    what = "; ".join(f"{step}: {error}" for step, error in bad.items())
    raise ValueError(f"{workdir}: none of its checkpoints can be read: {what or 'see process 0'}")
  return found


def unreadable(path: str | os.PathLike) -> str:
  """Returns why a checkpoint cannot be read, or ""; one part after the other is in memory."""
  if jax.process_count() > 1:
    # Orbax numbers what it does, and waits until all processes do it: who reads alone is no longer
    # in step. So it is read in a process beside the group, on the CPU.
    program = f"from oat_jax.train import checkpoint as c; c.answer({str(path)!r})"
    paths = os.pathsep.join(part or os.getcwd() for part in sys.path)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    _, found, error = run.stdout.rpartition(_ANSWER)
    if run.returncode or not found:  # says nothing of the checkpoint
      raise RuntimeError(f"the process that reads {path} ended with {run.returncode}: {run.stderr}")
    return error.strip()
  try:
    metadata = ocp.checkpointables_metadata(str(path)).metadata
    for name in ("params", "train", "data"):
      ocp.load_checkpointables(str(path), {name: _host_arrays(metadata[name])})
  except Exception as error:  # whatever it is, the step is not whole
    return " ".join(str(error).split())[:200] or type(error).__name__
  return ""


def answer(path: str) -> None:
  """Prints, behind a mark, what `unreadable` says."""
  print(_ANSWER + unreadable(path), flush=True)


def _host_arrays(metadata: Any) -> Any:
  """Returns what makes orbax give numpy arrays, whatever devices wrote them."""
  is_leaf = lambda x: hasattr(x, "shape") and hasattr(x, "dtype")
  like = lambda x: np.empty(x.shape, x.dtype) if is_leaf(x) else x
  return jax.tree.map(like, metadata, is_leaf=is_leaf)


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
  like = _host_arrays(ocp.checkpointables_metadata(str(path)).metadata["params"])
  return int(path.name), ocp.load_checkpointables(str(path), {"params": like})["params"]
