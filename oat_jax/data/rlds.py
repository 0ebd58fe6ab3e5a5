"""Reads an RLDS dataset: a TFDS directory of TFRecord or ArrayRecord shards, an episode a record.

Numbers become flat arrays, mapped from the index cache; images stay in the shards and are decoded
when a window asks for them. See RLDS (arXiv 2111.02767) and Open X-Embodiment (arXiv 2310.08864).

Axis letters: L all steps of all episodes concatenated, E episodes, A action dims, S state dims,
R distinct language embeddings, D numbers of each.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from oat_jax.data import directory as directory_lib
from oat_jax.data import fetch
from oat_jax.data import images
from oat_jax.data import index as index_lib
from oat_jax.data import normalization
from oat_jax.data import records
from oat_jax.data import standardize
from oat_jax.data import statistics

_PLAIN = standardize.plain()


class Episodes(NamedTuple):
  """All episodes of a split. Steps of episode e are starts_E[e] to starts_E[e + 1]."""

  actions_LA: np.ndarray  # float32, dataset units
  states_LS: np.ndarray  # float32, dataset units
  starts_E: np.ndarray  # int64 (E + 1,)
  tasks_L: np.ndarray  # int32, index into task_names
  task_names: tuple[str, ...]  # sorted, unique, each of them used
  action_names: tuple[str, ...] = ()  # A
  state_names: tuple[str, ...] = ()  # S
  cameras: Mapping[str, images.Camera] = {}
  standard: standardize.Standard = _PLAIN
  skipped: tuple[str, ...] = ()  # one reason for every episode left out
  fingerprint: str = ""  # equal for equal contents only
  cache: pathlib.Path | None = None  # the index's entry; statistics are kept there too
  language_RD: np.ndarray | None = None  # float32, where embeddings of instructions were wanted
  language_rows_L: np.ndarray | None = None  # int32, index into language_RD

  def __reduce__(self) -> Any:
    # A worker process maps the index anew, instead of getting a copy of it.
    if self.cache is None:
      return Episodes, tuple(self)
    sizes = {name: camera.size for name, camera in self.cameras.items()}
    return _reopen, (self.cache, self.standard, sizes)

  @property
  def num_episodes(self) -> int:
    return len(self.starts_E) - 1

  @property
  def tasks_E(self) -> np.ndarray:
    """The task of each episode's first step, int32 (E,)."""
    return self.tasks_L[self.starts_E[:-1]]

  def statistics(self, episode_ids: np.ndarray) -> dict[str, normalization.Statistics]:
    """Returns the exact statistics of "actions" (A,) and "state" (S,) of some episodes, cached."""
    return statistics.of_episodes(self, episode_ids)


def read(
  path: str | os.PathLike,
  split: str = "train",
  standard: standardize.Standard = _PLAIN,
  *,
  language: str = "",
  image_size: tuple[int, int] | None = None,
  on_error: str = "raise",
  cache: str | os.PathLike | None = None,
  fetch_gb: float = 100.0,
  progress: bool = True,
) -> Episodes:
  """Opens every episode of a split, in the order of the files.

  The first call indexes the split, later ones open the index. The features are cast to float32.

  Args:
    path: a TFDS directory or its parent; with a scheme (gs://...) it is copied to the cache first.
    split: a name in dataset_info.json, or a part in TFDS's notation, e.g. "train[:10%]".
    standard: which features to read and what they mean.
    language: a numeric feature that embeds the instruction, by its path below `steps/` or starting
      with `episode_metadata/`; none if "".
    image_size: height, width that every frame is resized to; as stored if None.
    on_error: "raise", or "skip": leaves out whole episodes that cannot be read, and lists them.
    cache: directory of the index cache; see `index.default_cache` if None.
    fetch_gb: the most to copy of a remote dataset, in 10**9 bytes.
    progress: whether to show progress bars of what takes longer than two seconds.

  Raises:
    FileNotFoundError: the directory or one of the split's shards is missing.
    ValueError: the split or a feature does not exist (the message lists those that do) or is not of
      the kind that is wanted; a record is corrupt, no tf.Example, has no steps, features that
      disagree in length, NaN, or an image that is none (the message names file, record, step and
      feature); a camera has frames of several sizes and no `image_size` is given.
    OSError: the cache cannot be used.
  """
  place = index_lib.default_cache() if cache in (None, "") else pathlib.Path(cache)
  if fetch.is_remote(path):
    path = fetch.fetch(os.fspath(path), split, place, fetch_gb, progress)
  directory = directory_lib.open_directory(path)
  index = index_lib.open_index(directory, split, standard, place, on_error, progress, language)
  sizes = {}
  for name, found in index.meta["sizes"].items():
    sizes[name] = image_size or _one_size(name, found, _records(index))
  return _episodes(index, standard, sizes)


def _reopen(
  entry: pathlib.Path, standard: standardize.Standard, sizes: Mapping[str, tuple[int, int]]
) -> Episodes:
  return _episodes(index_lib.reopen(entry), standard, sizes)


def _records(index: index_lib.Index) -> records.Records:
  files = tuple(records.File(*file) for file in index.meta["files"])
  return records.Records(files, index.meta["file_format"], index.arrays["places"])


def _episodes(
  index: index_lib.Index, standard: standardize.Standard, sizes: Mapping[str, tuple[int, int]]
) -> Episodes:
  meta, arrays, found = index.meta, index.arrays, _records(index)
  cameras = {
    name: images.Camera(feature, sizes[name], arrays[f"camera_{name}"], arrays["starts"], found)
    for name, feature in meta["cameras"].items()
  }
  widths = {name: arrays[name].shape[1] for name in ("actions", "states")}
  return Episodes(
    actions_LA=arrays["actions"],
    states_LS=arrays["states"],
    starts_E=arrays["starts"],
    tasks_L=arrays["tasks"],
    task_names=tuple(meta["task_names"]),
    action_names=_names(standard.action_names, widths["actions"], "action"),
    state_names=_names(standard.state_names, widths["states"], "state"),
    cameras=cameras,
    standard=standard,
    skipped=tuple(meta["skipped"]),
    fingerprint=meta["fingerprint"],
    cache=index.path,
    language_RD=arrays.get("language"),
    language_rows_L=arrays.get("language_rows"),
  )


def _names(names: tuple[str, ...], width: int, of: str) -> tuple[str, ...]:
  """Dimensions without names are numbered: equal positions mean equal things."""
  if not names:
    return tuple(f"{of}_{i}" for i in range(width))
  if len(names) != width:
    raise ValueError(f"the standard names {len(names)} {of} dimensions, but makes {width}")
  return names


def _one_size(camera: str, sizes: list[list[int]], found: records.Records) -> tuple[int, int]:
  if len(sizes) > 1:
    seen = "; ".join(f"{h}x{w} in {found.where(episode)}" for h, w, episode in sizes[:3])
    raise ValueError(
      f"camera '{camera}' has frames of {len(sizes)} sizes (height x width): {seen}; "
      "give image_size (config.data.image_size), to which all are resized"
    )
  return sizes[0][0], sizes[0][1]
