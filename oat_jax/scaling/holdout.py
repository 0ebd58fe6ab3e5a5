"""Whether a law tells what was not fitted: without the largest runs it must predict them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from oat_jax.scaling import power_law

_VALUES = 3  # of a variable, to predict beyond it


def predict_largest(
  x_RT: np.ndarray, loss_R: np.ndarray, names: Sequence[str], groups_R: np.ndarray, **how: Any
) -> list[dict[str, Any]]:
  """Fits without the runs that are largest in one variable, and in both, and predicts them.

  The naive guess beside it: the loss of the largest that was fitted, at the same data where only
  the size is held out, and at the same size where only data are.

  Args:
    x_RT: of two variables, size and data.
    loss_R: as in `power_law.fit`.
    names: of the variables.
    groups_R: as in `power_law.fit`.
    **how: arguments of `power_law.fit`.

  Returns:
    For each case {"held_out", "fitted" (runs), "points", "mean_abs_ln", "mean_ln",
    "naive_mean_abs_ln", "inside" (points in their interval)}, or {"held_out", "why"} where there is
    too little to fit. A point has its variables, the measured loss (geometric mean of repeats),
    `predicted` with its 95 % interval (of the law and the noise), `error` (predicted / measured -
    1), `naive` and `naive_error`.
  """
  top_RT = x_RT > 0.999 * x_RT.max(0)
  cases = {
    names[0]: (top_RT[:, 0], top_RT[:, 0]),
    names[1]: (top_RT[:, 1], top_RT[:, 1]),
    f"{names[0]} and {names[1]}": (top_RT.any(1), top_RT.all(1)),
  }
  return [
    {"held_out": f"the largest {name}", **_case(x_RT, loss_R, names, groups_R, out_R, asked_R, how)}
    for name, (out_R, asked_R) in cases.items()
  ]


def _case(
  x_RT: np.ndarray,
  loss_R: np.ndarray,
  names: Sequence[str],
  groups_R: np.ndarray,
  out_R: np.ndarray,
  asked_R: np.ndarray,
  how: dict[str, Any],
) -> dict[str, Any]:
  kept = ~out_R
  for t, name in enumerate(names):
    left = len(power_law.values_of(x_RT[kept, t])) if kept.any() else 0
    if left < _VALUES:
      return {"why": f"it leaves {left} values of {name}, and an exponent needs {_VALUES}"}
  if not asked_R.any():
    return {"why": "no run is the largest in both"}
  try:
    fitted = power_law.fit(x_RT[kept], loss_R[kept], names, groups_R[kept], **how)
  except ValueError as error:
    return {"why": str(error)}
  points = [
    _point(fitted, x_T, loss_R[(x_RT == x_T).all(1)])
    for x_T in np.unique(x_RT[asked_R], axis=0)
  ]  # fmt: skip
  log_ratio = lambda key: np.log([point[key] / point["measured"] for point in points])
  return {
    "fitted": int(kept.sum()),
    "points": points,
    "mean_abs_ln": float(np.abs(log_ratio("predicted")).mean()),
    "mean_ln": float(log_ratio("predicted").mean()),
    "naive_mean_abs_ln": float(np.abs(log_ratio("naive")).mean()),
    "inside": int(sum(point["low"] <= point["measured"] <= point["high"] for point in points)),
    "not_identified": fitted.not_identified,
  }


def _point(fitted: power_law.Fit, x_T: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
  measured = float(np.exp(np.log(losses).mean()))
  predicted = float(fitted.law(x_T[None])[0])
  noise_B = np.random.default_rng(0).normal(
    0, fitted.noise / np.sqrt(len(losses)), len(fitted.laws.E)
  )
  low, high = fitted.interval(fitted.laws(x_T[None])[:, 0] * np.exp(noise_B))
  # The nearest fitted run: as large as may be, not beyond the point.
  below_RT = np.where(fitted.x_RV <= x_T * 1.001, np.log(fitted.x_RV), -np.inf)
  nearest = np.flatnonzero(np.isclose(below_RT.sum(1), below_RT.sum(1).max()))
  naive = float(np.exp(np.log(fitted.loss_R[nearest]).mean()))
  return {
    **dict(zip(fitted.names, map(float, x_T))),
    "measured": measured,
    "predicted": predicted,
    "low": float(low),
    "high": float(high),
    "error": predicted / measured - 1,
    "naive": naive,
    "naive_error": naive / measured - 1,
  }
