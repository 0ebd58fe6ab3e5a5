"""The least Huber loss of a power law on ln L: one fit with care, and many refits at once."""

import itertools

import numpy as np
from scipy import optimize

DELTA = 1e-3
# An exponent of 0 is a constant; at 5 a term is gone after the first doubling.
LARGEST = 5.0
_GRID = (0.05, 0.2, 0.5, 1.0, 2.0)
_ROUNDS = 100  # of a refit
# ln of the range of E, and of a term at the middle of the data, over the median loss.
_RANGE = (-12.0, 3.0)
_LEAST_START = 0.05  # over the least loss: from nearly nothing a term does not come back


class Problem:
  """The rows of a fit in units of their own: ln x less its mean, ln L less its median.

  A point is a vector (P,) of ln E, the T logarithms of the terms at the mean of ln x, their T
  exponents, and those of F factors, P = 1 + 2T + F. With these no unit of x or of the loss changes
  a fit.
  """

  def __init__(self, x_RV: np.ndarray, loss_R: np.ndarray, factors: int = 0):
    """Takes the rows; the last `factors` of the variables V = T + F are factors."""
    log_x_RV = np.log(x_RV)
    self.T = log_x_RV.shape[1] - factors
    self.mean_V = log_x_RV.mean(0)
    self.u_RT, self.u_RF = np.split(log_x_RV - self.mean_V, [self.T], axis=1)
    self.median = float(np.median(np.log(loss_R)))
    self.y_R = np.log(loss_R) - self.median
    terms = [_RANGE] * (1 + self.T)
    self.bounds_P2 = np.array(terms + [(0.0, LARGEST)] * (self.T + factors))

  def predict(self, points_BP: np.ndarray) -> np.ndarray:
    """Returns ln L less its median, (B, R)."""
    return self._parts(points_BP)[1]

  def slopes(self, points_BP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `predict` and its derivatives (B, R, P)."""
    share_BRS, log_BR = self._parts(points_BP)
    factors_BRF = np.broadcast_to(-self.u_RF, (*log_BR.shape, self.u_RF.shape[1]))
    parts = [share_BRS, -share_BRS[..., 1:] * self.u_RT, factors_BRF]
    return log_BR, np.concatenate(parts, axis=-1)

  def _parts(self, points_BP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the share of each term in L, (B, R, 1 + T), and ln L, by log-sum-exp."""
    T = self.T
    z_BRS = np.empty((len(points_BP), len(self.u_RT), 1 + T))
    z_BRS[..., 0] = points_BP[:, None, 0]
    alpha_B1T = points_BP[:, None, 1 + T : 1 + 2 * T]
    z_BRS[..., 1:] = points_BP[:, None, 1 : 1 + T] - alpha_B1T * self.u_RT
    top_BR1 = z_BRS.max(-1, keepdims=True)
    share_BRS = np.exp(z_BRS - top_BR1)
    sum_BR1 = share_BRS.sum(-1, keepdims=True)
    factors_BR = points_BP[:, 1 + 2 * T :] @ self.u_RF.T
    return share_BRS / sum_BR1, (top_BR1 + np.log(sum_BR1))[..., 0] - factors_BR

  def objective(self, point_P: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the sum of the Huber losses over DELTA, and its gradient.

    Summed and over DELTA, it is large beside what stops L-BFGS: with the mean of the losses that
    stops before the minimum (Besiroglu et al. 2024, arXiv 2404.10102).
    """
    log_1R, slopes_1RP = self.slopes(point_P[None])
    residual_R = log_1R[0] - self.y_R
    return float(_huber(residual_R)), np.clip(residual_R / DELTA, -1, 1) @ slopes_1RP[0]

  def starts(self) -> np.ndarray:
    """Returns points (S, P), the best first: for each exponents of a grid the E and A, none
    negative, of the least relative squares.
    """
    found = []
    for alpha_V in itertools.product(_GRID, repeat=self.T + self.u_RF.shape[1]):
      terms_RT = np.exp(-np.array(alpha_V[: self.T]) * self.u_RT)
      loss_R = np.exp(self.y_R + self.u_RF @ np.array(alpha_V[self.T :]))
      terms_RS = np.concatenate([np.ones((len(loss_R), 1)), terms_RT], axis=1)
      terms_S, norm = optimize.nnls(terms_RS / loss_R[:, None], np.ones(len(loss_R)))
      logs_S = np.log(np.maximum(terms_S, _LEAST_START * loss_R.min()))
      found.append((norm, np.concatenate([logs_S, alpha_V])))
    return np.array([point_P for _, point_P in sorted(found, key=lambda each: each[0])])

  def minimise(self, starts_SP: np.ndarray) -> optimize.OptimizeResult:
    """Returns the best result of L-BFGS from the starts."""
    results = [
      optimize.minimize(
        self.objective,
        start_P,
        jac=True,
        method="L-BFGS-B",
        bounds=self.bounds_P2,
        options={"maxiter": 2000, "maxfun": 5000, "ftol": 1e-12, "gtol": 1e-6, "maxcor": 20},
      )
      for start_P in starts_SP
    ]
    return min(results, key=lambda result: result.fun)

  def refit(
    self, starts_BP: np.ndarray, y_BR: np.ndarray, delta: float = DELTA
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns points (B, P) and objectives (B,) for other losses, all descending side by side.

    Each round minimises, with Levenberg and Marquardt's damping, the squares that lie on the Huber
    losses from above: reweighted least squares. It is hundreds of times quicker than L-BFGS on one
    after the other.
    """
    low_P, high_P = self.bounds_P2.T
    points_BP = np.clip(starts_BP, low_P, high_P)
    best_B = _huber(self.predict(points_BP) - y_BR, delta)
    damping_B, idle_B = np.full(len(points_BP), 1e-3), np.zeros(len(points_BP), int)
    live_L = np.arange(len(points_BP))
    for _ in range(_ROUNDS):
      p_LP, y_LR = points_BP[live_L], y_BR[live_L]
      log_LR, slope_LRP = self.slopes(p_LP)
      residual_LR = log_LR - y_LR
      weighed_LPR = (slope_LRP / np.maximum(np.abs(residual_LR), delta)[..., None]).swapaxes(1, 2)
      square_LPP = weighed_LPR @ slope_LRP
      gradient_LP = (weighed_LPR @ residual_LR[..., None])[..., 0]
      held_LP = ((p_LP <= low_P) & (gradient_LP > 0)) | ((p_LP >= high_P) & (gradient_LP < 0))
      square_LPP[held_LP[:, :, None] | held_LP[:, None, :]] = 0
      diagonal_LP = np.einsum("lpp->lp", square_LPP)
      diagonal_LP += damping_B[live_L, None] * diagonal_LP + 1e-9 + held_LP
      step_LP1 = np.linalg.solve(square_LPP, np.where(held_LP, 0, gradient_LP)[..., None])
      tried_LP = np.clip(p_LP - np.clip(step_LP1[..., 0], -1.5, 1.5), low_P, high_P)
      value_L = _huber(self.predict(tried_LP) - y_LR, delta)
      better_L = value_L <= best_B[live_L]
      gain_L = np.where(better_L, best_B[live_L] - value_L, 0) / np.maximum(best_B[live_L], 1e-12)
      points_BP[live_L[better_L]] = tried_LP[better_L]
      best_B[live_L[better_L]] = value_L[better_L]
      damping_B[live_L] = np.clip(damping_B[live_L] * np.where(better_L, 0.2, 8), 1e-8, 1e8)
      stuck_L = (better_L & (gain_L < 1e-6)) | (damping_B[live_L] > 1e6)
      idle_B[live_L] = np.where(stuck_L, idle_B[live_L] + 1, 0)
      live_L = live_L[idle_B[live_L] < 3]
      if not live_L.size:
        break
    return points_BP, best_B


def _huber(residual_BR: np.ndarray, delta: float = DELTA) -> np.ndarray:
  """Returns the sum over rows of the Huber losses, over delta."""
  size_BR = np.abs(residual_BR)
  return np.where(size_BR <= delta, 0.5 * size_BR**2 / delta, size_BR - 0.5 * delta).sum(-1)
