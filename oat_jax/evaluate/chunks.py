"""Temporal ensembling: what is executed is the average of all chunks that reach to this step."""

import numpy as np


class Ensemble:
  """Overlapping chunks of B episodes, averaged with exponential weights (ACT, arXiv 2304.13705).

  Every R steps a chunk of C actions is asked for, so up to ceil(C / R) chunks say something about a
  step. As in ACT the oldest of them has weight 1, and one that was asked for i steps later has
  exp(-m i): with m > 0 the oldest counts most, with m < 0 the newest, with m = 0 all alike.
  """

  def __init__(self, m: float, replan: int):
    """`m` per control step, finite; `replan` is R, at least 1."""
    if not np.isfinite(m):
      raise ValueError(f"ensemble is {m}; it must be a finite number, e.g. 0.01 as in ACT")
    self._m, self._replan = m, replan
    # Newest first along J; how many of the J an episode has asked for.
    self._chunks_BJCA = np.zeros((0, 0, 0, 0), np.float32)
    self._count_B = np.zeros(0, np.int64)

  def __call__(self, chunks_BCA: np.ndarray) -> np.ndarray:
    """Takes every episode's next chunk, C >= R, and returns the actions to execute, (B, R, A)."""
    B, C, A = chunks_BCA.shape
    R, J = self._replan, -(-C // self._replan)
    if self._chunks_BJCA.shape != (B, J, C, A):
      self._chunks_BJCA = np.zeros((B, J, C, A), np.float32)
      self._count_B = np.zeros(B, np.int64)
    self._chunks_BJCA = np.concatenate([chunks_BCA[:, None], self._chunks_BJCA[:, :-1]], 1)
    self._count_B = np.minimum(self._count_B + 1, J)
    age_J = np.arange(J)
    step_JR = R * age_J[:, None] + np.arange(R)  # of the chunk that was asked for J calls ago
    said_BJRA = self._chunks_BJCA[:, age_J[:, None], np.minimum(step_JR, C - 1)]
    says_BJR = (step_JR < C) & (age_J[:, None] < self._count_B[:, None, None])
    oldest_BR = (says_BJR * age_J[:, None]).max(1)
    later_BJR = R * (oldest_BR[:, None] - age_J[:, None])
    power_BJR = np.where(says_BJR, -self._m * np.maximum(later_BJR, 0), -np.inf)
    weight_BJR = np.exp(power_BJR - power_BJR.max(1, keepdims=True))  # overflows for no m
    weight_BJR /= weight_BJR.sum(1, keepdims=True)
    return (weight_BJR[..., None] * said_BJRA).sum(1).astype(np.float32)

  def clear(self, again_B: np.ndarray) -> None:
    """Forgets the chunks of episodes (bool (B,)) that begin again."""
    if len(self._count_B):
      self._count_B[again_B] = 0
