"""What a run trains on: windows of its dataset, cut into training and held-out episodes."""

from collections.abc import Iterable
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from oat_jax.data import mixture
from oat_jax.data import normalization
from oat_jax.data import rlds
from oat_jax.data import split as split_lib
from oat_jax.data import standardize
from oat_jax.data import statistics as statistics_lib
from oat_jax.data import windows as windows_lib
from oat_jax.perception import text
from oat_jax.train import config as config_lib


class Split(NamedTuple):
  """The windows of a run, and the statistics of all episodes that are not held out."""

  train: mixture.Mixture
  validation: mixture.Mixture
  weights: tuple[float, ...] | None  # shares of the datasets in the stream; None by their windows
  statistics: dict[str, dict[str, np.ndarray]]
  fingerprint: str
  skipped: dict[str, tuple[str, ...]]  # dataset -> why each episode was left out
  language_NE: np.ndarray | None = None  # float32, an embedding of each of the spec's N tasks


def load(data: config_lib.Data, images: bool = True) -> Split:
  """Reads the datasets; splits their episodes, stratified by task, into training and validation.

  Args:
    data: which datasets, and how windows are cut from them.
    images: whether there are frames and language; a tokenizer has no use for them.
  """
  if data.validation_fraction == 0:
    raise ValueError("config.data.validation_fraction is 0; training needs held-out episodes")
  datasets = data.datasets()
  episodes = {name: _read(data, dataset, name, images) for name, dataset in datasets.items()}
  layout = windows_lib.layout(
    list(episodes.values()), data.actions, data.states, data.action_dim, list(datasets)
  )
  language_NE = None
  if layout.language_dim:
    language_NE = _of_tasks(episodes.values(), layout.task_names)
  elif images and data.text_encoder:
    if not any(layout.task_names):
      raise ValueError(
        "config.data.text_encoder is set, but no task has a text; set config.data.task"
      )
    language_NE = text.embed(data.text_encoder, layout.task_names)
    layout = layout._replace(language_dim=language_NE.shape[1])
  train, validation, rows = [], [], []
  for i, (name, dataset) in enumerate(datasets.items()):
    options = windows_lib.Options(
      dataset.stride,
      dataset.execute_horizon,
      dataset.idle_below,
      dataset.absolute or episodes[name].standard.absolute,
    )
    tasks_E = episodes[name].tasks_E
    parts = split_lib.episodes(tasks_E, data.validation_fraction, data.split_seed)
    sizes = (data.observation_steps, data.action_horizon)
    if data.train_fraction < 1:
      parts = (*parts, split_lib.part(tasks_E, parts[0], data.train_fraction, data.split_seed))
    windows = [
      windows_lib.Windows(episodes[name], ids_E, *sizes, layout, i, options) for ids_E in parts
    ]
    rows.append(_statistics(dataset, windows[0], layout))
    validation.append(windows[1])
    train.append(windows[-1] if data.train_fraction < 1 else windows[0])
  weights = tuple(dataset.weight for dataset in datasets.values() if dataset.weight is not None)
  fingerprints = [each.fingerprint for each in episodes.values()]
  of_all = hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()[:16]
  return Split(
    mixture.Mixture(train),
    mixture.Mixture(validation),
    weights or None,
    {group: normalization.stack([row[group] for row in rows]) for group in rows[0]},
    of_all if len(fingerprints) > 1 else fingerprints[0],
    {name: each.skipped for name, each in episodes.items() if each.skipped},
    language_NE,
  )


def _read(
  data: config_lib.Data, dataset: config_lib.Dataset, name: str, images: bool
) -> rlds.Episodes:
  where = f"config.data.mixture.{name}" if name else "config.data"
  if not dataset.path:
    raise ValueError(f"{where}.path is empty; pass --{where}.path=DIR, an RLDS dataset")
  episodes = rlds.read(
    dataset.path,
    dataset.split,
    _standard(dataset, images),
    language=dataset.language if images else "",
    image_size=(data.image_size[0], data.image_size[1]) if data.image_size else None,
    on_error=dataset.on_error,
    cache=data.cache,
    fetch_gb=data.fetch_gb,
  )
  if episodes.skipped:
    count = len(episodes.skipped)
    print(
      f"{dataset.path}: left out {count} of {count + episodes.num_episodes} episodes; the first: "
      f"{episodes.skipped[0]}",
      flush=True,
    )
  return episodes


def _standard(dataset: config_lib.Dataset, images: bool) -> standardize.Standard:
  """Returns what to read of a dataset; of its cameras those that are asked for."""
  standard, known = None, {}
  if dataset.standard:
    standard = standardize.get(dataset.standard)
    known = dict(standard.cameras)
  cameras = []
  for name, given, feature in (camera.partition("=") for camera in dataset.cameras if images):
    if not given and name not in known:
      raise ValueError(
        f"config.data.cameras holds '{name}'; '{dataset.standard}' has {', '.join(known)}"
      )
    cameras.append((name, feature if given else known[name]))
  if standard is None:
    return standardize.plain(dataset.action, dataset.state, dataset.task, cameras)
  return standard._replace(cameras=tuple(cameras))


def _of_tasks(datasets: Iterable[rlds.Episodes], task_names: tuple[str, ...]) -> np.ndarray:
  """Returns float32 (tasks, E): the mean of the different embeddings that a task's steps have."""
  found: dict[str, list[np.ndarray]] = {name: [] for name in task_names}
  for each in datasets:
    assert each.language_RD is not None and each.language_rows_L is not None
    both_L2 = np.stack([each.tasks_L, each.language_rows_L], 1)
    changed = np.flatnonzero((both_L2[1:] != both_L2[:-1]).any(1)) + 1
    for task, row in np.unique(both_L2[np.append(0, changed)], axis=0):
      found[each.task_names[task]].append(each.language_RD[row])
  return np.stack([np.mean(rows, 0) for rows in found.values()])


def _statistics(
  dataset: config_lib.Dataset, windows: windows_lib.Windows, layout: windows_lib.Layout
) -> dict[str, normalization.Statistics]:
  own = windows.own_statistics()
  if not dataset.statistics:
    found = windows.statistics(own)
  else:
    try:
      found = windows.statistics(statistics_lib.read(dataset.statistics, own))
    except ValueError as error:
      where = "" if dataset.statistics in str(error) else f"{dataset.statistics}: "
      raise ValueError(f"{where}{error}") from error
  unknown = [name for name in dataset.unscaled if name not in layout.action_names]
  if unknown:
    raise ValueError(
      f"config.data.unscaled holds '{unknown[0]}'; the actions are {', '.join(layout.action_names)}"
    )
  mask = found["actions"].mask & ~np.isin(layout.action_names, dataset.unscaled)
  return found | {"actions": found["actions"]._replace(mask=mask)}


class Subset(NamedTuple):
  """At most so many of the windows, evenly spaced."""

  windows: Any
  indices: np.ndarray

  def __len__(self):
    return len(self.indices)

  def __call__(self, indices_B):
    return self.windows(self.indices[indices_B])

  def without_images(self) -> "Subset":
    return Subset(self.windows.without_images(), self.indices)

  def digest(self) -> str:
    return f"{self.windows.digest()}-{hashlib.sha256(self.indices.tobytes()).hexdigest()[:16]}"


def evenly(windows: Any, limit: int) -> Subset:
  count = min(limit, len(windows))
  return Subset(windows, np.linspace(0, len(windows) - 1, count).round().astype(np.int64))
