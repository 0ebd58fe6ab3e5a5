"""Which episodes are trained on, and which are held out."""

import math

import numpy as np


def episodes(
  tasks_E: np.ndarray, validation_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the episodes to hold out, the same share of every task.

  Args:
    tasks_E: int (E,), the task of each episode.
    validation_fraction: in [0, 1). round(fraction * n) of a task's n episodes are held out, but
      never all n. Tasks that would give none, as instructions that occur once, are drawn from
      together. At least one episode is held out where the fraction is above 0.
    seed: of the draw.

  Returns:
    train_E, validation_E: sorted, disjoint int64 arrays of episode numbers that cover all.

  Raises:
    ValueError: the fraction is out of range, or there are no episodes, or only one of which one
      must be held out.
  """
  tasks_E = np.asarray(tasks_E)
  if not 0 <= validation_fraction < 1:
    raise ValueError(f"validation_fraction is {validation_fraction}; it must be in [0, 1)")
  if not len(tasks_E):
    raise ValueError("there are no episodes to split")
  if validation_fraction and len(tasks_E) < 2:
    raise ValueError(
      f"validation_fraction is {validation_fraction}, but there is only 1 episode, none to hold out"
    )
  counts = np.unique(tasks_E, return_counts=True)[1]
  by_task = np.split(np.argsort(tasks_E, kind="stable"), np.cumsum(counts)[:-1])
  few = np.round(validation_fraction * counts) < 1
  groups = [group for group, small in zip(by_task, few) if not small]
  pooled = [group for group, small in zip(by_task, few) if small]
  groups += [np.sort(np.concatenate(pooled))] if pooled else []
  rng = np.random.default_rng(seed)
  shuffled = [rng.permutation(group) for group in groups]
  sizes = np.array([len(group) for group in groups])
  held = np.minimum(np.round(validation_fraction * sizes).astype(int), sizes - 1)
  if validation_fraction and not held.any():
    held[np.argmax(sizes)] = 1
  validation = np.sort(np.concatenate([e[:n] for e, n in zip(shuffled, held)]))
  train = np.sort(np.concatenate([e[n:] for e, n in zip(shuffled, held)]))
  return train, validation


def part(tasks_E: np.ndarray, ids: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """Draws a share of the episodes, the same of every task; a smaller one is part of a larger one.

  Args:
    tasks_E: int (E,), the task of each episode of the dataset.
    ids: int, the episodes to draw from.
    fraction: in (0, 1]; ceil(fraction * n) of all n episodes are drawn, of every task this share up
      to one episode.
    seed: of the draw.

  Returns:
    sorted int64 episode numbers.
  """
  rng = np.random.default_rng(seed)
  shuffled = rng.permutation(np.asarray(ids, np.int64))
  tasks = np.asarray(tasks_E)[shuffled]
  # The k-th of a task's n episodes is due at (k + u) / n of the whole, u one number a task.
  due = np.empty(len(shuffled))
  for task in np.unique(tasks):
    of_task = tasks == task
    n = of_task.sum()
    due[of_task] = (np.arange(n) + rng.random()) / n
  count = math.ceil(fraction * len(shuffled) - 1e-9)  # 0.1 * 30 is above 3
  return np.sort(shuffled[np.argsort(due)[:count]])
