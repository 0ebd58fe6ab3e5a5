"""Milliseconds of acting, all policies of a comparison in turns: one machine, at one time."""

from collections.abc import Callable, Mapping, Sequence
import time
from typing import Any

import numpy as np

from oat_jax.bench import clock


def measure(
  acts: Mapping[Any, Callable[[Any], Any]], batches: Sequence[Any], rounds: int = 3
) -> tuple[dict[Any, float], dict[str, str | float]]:
  """Returns ({name: milliseconds}, what they were measured on and its calibration).

  Wall milliseconds from observation to chunk, warm: the least of `rounds` calls on each batch, mean
  over the batches, because rows of varying length take varying time. The policies take turns.

  Args:
    acts: name -> what takes a batch and waits for its chunk, e.g. `Trained.at`.
    batches: what all of them see.
    rounds: calls on each batch.
  """
  for act in acts.values():
    act(batches[0])  # compiles
  times = {name: np.full((len(batches), rounds), np.inf) for name in acts}
  for turn in range(rounds):
    for at, batch in enumerate(batches):
      for name, act in acts.items():
        act(batch)  # the caches are this policy's, as where it acts alone
        begin = time.perf_counter()
        act(batch)
        times[name][at, turn] = 1e3 * (time.perf_counter() - begin)
  found = {name: float(each.min(1).mean()) for name, each in times.items()}
  return found, {**clock.machine(), **clock.calibration()}
