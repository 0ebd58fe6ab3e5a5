"""Windows over episodes: the observations up to a step, and the chunk of actions from it on.

Axis letters: L all steps concatenated, E episodes, W windows, and B, T, C, A, S as in `batch`.
"""

from typing import Any

import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.data import normalization
from oat_jax.data import rlds


def split_episodes(
  tasks_E: np.ndarray, validation_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the episodes to hold out, the same share of every task.

  Args:
    tasks_E: int (E,), the task of each episode.
    validation_fraction: in [0, 1). round(fraction * n) of a task's n episodes are held out, but
      never all n, and at least one episode overall where the fraction is above 0.
    seed: of the draw.

  Returns:
    train_E, validation_E: sorted, disjoint int64 arrays of episode numbers that cover all.

  Raises:
    ValueError: the fraction is out of range, there are no episodes, or one must be held out but
      every task has only the one that it must keep.
  """
  tasks_E = np.asarray(tasks_E)
  if not 0 <= validation_fraction < 1:
    raise ValueError(f"validation_fraction is {validation_fraction}; it must be in [0, 1)")
  if not len(tasks_E):
    raise ValueError("there are no episodes to split")
  rng = np.random.default_rng(seed)
  shuffled = [rng.permutation(np.flatnonzero(tasks_E == task)) for task in np.unique(tasks_E)]
  sizes = np.array([len(episodes) for episodes in shuffled])
  held = np.minimum(np.round(validation_fraction * sizes).astype(int), sizes - 1)
  if validation_fraction and not held.any():
    if sizes.max() < 2:
      raise ValueError(
        f"validation_fraction is {validation_fraction}, but no task has 2 episodes, one to train "
        f"on and one to hold out: {len(tasks_E)} episodes in {len(sizes)} tasks"
      )
    held[np.argmax(sizes)] = 1
  validation = np.sort(np.concatenate([e[:n] for e, n in zip(shuffled, held)]))
  train = np.sort(np.concatenate([e[n:] for e, n in zip(shuffled, held)]))
  return train, validation


class Windows:
  """One window for every step of the chosen episodes, gathered a batch at a time."""

  def __init__(
    self,
    episodes: rlds.Episodes,
    episode_ids: np.ndarray,
    observation_steps: int,
    action_horizon: int,
    action_dim: int | None = None,
  ):
    """Indexes the windows, in the order of `episode_ids` and of time.

    Args:
      episodes: the dataset.
      episode_ids: int, distinct numbers of the episodes to use.
      observation_steps: T, the last of which is the window's own step.
      action_horizon: C, from the window's own step on.
      action_dim: the width A of the batch's actions; narrower data is padded with zeros. The
        data's own width where None.

    Raises:
      ValueError: no, repeated or unknown episodes, or actions wider than `action_dim`.
    """
    ids = np.asarray(episode_ids, np.int64)
    if not len(ids) or len(np.unique(ids)) != len(ids):
      raise ValueError(f"windows need distinct episodes, at least one, not {ids.tolist()[:8]}")
    if ids.min() < 0 or ids.max() >= episodes.num_episodes:
      raise ValueError(
        f"episodes {ids.min()} to {ids.max()} were asked for, but the dataset has "
        f"{episodes.num_episodes}, from 0 on"
      )
    width = episodes.actions_LA.shape[1]
    if action_dim is not None and action_dim < width:
      raise ValueError(f"the dataset's actions have {width} dimensions, action_dim is {action_dim}")
    self.spec = batch_lib.BatchSpec(
      observation_steps=observation_steps,
      action_horizon=action_horizon,
      action_dim=width if action_dim is None else action_dim,
      state_dim=episodes.states_LS.shape[1],
      task_names=episodes.task_names,
    )
    padding = self.spec.action_dim - width
    self._actions_LA = np.pad(episodes.actions_LA, ((0, 0), (0, padding)))
    self._states_LS = episodes.states_LS
    self._starts_E, self._tasks_E = episodes.starts_E, episodes.tasks_E
    self._action_dim_mask_A = np.arange(self.spec.action_dim) < width
    lengths = np.diff(episodes.starts_E)[ids]
    firsts = episodes.starts_E[ids] - (np.cumsum(lengths) - lengths)
    self.episode_W = np.repeat(ids, lengths)
    self._step_W = np.arange(lengths.sum()) + np.repeat(firsts, lengths)

  def __len__(self) -> int:
    return len(self._step_W)

  def __call__(self, indices_B: np.ndarray) -> dict[str, Any]:
    """Returns the batch (see `oat_jax.batch`) of the windows at int (B,) positions.

    Before an episode's start its first observation is repeated, behind its end its last action;
    observation_mask and action_mask are false there.

    Raises:
      IndexError: an index is negative or not below `len(self)`.
    """
    indices_B = np.asarray(indices_B, np.int64)
    bad = indices_B[(indices_B < 0) | (indices_B >= len(self))]
    if len(bad):
      raise IndexError(f"window {bad[0]} was asked for; there are {len(self)}, from 0 on")
    spec, rows = self.spec, len(indices_B)
    episode_B, step_B = self.episode_W[indices_B], self._step_W[indices_B]
    first_B1, end_B1 = (self._starts_E[episode_B + i][:, None] for i in (0, 1))
    observed_BT = step_B[:, None] + np.arange(1 - spec.observation_steps, 1)
    acted_BC = step_B[:, None] + np.arange(spec.action_horizon)
    return {
      "observation": {
        "state": self._states_LS[np.maximum(observed_BT, first_B1)],
        "task": self._tasks_E[episode_B],
      },
      "observation_mask": observed_BT >= first_B1,
      "actions": self._actions_LA[np.minimum(acted_BC, end_B1 - 1)],
      "action_mask": acted_BC < end_B1,
      "action_dim_mask": np.tile(self._action_dim_mask_A, (rows, 1)),
      "dataset": np.zeros(rows, np.int32),
    }

  def statistics(self) -> dict[str, normalization.Statistics]:
    """Returns the statistics of "actions" (A,) and "state" (S,), each step counted once.

    Dimensions that pad the actions are constant zeros, so normalising leaves them zero.
    """
    # Every step is the newest one of exactly one window, so the windows' own steps are the steps.
    return {
      "actions": normalization.compute(self._actions_LA[self._step_W]),
      "state": normalization.compute(self._states_LS[self._step_W]),
    }
