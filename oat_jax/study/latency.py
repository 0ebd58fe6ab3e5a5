"""Milliseconds of acting, all policies of a comparison in turns: one machine, at one time."""

from collections.abc import Mapping
import time
from typing import Any, NamedTuple

import numpy as np

from oat_jax.bench import clock
from oat_jax.study import actor


class Call(NamedTuple):
  """How a policy is asked.

  Attributes:
    method: whose policy.
    K: tokens; with a tolerance those spent on average; 0 where there are none.
    tolerance: of stopping by refinement, or None.
  """

  method: str
  K: int
  tolerance: float | None = None


def measure(
  actors: Mapping[str, actor.PolicyActor],
  calls: Mapping[Any, Call],
  windows: int = 50,
  rounds: int = 3,
) -> tuple[dict[Any, float], dict[str, str | float]]:
  """Returns ({name of a call: milliseconds}, what they were measured on and its calibration).

  Wall milliseconds from observation to chunk, batch 1, warm: the least of `rounds` calls on each
  held-out window, mean over the windows, because rows of varying length take varying time. The
  calls take turns.

  Args:
    actors: method -> its policy; all see the same windows.
    calls: what is measured.
    windows: held-out windows of the first actor's data, evenly spaced.
    rounds: calls on each window.
  """
  seen = [batch for batch, _ in next(iter(actors.values())).held_out(windows, 1)]

  def act(call: Call, batch):
    of = actors[call.method]
    return of(batch, call.K if call.tolerance is None else of.max_tokens, tolerance=call.tolerance)

  for call in calls.values():
    act(call, seen[0])  # compiles
  times = {name: np.full((len(seen), rounds), np.inf) for name in calls}
  for round_ in range(rounds):
    for w, batch in enumerate(seen):
      for name, call in calls.items():
        act(call, batch)  # the caches are this policy's, as where it acts alone
        begin = time.perf_counter()
        act(call, batch)
        times[name][w, round_] = 1e3 * (time.perf_counter() - begin)
  found = {name: float(each.min(1).mean()) for name, each in times.items()}
  return found, {**clock.machine(), **clock.calibration()}
