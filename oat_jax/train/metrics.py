"""Metrics: to the console with the time left, metrics.jsonl, TensorBoard, and Weights & Biases."""

from collections.abc import Mapping
import contextlib
import importlib
import importlib.util
import json
import pathlib
import sys
from typing import Any
import uuid

from tensorboardX import SummaryWriter

from oat_jax import files


class Writer:
  """Writes scalars of one run; a resumed run drops the rows after its checkpoint."""

  def __init__(
    self,
    workdir: pathlib.Path,
    total_steps: int,
    start_step: int,
    active: bool = True,
    wandb: str = "",
    config: Mapping[str, Any] | None = None,
  ):
    """Opens what is written to.

    Args:
      workdir: of the run.
      total_steps: of the whole run.
      start_step: that it goes on from.
      active: whether this process writes.
      wandb: a project of Weights & Biases, "" for none; see `check_wandb`.
      config: of the run, for it.
    """
    self._total, self._active = total_steps, active
    if not active:
      return
    self._wandb = _wandb(wandb, workdir, config) if wandb else None
    path = workdir / "metrics.jsonl"
    kept = []
    if path.exists():
      kept = [line for line in path.read_text().splitlines() if _step(line) <= start_step]
    files.write_text(path, "".join(f"{line}\n" for line in kept))
    self._file = path.open("a")
    self._board = SummaryWriter(str(workdir), purge_step=start_step + 1)

  def log(
    self,
    step: int,
    values: Mapping[str, float],
    prefix: str,
    shown: tuple[str, ...],
    rate: float | None = None,
  ) -> None:
    """Appends one row, and prints the `shown` values.

    Args:
      step: steps done.
      values: scalars by name.
      prefix: train or validation.
      shown: names of the values to print, where they are there.
      rate: steps per second, to print with the time that is left.
    """
    if not self._active:
      return
    row = {f"{prefix}/{name}": float(value) for name, value in values.items()}
    try:
      self._file.write(json.dumps({"step": step} | row) + "\n")
      self._file.flush()
      for name, value in row.items():
        self._board.add_scalar(name, value, step)
      if self._wandb is not None:
        self._wandb.log(row, step=step)
    except OSError as error:  # a full disk does not end a run
      with contextlib.suppress(OSError):
        print(f"metrics of step {step} could not be written: {error}", file=sys.stderr, flush=True)
    text = "  ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)
    if rate is not None:
      left = format_seconds((self._total - step) / max(rate, 1e-9))
      text += f"  | {rate:.1f} steps/s, {left} left"
    say(f"[{step:>6}/{self._total}] {prefix:<10} {text}")

  def close(self) -> None:
    if self._active:
      with contextlib.suppress(OSError):  # what a full disk has not taken is lost, and was said
        self._file.close()
      if self._wandb is not None:
        self._wandb.finish()
      self._board.close()


def read(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Returns the rows of `metrics.jsonl`; a last one that was cut short is left out.

  Raises:
    OSError, ValueError: the file is missing, or no file of rows.
  """
  *lines, last = (workdir / "metrics.jsonl").read_text().splitlines() or [""]
  rows = [json.loads(line) for line in lines]
  with contextlib.suppress(ValueError):  # by a kill or a full disk
    rows.append(json.loads(last))
  return rows


def say(text: str) -> None:
  """Prints a line; whoever read along may be gone, which is no reason to end a run.

  In `train.py | tee LOG` Ctrl-C ends tee first, and the run has its state to save.
  """
  with contextlib.suppress(OSError):
    print(text, flush=True)


def check_wandb(project: str) -> None:
  """Raises ValueError where Weights & Biases is asked for and not installed."""
  if project and importlib.util.find_spec("wandb") is None:
    raise ValueError(
      f"config.wandb is '{project}', but wandb is not installed: pip install 'oat-jax[wandb]'"
    )


def _wandb(project: str, workdir: pathlib.Path, config: Mapping[str, Any] | None) -> Any:
  """Returns the run of a working directory, which goes on under the name that it began with."""
  file = workdir / "wandb_id"
  if not file.exists():
    file.write_text(uuid.uuid4().hex[:8])
  return importlib.import_module("wandb").init(
    project=project,
    id=file.read_text(),
    name=workdir.name,
    dir=str(workdir),
    config=dict(config or {}),
    resume="allow",
  )


def _step(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):  # a row that a kill cut short
    return float("inf")


def format_seconds(seconds: float) -> str:
  """Returns 1h02m, or 3m04s below an hour."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
