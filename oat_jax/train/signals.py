"""Signals end a run at the end of a step, which is the same step in every process."""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal

import jax
from jax.experimental import multihost_utils


class Interrupted(KeyboardInterrupt):
  """A signal ended the run early; its state is saved."""


@contextlib.contextmanager
def watched() -> Iterator[Callable[[int], bool]]:
  """Yields stopped(step): whether SIGTERM or Ctrl-C has come, agreed on by all processes."""
  received = []

  def handle(number, frame):
    del frame
    if received:  # a second signal does not wait
      raise KeyboardInterrupt
    received.append(number)
    if jax.process_count() > 1:  # tell the service that lets all processes stop at the same step
      os.kill(os.getpid(), signal.SIGTERM)

  previous = {}
  with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
    # Under jax.distributed SIGTERM belongs to its preemption service.
    numbers = [signal.SIGINT] + ([signal.SIGTERM] if jax.process_count() == 1 else [])
    previous = {number: signal.signal(number, handle) for number in numbers}

  def stopped(step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(received)

  try:
    yield stopped
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
