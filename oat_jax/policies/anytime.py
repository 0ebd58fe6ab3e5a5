"""Anytime control: a policy's `act` for a loop that gives it so many tokens, or so much time.

Host code around the pure function. How long a prefix takes is measured on the machine that acts,
and how much refinement matters is calibrated on held-out data.
"""

from collections.abc import Sequence
import itertools
import time
from typing import Any

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax import config as config_lib
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers import tokenizer as tokenizer_lib

# A policy of more prefix lengths is measured at so many of them, and meets deadlines with those.
MEASURED = 16


class Anytime:
  """One policy on one machine; one compiled program for all prefixes of a batch size."""

  def __init__(
    self,
    policy: Policy,
    params: Any,
    *,
    sampling: Sampling = Sampling(),
    tolerance: float | None = None,
    seed: int = 0,
  ):
    """Places the parameters on the default device.

    Args:
      policy, params: as trained.
      sampling: how tokens are drawn.
      tolerance: of `stop="refinement"`, in squared normalised units; see `calibrate`.
      seed: of the draws.
    """
    if tolerance is not None:
      if not policy.refines:
        raise ValueError("a tolerance is given, but this policy has not learned refinements")
      config_lib.at_least(tolerance, 0, "tolerance")
    self.policy, self._params, self._tolerance = policy, jax.device_put(params), tolerance
    self._key = jax.random.key(seed)
    self._ms: dict[tuple[int, str], dict[int, float]] = {}  # by batch size and stop
    self._compiled: set[tuple[int, str]] = set()
    self._calls = itertools.count()

    def act(params, batch, key, call, num_tokens, tolerance):
      key = jax.random.fold_in(key, call)
      return policy.act(params, batch, key, num_tokens, sampling, tolerance)

    self._act = jax.jit(act)

  def measure(
    self,
    batch: batch_lib.Batch,
    stop: str = "",
    repeats: int = 50,
    tolerance: float | None = None,
  ) -> dict[int, float]:
    """Returns, and keeps for deadlines, the milliseconds of prefix lengths at this batch size.

    The 95th percentile of the wall time from a batch on the host to a chunk on the host, warm; the
    prefixes take turns, so that all see the same machine. Takes `repeats` chunks of each of them,
    `MEASURED` evenly spaced ones where there are more: call it before the robot moves. With
    `stop`, a program of its own, chunks that end early make the times smaller: they are those of
    this batch.
    """
    budgets = self.policy.budgets
    chosen = np.linspace(0, len(budgets) - 1, min(MEASURED, len(budgets))).round().astype(int)
    times: dict[int, list[float]] = {budgets[x]: [] for x in chosen}
    for turn in range(repeats + 3):
      for K in times:
        _, info = self.act(batch, num_tokens=K, stop=stop, tolerance=tolerance, call=0)
        if turn >= 3:  # the first ones warm the caches
          times[K].append(info["ms"])
    found = {K: float(np.percentile(ms, 95)) for K, ms in times.items()}
    self._ms[len(batch["dataset"]), stop] = found
    return found

  def act(
    self,
    batch: batch_lib.Batch,
    *,
    num_tokens: int | None = None,
    deadline_ms: float | None = None,
    stop: str = "",
    tolerance: float | None = None,
    call: int | None = None,
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns chunks (B, C, A) in the dataset's units, and info; waits for them.

    Args:
      batch: as for `Policy.act`, numpy.
      num_tokens: the most tokens, in 1 .. max_tokens; all if None.
      deadline_ms: takes the most tokens whose measured time is no longer, `num_tokens` at most.
        Measures first, where that was not done for this batch size and `stop`. Where not even the
        shortest prefix fits, that is taken.
      stop: "" or "refinement": each row ends where the tokens behind it are not expected to matter.
      tolerance: of the stop; that of this object if None.
      call: another number draws other tokens, or other noise; counted from 0 by itself if None.

    Returns:
      chunks, and {"num_tokens": int32 (B,), "ms": what the call took without compiling,
      "deadline_met": whether a prefix fits the deadline; true without one}, with what `Policy.act`
      says.

    Raises:
      ValueError: what is observed does not fit the policy, or an argument is out of its range.
    """
    batch_lib.check(batch, self.policy.spec, batch_lib.ACTING)
    config_lib.choose(stop, ("", "refinement"), "stop")
    tolerance = self._tolerance if tolerance is None else tolerance
    if stop and tolerance is None:
      raise ValueError("stop is 'refinement', but no tolerance was given; see anytime.calibrate")
    budget = self.policy.max_tokens if num_tokens is None else num_tokens
    tokenizer_lib.check_num_tokens(budget, self.policy.max_tokens)
    met = True
    if deadline_ms is not None:
      config_lib.above(deadline_ms, 0, "deadline_ms")
      measured = self._ms.get((len(batch["dataset"]), stop)) or self.measure(
        batch, stop, tolerance=tolerance
      )
      fitting = [K for K, ms in measured.items() if ms <= deadline_ms and K <= budget]
      met = bool(fitting)
      budget = max(fitting, default=self.policy.budgets[0])  # every policy's first budget is 1
    arguments = (
      self._params,
      {name: batch[name] for name in batch_lib.ACTING},
      self._key,
      np.uint32(next(self._calls) if call is None else call),
      np.int32(budget),
      np.float32(tolerance) if stop else None,
    )
    program = len(batch["dataset"]), stop
    if program not in self._compiled:
      jax.block_until_ready(self._act(*arguments))
      self._compiled.add(program)
    begin = time.perf_counter()
    actions_BCA, info = self._act(*arguments)
    actions_BCA, info = np.asarray(actions_BCA), jax.device_get(info)
    spent = {"num_tokens": np.zeros(len(actions_BCA), np.int32)} | info
    ms = 1e3 * (time.perf_counter() - begin)
    return actions_BCA, spent | {"ms": ms, "deadline_met": met}


def calibrate(expected_WX: np.ndarray, budgets: Sequence[int], mean_tokens: float) -> float:
  """Returns the smallest tolerance with which no more than `mean_tokens` are spent on average.

  Args:
    expected_WX: `info["refinement_BX"]` of held-out windows at tolerance 0, all tokens generated:
      the change expected behind each of the X blocks.
    budgets: ends of the blocks, the policy's `budgets`.
    mean_tokens: from the first of the budgets to the last.
  """
  expected_WX = np.asarray(expected_WX)
  if expected_WX.ndim != 2 or expected_WX.shape[1] != len(budgets):
    raise ValueError(
      f"the expected changes have shape {list(expected_WX.shape)}; {len(budgets)} columns, one for "
      f"each of the prefix lengths {tuple(budgets)}, are needed"
    )
  if not len(expected_WX) or not np.isfinite(expected_WX).all():
    raise ValueError("the expected changes have no rows, or hold NaN or infinity")
  config_lib.between(mean_tokens, budgets[0], budgets[-1], "mean_tokens")
  candidates = np.concatenate([[0.0], np.unique(expected_WX)])
  low, high = 0, len(candidates) - 1  # with the largest, every row ends at once
  while low < high:
    middle = (low + high) // 2
    if spent(expected_WX, budgets, candidates[middle]).mean() <= mean_tokens:
      high = middle
    else:
      low = middle + 1
  return float(candidates[low])


def spent(expected_WX: np.ndarray, budgets: Sequence[int], tolerance: float) -> np.ndarray:
  """Returns the tokens that each window spends under a tolerance, int (W,)."""
  small_WX = np.asarray(expected_WX) <= tolerance
  small_WX[:, -1] = True
  return np.asarray(budgets)[small_WX.argmax(1)]
