"""What a run trains on: windows of its dataset, cut into training and held-out episodes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from oat_jax.data import normalization
from oat_jax.data import pipeline
from oat_jax.data import rlds
from oat_jax.data import windows as windows_lib
from oat_jax.train import config as config_lib


class Split(NamedTuple):
  """The windows of a run, and the statistics of the training part."""

  train: windows_lib.Windows
  validation: windows_lib.Windows
  statistics: dict[str, dict[str, np.ndarray]]
  fingerprint: str


def load(data: config_lib.Data) -> Split:
  """Reads the dataset; splits its episodes, stratified by task, into training and validation."""
  if not data.path:
    raise ValueError("config.data.path is empty; pass --config.data.path=DIR, an RLDS dataset")
  episodes = rlds.read(data.path, data.split, rlds.Fields(data.action, data.state, data.task))
  width = episodes.actions_LA.shape[1]
  if data.action_dim not in (None, width):
    raise ValueError(
      f"config.data.action_dim is {data.action_dim}; the actions in {data.path} have {width} "
      "dimensions"
    )
  train_E, validation_E = windows_lib.split_episodes(
    episodes.tasks_E, data.validation_fraction, data.split_seed
  )
  make = lambda ids_E: windows_lib.Windows(
    episodes, ids_E, data.observation_steps, data.action_horizon
  )
  train = make(train_E)
  statistics = {name: normalization.stack([values]) for name, values in train.statistics().items()}
  if not len(validation_E):
    raise ValueError("config.data.validation_fraction is 0; training needs held-out episodes")
  return Split(train, make(validation_E), statistics, rlds.fingerprint(episodes))


class WithColumns(NamedTuple):
  """Windows with further arrays, one row a window, added to their batches."""

  windows: Any
  columns: dict[str, np.ndarray]

  def __len__(self):
    return len(self.windows)

  def __call__(self, indices_B):
    return self.windows(indices_B) | {name: rows[indices_B] for name, rows in self.columns.items()}


class Subset(NamedTuple):
  """At most so many of the windows, evenly spaced."""

  windows: Any
  indices: np.ndarray

  def __len__(self):
    return len(self.indices)

  def __call__(self, indices_B):
    return self.windows(self.indices[indices_B])


def evenly(windows: Any, limit: int) -> Subset:
  count = min(limit, len(windows))
  return Subset(windows, np.linspace(0, len(windows) - 1, count).round().astype(np.int64))


def prepared(
  prepare: Callable[..., Any], params: Any, windows: Any, batch_size: int
) -> WithColumns:
  """Adds to batches what is computed once a window: tokens of the frozen tokenizer."""
  rows: dict[str, list[np.ndarray]] = {}
  for batch, valid_B in pipeline.epoch(windows, batch_size):
    for name, values in prepare(params, batch).items():
      rows.setdefault(name, []).append(np.asarray(values)[valid_B])
  return WithColumns(windows, {name: np.concatenate(parts) for name, parts in rows.items()})
