"""How parameters and data share a budget of FLOPs, by a fitted law.

A run costs k N^rho FLOPs an example, of which it sees `passes` for each datum that D counts. Of all
(N, D) that cost C, L = E + A/N^alpha + B/D^beta is least at N = G (C / (k passes))^a, with
a = beta / (alpha + rho beta) and G = (alpha A / (rho beta B))^(1 / (alpha + rho beta)).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from oat_jax.scaling import power_law

_VARIES = 0.02  # of ln: from here on passes are no constant


class Cost(NamedTuple):
  """What training costs: k N^rho FLOPs an example, `passes` examples a datum.

  Attributes:
    off: the largest |ln| between a measured cost and this formula.
    passes: geometric mean, and the least and largest of the runs.
  """

  k: float
  rho: float
  off: float
  passes: float
  passes_range: tuple[float, float]

  def steady(self) -> bool:
    """Whether all runs pass over their data as often."""
    low, high = self.passes_range
    return bool(np.log(high / low) < _VARIES)

  def flops(self, parameters: Any, data: Any) -> Any:
    return self.k * parameters**self.rho * self.passes * data


def measured(
  parameters_R: np.ndarray, data_R: np.ndarray, examples_R: np.ndarray, flops_R: np.ndarray
) -> Cost:
  """Returns the cost of measured runs, by least squares on logarithms."""
  log_N_R, each_R = np.log(parameters_R), np.log(flops_R / examples_R)
  rho, log_k = np.polyfit(log_N_R, each_R, 1)
  off = np.abs(each_R - (log_k + rho * log_N_R)).max()
  passes_R = examples_R / data_R
  between = (float(passes_R.min()), float(passes_R.max()))
  passes = float(np.exp(np.log(passes_R).mean()))
  return Cost(float(np.exp(log_k)), float(rho), float(off), passes, between)


class Optimum(NamedTuple):
  """The best use of budgets C: (..., C) each; the exponents of C are (...)."""

  parameters: np.ndarray
  data: np.ndarray
  loss: np.ndarray
  parameters_exponent: np.ndarray
  data_exponent: np.ndarray


def optimum(law: power_law.Law, cost: Cost, flops_C: np.ndarray) -> Optimum:
  """Returns the best use of budgets by a law of (parameters, data), or by many."""
  alpha, beta = np.moveaxis(np.maximum(law.alpha_V, 1e-3), -1, 0)  # a resample's may be 0
  log_A, log_B = np.moveaxis(np.log(law.A_T), -1, 0)
  total = alpha + cost.rho * beta
  log_G = (log_A - log_B + np.log(alpha / (cost.rho * beta))) / total
  a = beta / total
  log_work_C = np.log(np.asarray(flops_C, float) / (cost.k * cost.passes))
  log_N = log_G[..., None] + a[..., None] * log_work_C
  log_D = log_work_C - cost.rho * log_N
  loss = law.E[..., None] + np.exp(log_A[..., None] - alpha[..., None] * log_N)
  loss = loss + np.exp(log_B[..., None] - beta[..., None] * log_D)
  return Optimum(np.exp(log_N), np.exp(log_D), loss, a, 1 - cost.rho * a)


def allocate(fitted: power_law.Fit, cost: Cost, flops_C: Sequence[float]) -> dict[str, Any]:
  """Returns {"exponents": ..., "budgets": [...]}, values with 95 % intervals.

  A budget's `beyond` says what of its optimum was not measured.

  Args:
    fitted: a law of parameters and data.
    cost: of its runs.
    flops_C: the budgets.
  """
  best = optimum(fitted.law, cost, np.array(flops_C))
  many = optimum(fitted.laws, cost, np.array(flops_C))
  bounds = {name: fitted.interval(getattr(many, name)) for name in Optimum._fields}
  valued = lambda name, *at: {
    "value": float(getattr(best, name)[at]),
    "low": float(bounds[name][0][at]),
    "high": float(bounds[name][1][at]),
  }
  N_R, D_R = fitted.x_RV.T
  budgets = []
  for i, flops in enumerate(flops_C):
    beyond = [
      f"{name} {'above' if value > x_R.max() else 'below'} what was measured"
      for name, value, x_R in (
        ("parameters", best.parameters[i], N_R),
        (fitted.names[1], best.data[i], D_R),
      )
      if not x_R.min() * 0.999 <= value <= x_R.max() * 1.001
    ]
    row = {name: valued(name, i) for name in ("parameters", "data", "loss")}
    budgets.append({"flops": float(flops), **row, "beyond": beyond})
  exponents = {name: valued(f"{name}_exponent") for name in ("parameters", "data")}
  return {"exponents": exponents, "budgets": budgets}
