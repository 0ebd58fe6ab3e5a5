"""Laws L(x) = E + sum_i A_i / x_i^alpha_i through measured losses, with intervals.

Further variables may be factors of all this, 1 / x^gamma: a prefix of few bits makes any run worse.
The form, Huber's loss on ln L and its delta are those of Hoffmann et al. 2022 (arXiv 2203.15556,
approach 3). An exponent that the data do not tell is named, with the reason, in `not_identified`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from oat_jax.scaling import huber

LEVEL = 0.95
RESAMPLES = 500
_POLISHED = 5  # ends of starts, the best, that L-BFGS goes on from
_FEWEST_VALUES = 3  # of a variable, for its exponent
_WIDEST = 4.0  # high over low of an exponent that is told
_LISTED = 5  # rows named in an error
_AT_ONCE = 200_000  # rows of refits side by side: what stays in a core's cache


class Law(NamedTuple):
  """E (...), A (..., T) and the exponents (..., V) of a law, or of many such laws.

  The first T of V variables have a term each, the others are factors.
  """

  E: np.ndarray
  A_T: np.ndarray
  alpha_V: np.ndarray

  def __call__(self, x_RV: Any) -> np.ndarray:
    """Returns the losses (..., R) at positive x."""
    T = self.A_T.shape[-1]
    powers = self.alpha_V[..., None, :] * np.log(np.asarray(x_RV, float))
    terms = np.log(self.A_T)[..., None, :] - powers[..., :T]
    sums = np.asarray(self.E)[..., None] + np.exp(terms).sum(-1)
    return sums * np.exp(-powers[..., T:].sum(-1))


class Fit(NamedTuple):
  """A law with what is known of how far to trust it.

  Attributes:
    names: of the V variables.
    law: the one of the least Huber loss.
    laws: of the refits, E (B,), A (B, T), alpha (B, V).
    freedom: degrees of freedom that the intervals are widened for.
    x_RV, loss_R: what was fitted.
    noise: standard deviation of ln L about the law.
    objective: the sum of the Huber losses on ln L.
    not_identified: why "E" or the exponent of a variable cannot be told, by name.
  """

  names: tuple[str, ...]
  law: Law
  laws: Law
  freedom: int
  x_RV: np.ndarray
  loss_R: np.ndarray
  noise: float
  objective: float
  not_identified: dict[str, str]

  def residuals(self) -> np.ndarray:
    """Returns ln(measured / fitted), (R,)."""
    return np.log(self.loss_R / self.law(self.x_RV))

  def interval(self, values_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % interval (low, high) of what `values_B` (B, ...) is in each of `laws`."""
    return _interval(values_B, self.freedom)


def _interval(values_B: np.ndarray, freedom: int) -> tuple[np.ndarray, np.ndarray]:
  tail = stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, freedom))
  low, high = np.quantile(values_B, [tail, 1 - tail], axis=0)
  return low, high


def fit(
  x_RV: Any,
  loss_R: Any,
  names: Sequence[str],
  groups_R: Any = None,
  rows_R: Sequence[str] | None = None,
  resamples: int = RESAMPLES,
  seed: int = 0,
  factors: int = 0,
) -> Fit:
  """Fits L(x) = E + sum_i A_i / x_i^alpha_i, exponents between 0 and 5.

  The least sum of Huber losses (delta 1e-3) of ln L is found by L-BFGS from a grid of starts. For
  the intervals the law is fitted again to its own values times noise, `resamples` times. The noise
  is the residuals of least squares, drawn by whole groups, made as wide as they were before the fit
  took its part; quantiles of the refits are those of Student's t with the groups' degrees of
  freedom. tests/scaling and `launch/benchmark.py law` hold them to their 95 %.

  Args:
    x_RV: positive, in any units.
    loss_R: positive.
    names: of the V variables.
    groups_R: what rows lie in one group: those that share their noise (a run's prefixes, repeats of
      a run). Rows of groups alike come in the same order. None: each row is its own.
    rows_R: names of the rows, for errors.
    resamples: number B of refits.
    seed: of the draws.
    factors: so many of the variables, the last ones, have no term: the sum of all terms is divided
      by each of them to the power of its exponent.

  Raises:
    ValueError: losses that are not positive and finite, or all the same; a variable that does not
      vary; too few rows (with how many more, and which); a fit that does not converge.
  """
  x_RV, loss_R = np.asarray(x_RV, float), np.asarray(loss_R, float)
  names = tuple(names)
  R = len(loss_R)
  if x_RV.shape != (R, len(names)):
    raise ValueError(f"x is {x_RV.shape}, but there are {R} losses and the variables {names}")
  P = 1 + 2 * len(names) - factors
  _check(x_RV, loss_R, names, rows_R or [f"row {row}" for row in range(R)], P)
  groups_R = np.unique(np.arange(R) if groups_R is None else groups_R, return_inverse=True)[1]
  P, G = 1 + 2 * len(names), int(groups_R.max()) + 1
  if P >= G:
    raise ValueError(
      f"a law of {' and '.join(names)} has {P} numbers and needs {P + 1} groups of rows at least; "
      f"there are {G}"
    )
  problem = huber.Problem(x_RV, loss_R, factors)
  point_P, objective = _minimum(problem)
  noise_R, noise = _noise(problem, point_P, groups_R)
  y_BR = problem.predict(point_P[None]) + _draws(noise_R, groups_R, resamples, seed)
  law = _law(problem, point_P)
  laws = _law(problem, _refits(problem, point_P, y_BR))
  made = Fit(names, law, laws, G - P, x_RV, loss_R, noise, objective * huber.DELTA, {})
  return made._replace(not_identified=_not_identified(made))


def _check(
  x_RV: np.ndarray, loss_R: np.ndarray, names: tuple[str, ...], rows_R: Sequence[str], P: int
) -> None:
  bad_R = ~(np.isfinite(loss_R) & (loss_R > 0))
  if bad_R.any():
    listed = [f"{rows_R[row]}: {loss_R[row]}" for row in np.flatnonzero(bad_R)[:_LISTED]]
    more = f" and {bad_R.sum() - _LISTED} more" if bad_R.sum() > _LISTED else ""
    raise ValueError(
      f"a law is fitted to ln L, and {bad_R.sum()} of {len(loss_R)} losses are not positive finite "
      f"numbers ({'; '.join(listed)}{more}): leave these runs out, or run them again"
    )
  if not (np.isfinite(x_RV) & (x_RV > 0)).all():
    row, t = np.argwhere(~(np.isfinite(x_RV) & (x_RV > 0)))[0]
    raise ValueError(f"{names[t]} is {x_RV[row, t]} in {rows_R[row]}; it must be positive")
  constant = [t for t in range(len(names)) if len(values_of(x_RV[:, t])) == 1]
  if constant:
    raise ValueError(
      f"{names[constant[0]]} is {x_RV[0, constant[0]]:,.6g} in all {len(loss_R)} rows, so its term "
      f"cannot be told from E: add runs with other values of it, {_FEWEST_VALUES} in all at least"
    )
  points = len(np.unique(np.round(np.log(x_RV), 6), axis=0))
  if points <= P:
    few = [t for t in range(len(names)) if len(values_of(x_RV[:, t])) <= _FEWEST_VALUES]
    raise ValueError(
      f"a law of {' and '.join(names)} has {P} numbers and needs runs at {P + 1} different points "
      f"at least; there are {points}: {P + 1 - points} more are missing. "
      + "; ".join(_wanted(names[t], x_RV[:, t]) for t in few or range(len(names)))
    )
  if np.ptp(np.log(loss_R)) < 1e-9:
    raise ValueError(
      f"all {len(loss_R)} losses are {loss_R[0]:.6g}: nothing depends on {' or '.join(names)}"
    )


def values_of(x_R: np.ndarray) -> np.ndarray:
  """Returns the different values, those within 0.1 % being one."""
  sorted_R = np.sort(x_R)
  return sorted_R[np.concatenate([[True], np.diff(np.log(sorted_R)) > 1e-3])]


def _wanted(name: str, x_R: np.ndarray) -> str:
  values = values_of(x_R)
  has = ", ".join(f"{value:,.6g}" for value in values)
  step = max(2.0, float(values[-1] / values[-2]))
  return f"{name} has {len(values)} values ({has}): add e.g. {values[-1] * step:,.3g}"


def _minimum(problem: huber.Problem) -> tuple[np.ndarray, float]:
  """Returns the point of the least objective.

  All starts of the grid are brought near by `refit`, and the best finished by L-BFGS.
  """
  starts_SP = problem.starts()
  near_SP, value_S = problem.refit(starts_SP, np.tile(problem.y_R, (len(starts_SP), 1)))
  result = problem.minimise(near_SP[np.argsort(value_S)[:_POLISHED]])
  floor = 1e-9 * len(problem.y_R)  # of losses that lie on a law
  if not np.isfinite(result.fun) or result.fun > value_S.min() * (1 + 1e-3) + floor:
    raise ValueError(
      f"the fit did not converge ({result.message}; its objective {result.fun:.6g}, where "
      f"{value_S.min():.6g} was seen): the losses follow no such law; look at them against each "
      "variable"
    )
  return result.x, float(result.fun)


def _noise(
  problem: huber.Problem, point_P: np.ndarray, groups_R: np.ndarray
) -> tuple[np.ndarray, float]:
  """Returns residuals (R,) as wide as the noise, and their standard deviation.

  Of the Huber fit as many as it has numbers are 0, so those of least squares are taken. A group's
  are divided by the square root of what the fit left of them (I - H: Bell and McCaffrey 2002).
  """
  least_1P, _ = problem.refit(point_P[None], problem.y_R[None], delta=1e3)
  log_1R, slopes_1RP = problem.slopes(least_1P)
  residual_R = problem.y_R - log_1R[0]
  basis_RP, size_P, _ = np.linalg.svd(slopes_1RP[0], full_matrices=False)
  basis_RP = basis_RP[:, size_P > 1e-9 * size_P[0]]
  wide_R = np.empty_like(residual_R)
  for group in range(groups_R.max() + 1):
    rows = np.flatnonzero(groups_R == group)
    left, turn = np.linalg.eigh(np.eye(len(rows)) - basis_RP[rows] @ basis_RP[rows].T)
    wide_R[rows] = turn @ ((turn.T @ residual_R[rows]) / np.sqrt(np.maximum(left, 0.05)))
  wide_R -= wide_R.mean()
  return wide_R, float(np.sqrt(np.mean(wide_R**2)))


def _draws(noise_R: np.ndarray, groups_R: np.ndarray, resamples: int, seed: int) -> np.ndarray:
  """Returns noise (B, R): every group gets that of a group drawn with replacement."""
  rows_of = [np.flatnonzero(groups_R == group) for group in range(groups_R.max() + 1)]
  G, longest = len(rows_of), max(map(len, rows_of))
  padded_GM = np.stack([np.resize(rows, longest) for rows in rows_of])
  drawn_BG = np.random.default_rng(seed).integers(0, G, (resamples, G))
  noise_BR = np.empty((resamples, len(noise_R)))
  for group, rows in enumerate(rows_of):
    noise_BR[:, rows] = noise_R[padded_GM[drawn_BG[:, group], : len(rows)]]
  return noise_BR


def _refits(problem: huber.Problem, point_P: np.ndarray, y_BR: np.ndarray) -> np.ndarray:
  """Returns points (B, P), the better of two starts each: the fit, and half of the least loss as E
  with larger exponents.
  """
  T, found = problem.T, []
  size = max(1, _AT_ONCE // len(problem.y_R))
  for start in range(0, len(y_BR), size):
    y_LR = y_BR[start : start + size]
    first_LP = np.tile(point_P, (len(y_LR), 1))
    second_LP = first_LP.copy()
    second_LP[:, 0] = np.log(0.5) + y_LR.min(1)
    second_LP[:, 1 + T :] += 0.2
    (one_LP, one_L), (other_LP, other_L) = (
      problem.refit(each, y_LR) for each in (first_LP, second_LP)
    )
    found.append(np.where((other_L < one_L)[:, None], other_LP, one_LP))
  return np.concatenate(found)


def _law(problem: huber.Problem, points: np.ndarray) -> Law:
  T = problem.T
  alpha_V = points[..., 1 + T :]
  powers_V = alpha_V * problem.mean_V
  scale = problem.median + powers_V[..., T:].sum(-1)
  A_T = np.exp(points[..., 1 : 1 + T] + scale[..., None] + powers_V[..., :T])
  return Law(np.exp(points[..., 0] + scale), A_T, alpha_V)


def _not_identified(made: Fit) -> dict[str, str]:
  """Says of E and of each exponent why the data do not tell it."""
  found = {}
  low, high = made.interval(made.laws.E)
  if low < 1e-3 * made.loss_R.min():
    found["E"] = f"the data allow none at all; it is below {high:.3g}"
  low_V, high_V = made.interval(made.laws.alpha_V)
  effects_V = effects(made)
  for t, name in enumerate(made.names):
    values, alpha = values_of(made.x_RV[:, t]), made.law.alpha_V[t]
    between = f"its interval, {low_V[t]:.2f} to {high_V[t]:.2f},"
    if len(values) < _FEWEST_VALUES:
      why = f"{_FEWEST_VALUES} values are needed. {_wanted(name, made.x_RV[:, t])}"
    elif effects_V[t] < made.noise:
      why = (
        f"over all of its values it changes the loss by {100 * effects_V[t]:.2g} %, which is "
        f"within the noise, {100 * made.noise:.2g} %"
      )
    elif low_V[t] < 0.01 or high_V[t] > 0.98 * huber.LARGEST:
      why = f"{between} reaches the bounds of the search, 0 and {huber.LARGEST:g}"
    elif high_V[t] - low_V[t] >= alpha or high_V[t] > _WIDEST * low_V[t]:
      why = f"{between} is too wide for the estimate, {alpha:.2f}"
    else:
      continue
    found[name] = why
  return found


def effects(made: Fit) -> np.ndarray:
  """Returns (T,): how much of ln L a variable moves from its least value to its largest, the others
  at the middle of the data.
  """
  middle_T = np.exp(np.log(made.x_RV).mean(0))
  found = []
  for t in range(len(made.names)):
    ends_2T = np.stack([middle_T, middle_T])
    ends_2T[:, t] = made.x_RV[:, t].min(), made.x_RV[:, t].max()
    found.append(float(-np.diff(np.log(made.law(ends_2T)))[0]))
  return np.array(found)
