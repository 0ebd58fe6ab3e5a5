"""Child processes that answer calls, for simulators: no parent's main module, no jax, one thread.

`multiprocessing` would import the parent's main module again in every child, and with it all that a
launch file imports; a plain child with a pipe starts faster, and its death is the end of the pipe,
never a hang.
"""

from collections import deque
from collections.abc import Sequence
import importlib
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import traceback
from typing import Any, NamedTuple

_ONE_THREAD = {
  f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR")
}


class Crash(RuntimeError):
  """A child died, or its simulator failed: what it was doing can be done again by a fresh one.

  Attributes:
    how: what happened, and in which call.
  """

  def __init__(self, how: str):
    super().__init__(f"{how}; run again, with fewer processes if the machine is short of memory")
    self.how = how


class Call(NamedTuple):
  """A method of the worker's object, its arguments, and what to call it in an error."""

  method: str
  args: tuple[Any, ...]
  what: str


class Worker:
  """A child process with one object, made there by `target(*args)`, whose methods are called.

  Attributes:
    pending: the calls submitted whose results were not taken yet, oldest first.
  """

  def __init__(self, target: str, *args: Any):
    """Starts the child; `target` is "module:name"."""
    ours, theirs = socket.socketpair()
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with theirs:
      fd = theirs.fileno()
      self._process = subprocess.Popen(
        [sys.executable, "-c", f"from oat_jax.envs import process; process._serve({fd})"],
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        env={**_ONE_THREAD, **os.environ, "PYTHONPATH": path},
        process_group=0,  # Ctrl-C reaches the parent alone, which ends its children
      )
    self.connection = multiprocessing.connection.Connection(ours.detach())
    self.pending: deque[Call] = deque()
    self._start = (target, args)

  def submit(self, calls: Sequence[Call]) -> None:
    """Sends calls, to be executed in order; their results are taken with `result`, one by one."""
    self.pending.extend(calls)
    try:
      if self._start:
        self.connection.send(self._start)
        self._start = None
      self.connection.send([(call.method, call.args) for call in calls])
    except OSError as error:
      raise self._died() from error

  def result(self) -> Any:
    """Waits for the oldest pending call and returns its result.

    Raises:
      Crash: the child died, or another package's exception, or MemoryError, came out of the call.
      Exception: any other that the call raised.
    """
    try:
      outcome, value = self.connection.recv()
    except (EOFError, OSError) as error:
      raise self._died() from error
    if outcome == "crash":
      text, note = value
      what = self.pending[0].what
      crash = Crash(f"simulator process {self._process.pid} failed in {what} with {text}")
      crash.add_note(note)
      raise crash
    if outcome == "error":
      raise value
    self.pending.popleft()
    return value

  def _died(self) -> Crash:
    try:
      code = self._process.wait(5)
    except subprocess.TimeoutExpired:
      code = None
    how = (
      f"was killed by {signal.Signals(-code).name}"
      if code and code < 0
      else f"ended with exit code {code}"
    )
    return Crash(f"simulator process {self._process.pid} {how} in {self.pending[0].what}")


def close(workers: Sequence[Worker], now: bool = False) -> None:
  """Ends the children, whatever they are doing if `now`; safe to call twice."""
  for worker in workers:
    worker.connection.close()
    if now:
      worker._process.kill()
  for worker in workers:
    try:
      worker._process.wait(5)
    except subprocess.TimeoutExpired:
      worker._process.kill()
      worker._process.wait()


def wait(workers: Sequence[Worker]) -> list[Worker]:
  """Waits until at least one worker has a result or has died, and returns those."""
  ready = multiprocessing.connection.wait([worker.connection for worker in workers])
  return [worker for worker in workers if worker.connection in ready]


def count(asked: int | None) -> int:
  """Returns the number of processes asked for, or one per core that this process may use."""
  if asked is None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  if asked < 1:
    raise ValueError(f"processes is {asked}; it must be at least 1")
  return asked


def _serve(fd: int) -> None:
  """The child's life: make the object, answer calls until the parent closes its end of the pipe."""
  connection = multiprocessing.connection.Connection(fd)
  held = None
  try:
    target, args = connection.recv()
    while True:
      for method, call_args in connection.recv():
        try:
          if held is None:
            module, _, name = target.partition(":")
            held = getattr(importlib.import_module(module), name)(*args)
          answer = ("result", getattr(held, method)(*call_args))
        except Exception as caught:  # the parent raises it
          note = "in a simulator process:\n" + traceback.format_exc()
          # Another package's exception may not survive the journey.
          if type(caught).__module__ != "builtins" or isinstance(caught, MemoryError):
            answer = ("crash", (f"{type(caught).__name__}: {caught}", note))
          else:
            caught.add_note(note)
            answer = ("error", caught)
        connection.send(answer)
  except (EOFError, OSError):
    pass  # the parent is done, or gone
