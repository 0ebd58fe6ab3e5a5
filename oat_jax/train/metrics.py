"""Metrics: to the console with the time left, to metrics.jsonl and to TensorBoard."""

from collections.abc import Mapping
import json
import pathlib
import time

from tensorboardX import SummaryWriter


class Writer:
  """Writes scalars of one run; a resumed run drops rows behind its checkpoint and adds its own."""

  def __init__(self, workdir: pathlib.Path, total_steps: int, start_step: int, active: bool = True):
    self._total, self._active, self._quiet_seconds = total_steps, active, 0.0
    if not active:
      return
    path = workdir / "metrics.jsonl"
    kept = []
    if path.exists():
      kept = [line for line in path.read_text().splitlines() if _step(line) <= start_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    temporary.replace(path)
    self._file = path.open("a")
    self._board = SummaryWriter(str(workdir), purge_step=start_step + 1)
    self._start = self._last = (start_step, time.monotonic())

  def write(self, step: int, values: Mapping[str, float], prefix: str) -> None:
    """Appends one row; `prefix` is train or validation."""
    if not self._active:
      return
    row = {f"{prefix}/{name}": float(value) for name, value in values.items()}
    self._file.write(json.dumps({"step": step} | row) + "\n")
    self._file.flush()
    for name, value in row.items():
      self._board.add_scalar(name, value, step)

  def log(
    self, step: int, values: Mapping[str, float], prefix: str, shown: tuple[str, ...]
  ) -> None:
    """Writes, and prints the `shown` values; training rows also show speed and the time left."""
    self.write(step, values, prefix)
    if not self._active:
      return
    text = "  ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)
    if prefix == "train":
      now = time.monotonic()
      rate = (step - self._last[0]) / max(now - self._last[1], 1e-9)
      left = (self._total - step) / max(rate, 1e-9)
      self._last = (step, now)
      text += f"  | {rate:.1f} steps/s, {format_seconds(left)} left"
    print(f"[{step:>6}/{self._total}] {prefix:<10} {text}", flush=True)

  def close(self) -> None:
    if self._active:
      self._file.close()
      self._board.close()


def _step(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):  # a row that a kill cut short
    return float("inf")


def format_seconds(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
