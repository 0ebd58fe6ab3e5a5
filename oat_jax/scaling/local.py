"""Runs of a sweep as processes on this machine, some side by side.

Every run is launch/train.py in a working directory of its own, which it locks and from which it
goes on; so nothing here keeps books of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
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
  todo = [run for run, state in zip(runs, sweep.states(runs)) if not state.done]
  todo.sort(key=lambda run: -run.flops)
  attempts = {run.name: 0 for run in todo}
  active: list[Active] = []
  failed: dict[str, str] = {}
  (out / "logs").mkdir(parents=True, exist_ok=True)
  places = _places(jobs)
  with _claimed(out), _signals() as signalled, _bar(runs, todo) as bar:
    while (todo or active) and not signalled.is_set():
      for each in [each for each in active if each.process.poll() is not None]:
        active.remove(each)
        why = _ended(each, out)
        if not why:
          tqdm.tqdm.write(f"{each.run.name}: {_result(each)}")
        elif each.attempt <= retries:
          tqdm.tqdm.write(f"{each.run.name}: {why}; tried again ({each.attempt} of {retries})")
          todo.append(each.run)
        else:
          tqdm.tqdm.write(f"{each.run.name}: {why}; given up")
          failed[each.run.name] = why
      free = sorted(set(range(jobs)) - {each.slot for each in active})
      # A run that another process is at, of a sweep that was killed, is waited for.
      for run in [run for run in todo if not workdir_lib.in_use(run.workdir)][: len(free)]:
        todo.remove(run)
        if sweep.state(run).done:
          continue
        attempts[run.name] += 1
        slot = free.pop(0)
        process = _start(run, out, command, places[slot])
        active.append(Active(run, process, slot, attempts[run.name], time.monotonic()))
      _show(bar, runs, active, todo, failed)
      signalled.wait(POLL_S)
    for each in active:
      with contextlib.suppress(ProcessLookupError):
        each.process.send_signal(signal.SIGTERM)
    for each in active:
      each.process.wait()
    if signalled.is_set():
      left = len(todo) + len(active)
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
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"
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


@contextlib.contextmanager
def _bar(runs: Sequence[sweep.Run], todo: Sequence[sweep.Run]) -> Iterator[tqdm.tqdm]:
  """A bar over the sweep's FLOPs; what an earlier call did does not count for its rate."""
  missing = {run.name for run in todo}
  done = sum(_worth(run) for run in runs if run.name not in missing)
  done += sum(_worth(run) * _progress(run) for run in todo)
  total = sum(map(_worth, runs))
  text = "{percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}"
  with tqdm.tqdm(total=total, initial=done, bar_format=text, dynamic_ncols=True) as bar:
    yield bar


def _worth(run: sweep.Run) -> float:
  return run.flops or 1.0  # a tokenizer that is fitted asks for none


def _show(
  bar: tqdm.tqdm,
  runs: Sequence[sweep.Run],
  active: Sequence[Active],
  todo: Sequence[sweep.Run],
  failed: Mapping[str, str],
) -> None:
  waiting = {run.name for run in todo} | {each.run.name for each in active} | failed.keys()
  part = lambda run: _progress(run) if run.name in waiting else 1.0
  bar.n = sum(_worth(run) * part(run) for run in runs)
  now = ", ".join(f"{each.run.name} {100 * _progress(each.run):.0f}%" for each in active)
  bar.set_postfix_str(f"{len(runs) - len(waiting)}/{len(runs)} runs, {len(failed)} failed; {now}")


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
  """Yields an event that SIGTERM and Ctrl-C set."""
  seen = threading.Event()
  numbers = (signal.SIGINT, signal.SIGTERM)
  previous = {number: signal.signal(number, lambda *_: seen.set()) for number in numbers}
  try:
    yield seen
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
