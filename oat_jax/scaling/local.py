"""Runs of a sweep as processes on this machine, some side by side.

Every run is launch/train.py in a working directory of its own, which it locks and from which it
goes on; so nothing here keeps books of its own.
"""

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import tqdm

from oat_jax.scaling import sweep
from oat_jax.train import checkpoint
from oat_jax.train import workdir as workdir_lib

POLL_S = 0.5


class Active(NamedTuple):
  """A process that trains a run.

  `slot` is its number among those side by side, `attempt` counts from 1.
  """

  run: sweep.Run
  process: subprocess.Popen
  slot: int
  attempt: int
  since: float


def run(
  runs: Sequence[sweep.Run],
  out: pathlib.Path,
  command: Sequence[str],
  jobs: int = 1,
  retries: int = 2,
) -> dict[str, str]:
  """Trains what is not done, `jobs` runs side by side; the costliest begin first.

  Each gets its share of the cores, and one of the NVIDIA GPUs where there are some. A signal is
  passed on, and all runs save before this returns; where this is killed, its runs go on, and the
  next call waits for them instead of beginning them again.

  Args:
    runs: of the sweep.
    out: its directory.
    command: of training, to which a run's arguments are added.
    jobs: runs at the same time.
    retries: how often a run that failed is tried again.

  Returns:
    {name: why} of the runs that failed to the end.

  Raises:
    ValueError: another sweep runs in `out`, or directories cannot be trusted.
    KeyboardInterrupt: a signal came; what was running is saved.
  """
  todo = sweep.missing(runs)
  todo.sort(key=lambda run: -run.flops)
  attempts = {run.name: 0 for run in todo}
  active: list[Active] = []
  failed: dict[str, str] = {}
  (out / "logs").mkdir(parents=True, exist_ok=True)
  places = _places(jobs)
  with _claimed(out), _signals() as signalled, _Display(runs, todo) as display:
    try:
      while (todo or active) and not signalled.is_set():
        for each in [each for each in active if each.process.poll() is not None]:
          active.remove(each)
          name, why = each.run.name, _ended(each, out)
          if not why:
            display.say(f"{name}: {_result(each)}")
          elif each.attempt <= retries:
            display.say(f"{name}: {why}; tried again ({each.attempt} of {retries})")
            todo.append(each.run)
          else:
            display.say(f"{name}: {why}; given up")
            failed[name] = why
        free = sorted(set(range(jobs)) - {each.slot for each in active})
        # A run that another process is at, of a sweep that was killed, is waited for.
        held = [run for run in todo if workdir_lib.in_use(run.workdir)]
        for run in [run for run in todo if run not in held][: len(free)]:
          todo.remove(run)
          if sweep.state(run).done:
            continue
          attempts[run.name] += 1
          slot = free.pop(0)
          process = _start(run, out, command, places[slot])
          active.append(Active(run, process, slot, attempts[run.name], time.monotonic()))
        display.show([each.run for each in active], held, todo, len(failed))
        signalled.wait(POLL_S)
    finally:
      for each in active:
        with contextlib.suppress(ProcessLookupError):
          each.process.send_signal(signal.SIGTERM)
      for each in active:
        each.process.wait()
    if signalled.is_set():
      left = len(todo) + len(active) + len(failed)
      raise KeyboardInterrupt(
        f"stopped by a signal; {left} of {len(runs)} runs are not done, those under way are saved; "
        "the same command goes on"
      )
  return failed


def _start(
  run: sweep.Run, out: pathlib.Path, command: Sequence[str], place: tuple[set[int], dict[str, str]]
) -> subprocess.Popen:
  """Begins a run in a session of its own, so that Ctrl-C reaches it once, through the sweep."""
  cores, environment = place
  with open(out / "logs" / f"{run.name}.log", "a") as log:
    log.write(f"$ {shlex.join([*command, *run.arguments])}\n")
    log.flush()
    process = subprocess.Popen(
      [*command, *run.arguments],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      # Runs of one size compile much of the same.
      env={"JAX_COMPILATION_CACHE_DIR": str(out / "compiled"), **os.environ, **environment},
      start_new_session=True,
    )
  if cores:
    with contextlib.suppress(ProcessLookupError):
      os.sched_setaffinity(process.pid, cores)
  return process


def _places(jobs: int) -> list[tuple[set[int], dict[str, str]]]:
  """Returns the cores and variables of each of `jobs` processes side by side."""
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  gpus = _gpus()
  places = []
  for slot in range(jobs):
    mine = set(cores[slot::jobs]) or ({cores[slot % len(cores)]} if cores else set())
    environment = {}
    if gpus:
      environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
      sharing = -(-jobs // len(gpus))
      if sharing > 1:
        # What is left is for the half a gigabyte that each process takes beside its arrays.
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.8 / sharing:.3f}"
    places.append((mine, environment))
  return places


def _gpus() -> list[str]:
  """Returns the NVIDIA GPUs that runs may have, as CUDA_VISIBLE_DEVICES names them."""
  if "CUDA_VISIBLE_DEVICES" in os.environ:
    return [each for each in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if each]
  if shutil.which("nvidia-smi") is None:
    return []
  listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
  return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def _ended(each: Active, out: pathlib.Path) -> str:
  """Returns why a process that ended has not done its run, or ""."""
  if each.process.returncode == 0:
    state = sweep.state(each.run)
    return "" if state.done else state.wrong or "it ended and is not done"
  lines = (out / "logs" / f"{each.run.name}.log").read_text(errors="replace").splitlines()
  said = next((line for line in reversed(lines) if line.strip()), "")
  return f"exit code {each.process.returncode}, {said.strip()[-300:]}"


def _result(each: Active) -> str:
  row = sweep.evaluations(each.run.workdir)[-1]
  losses = [name for name in row if re.fullmatch(r"(mse|cross_entropy)_\d+", name)]
  last = max(losses, key=lambda name: int(name.rsplit("_", 1)[1]), default="")
  seconds = time.monotonic() - each.since
  return (f"{last} {row[last]:.4g}, " if last else "") + f"{seconds / 60:.1f} min"


def _progress(run: sweep.Run) -> float:
  """Returns which part of a run is behind it, by its newest logged or saved step."""
  step = checkpoint.steps(run.workdir)[-1:] or [0]
  with contextlib.suppress(OSError, ValueError, IndexError, KeyError, TypeError):
    with open(run.workdir / "metrics.jsonl", "rb") as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
      step.append(json.loads(file.read().splitlines()[-1])["step"])
  return min(1.0, max(step) / run.config.steps)


class _Display:
  """A bar over the sweep's FLOPs; what an earlier call did does not count for its rate."""

  def __init__(self, runs: Sequence[sweep.Run], todo: Sequence[sweep.Run]):
    # A tokenizer that is fitted asks for no FLOPs.
    self._worth = {run.name: run.flops or 1.0 for run in runs}
    missing = {run.name for run in todo}
    self._part = {run.name: _progress(run) if run.name in missing else 1.0 for run in runs}
    self._bar = tqdm.tqdm(
      total=sum(self._worth.values()),
      initial=self._done(),
      bar_format="{percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}",
      mininterval=1 if sys.stderr.isatty() else 30,  # a log need not hold every second
      dynamic_ncols=True,
    )

  def __enter__(self) -> "_Display":
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.close()

  def say(self, text: str) -> None:
    tqdm.tqdm.write(text)

  def show(
    self,
    active: Sequence[sweep.Run],
    held: Sequence[sweep.Run],
    todo: Sequence[sweep.Run],
    failed: int,
  ) -> None:
    """Shows how far a sweep is.

    Args:
      active: runs under way here.
      held: those that other processes are at.
      todo: those that wait, the held ones included.
      failed: how many were given up.
    """
    waiting = {run.name for run in todo}
    for run in (*active, *held):
      self._part[run.name] = _progress(run)
    left = waiting | {run.name for run in active}
    done = len(self._part) - len(left) - failed
    texts = [f"{done}/{len(self._part)} runs" + f", {failed} failed" * bool(failed)]
    texts += [f"{run.name} {100 * self._part[run.name]:.0f}%" for run in active]
    texts += [f"{run.name} by another process" for run in held]
    self._bar.set_postfix_str(", ".join(texts), refresh=False)
    for name in self._part.keys() - left:
      self._part[name] = 1.0
    self._bar.update(self._done() - self._bar.n)

  def _done(self) -> float:
    return sum(worth * self._part[name] for name, worth in self._worth.items())


@contextlib.contextmanager
def _claimed(out: pathlib.Path) -> Iterator[None]:
  """Holds a sweep's directory for one `run`; ValueError where another has it."""
  with open(out / ".lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise ValueError(f"another sweep runs in {out}; wait for it, or stop it") from error
    yield


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
  """Yields an event that SIGTERM and Ctrl-C set; a second one does not wait for runs to save."""
  seen = threading.Event()

  def handle(number: int, frame: object) -> None:
    del number, frame
    if seen.is_set():
      raise KeyboardInterrupt
    seen.set()

  previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield seen
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
