"""What a robot is ever told: actions inside a range, which change by no more than a rate a step.

Plain numpy, so that clients on robots can use it as well as servers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Limits(NamedTuple):
  """Of one action, in the dataset's units; see `make`."""

  low_A: np.ndarray
  high_A: np.ndarray
  rate_A: np.ndarray  # +inf where changes are not limited


def make(low: Any, high: Any, rate: Any = None) -> Limits:
  """Returns checked limits from lists of numbers, as `spec.json` holds them.

  Args:
    low, high: (A,), of each dimension.
    rate: (A,), the largest change between two control steps; None where changes are not limited.

  Raises:
    ValueError: they are of different lengths, not finite, a range is empty or a rate not positive.
  """
  low_A, high_A = np.asarray(low, np.float32), np.asarray(high, np.float32)
  rate_A = (
    np.full(low_A.shape, np.inf, np.float32) if rate is None else np.asarray(rate, np.float32)
  )
  if low_A.ndim != 1 or not low_A.shape == high_A.shape == rate_A.shape:
    raise ValueError(
      f"limits have {low_A.shape} lows, {high_A.shape} highs and {rate_A.shape} rates; one of each "
      "is needed for every action dimension"
    )
  wrong = ~(np.isfinite(low_A) & np.isfinite(high_A) & (low_A <= high_A) & (rate_A > 0))
  if wrong.any():
    i = int(np.flatnonzero(wrong)[0])
    raise ValueError(
      f"limits of dimension {i} are [{low_A[i]}, {high_A[i]}] at rate {rate_A[i]}; a finite range "
      "that is not empty and a positive rate are needed"
    )
  return Limits(low_A, high_A, rate_A)


def of_spec(content: Mapping[str, Any]) -> Limits:
  """Returns the limits of `Spec.limits`."""
  return make(content["low"], content["high"], content.get("rate"))


def apply(limits: Limits, actions_XCA: np.ndarray, last_XA: np.ndarray | None = None) -> np.ndarray:
  """Returns the actions nearest to these, step by step, that the limits allow.

  Args:
    actions_XCA: chunks, with any leading axes X.
    last_XA: the actions that were executed before them, from which the first step's change counts;
      None where there were none.

  Raises:
    ValueError: an action, or the last one, is NaN or infinite, so that nothing of the chunk should
      be executed; or there are more or fewer of them than limits.
  """
  actions_XCA = _finite(actions_XCA, limits, "actions hold")
  allowed_XCA = np.clip(actions_XCA, limits.low_A, limits.high_A)
  if last_XA is not None:
    last_XA = _finite(last_XA, limits, "the last action holds")
  if not np.isfinite(limits.rate_A).any():
    return allowed_XCA
  for i in range(allowed_XCA.shape[-2]):
    if last_XA is not None:
      step_XA = np.clip(allowed_XCA[..., i, :] - last_XA, -limits.rate_A, limits.rate_A)
      allowed_XCA[..., i, :] = np.clip(last_XA + step_XA, limits.low_A, limits.high_A)
    last_XA = allowed_XCA[..., i, :]
  return allowed_XCA


def follow(limits: Limits, actions_BCA: np.ndarray, last_BA: np.ndarray | None) -> np.ndarray:
  """As `apply`, of rows of which some have nothing before them: NaN in `last_BA`, or it is None."""
  if last_BA is None:
    return apply(limits, actions_BCA)
  first_BA = np.clip(actions_BCA[:, 0], limits.low_A, limits.high_A)
  return apply(limits, actions_BCA, np.where(np.isnan(last_BA), first_BA, last_BA))


def _finite(x_XA: np.ndarray, limits: Limits, what: str) -> np.ndarray:
  with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
    x_XA = np.asarray(x_XA, np.float32)
  if x_XA.shape[-1:] != limits.low_A.shape:
    raise ValueError(f"{what} shape {list(x_XA.shape)}; {len(limits.low_A)} dimensions are limited")
  if not np.isfinite(x_XA).all():
    first = np.argwhere(~np.isfinite(x_XA))[0].tolist()
    raise ValueError(f"{what} NaN or infinity at index {first}: nothing of them is executed")
  return x_XA
