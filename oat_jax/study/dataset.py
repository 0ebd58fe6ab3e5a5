"""A split of any RLDS directory, read to be looked at.

Which features are actions, states, cameras and the language is read off features.json where nobody
says it.
"""

from collections.abc import Sequence
import math
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from oat_jax.data import directory as directory_lib
from oat_jax.data import fetch
from oat_jax.data import index as index_lib
from oat_jax.data import normalization
from oat_jax.data import rlds
from oat_jax.data import standardize
from oat_jax.data import statistics as statistics_lib

_WIDEST = 128  # values a step; wider observations are embeddings, depth maps and the like

# Whole paths below steps/, the first pattern that anything fits. `action` alone before its parts.
_ACTIONS = ("action", "action/.*", ".*action.*")
_STATES = ("observation/.*", ".*(state|proprio|qpos|joint|pose).*")
_TASKS = ("(.*/)?language_instruction", ".*instruction.*", ".*language.*", ".*task.*")


class Choice(NamedTuple):
  """Which features are read as what; paths below `steps/`."""

  standard: standardize.Standard
  actions: tuple[str, ...]
  states: tuple[str, ...]  # () where the dataset has none
  known: str = ""  # the standard that was asked for; without one, features are read as they are


class Dataset(NamedTuple):
  """A split of a dataset, read."""

  directory: directory_lib.Directory
  split: str
  choice: Choice
  episodes: rlds.Episodes
  statistics: dict[str, normalization.Statistics]  # "actions" and, where there are any, "state"
  names: dict[str, tuple[str, ...]]  # of the dimensions, by the same keys
  sizes: dict[str, list[tuple[int, int]]]  # by camera: height, width of its frames, all there are

  @property
  def title(self) -> str:
    return f"{self.directory.name} {self.directory.version}".strip()


def choose(
  directory: directory_lib.Directory,
  standard: str = "",
  actions: Sequence[str] = (),
  states: Sequence[str] = (),
  task: str = "",
) -> Choice:
  """Says which features to read: those asked for, the rest by the names that datasets use.

  Actions are `action`, else all numbers below `action/`, else all whose path has "action" in it;
  states are all numbers below `observation/` of at most 128 values a step; the language is the text
  called language_instruction, or one about an instruction, language or task; cameras are all images
  of 8 bits.

  Args:
    directory: the dataset.
    standard: a name of `standardize.STANDARDS`, which says all of it; of its cameras those are
      taken that the directory has, and all images if it has none of them.
    actions, states, task: paths as `standardize.plain` takes them.

  Raises:
    ValueError: no feature looks like an action, there is no such standard, or it is given together
      with features. Features that do not exist are found when they are read.
  """
  below = {
    name.removeprefix("steps/"): leaf
    for name, leaf in sorted(directory.features.items())
    if name.startswith("steps/")
  }
  cameras = [
    path
    for path, leaf in below.items()
    if leaf.kind == "image" and leaf.dtype == "uint8" and leaf.shape[-1:] in ((1,), (3,))
  ]
  every = tuple(zip(_leaf_names(cameras), cameras))
  if standard:
    if actions or states:
      raise ValueError(
        f"standard '{standard}' says which features are actions and states; give none"
      )
    known = standardize.get(standard)
    theirs = tuple((camera, path) for camera, path in known.cameras if path in cameras)
    known = known._replace(cameras=theirs or every, task=task or known.task)
    observed = tuple(path for path in known.features if path.startswith("observation/"))
    acted = tuple(path for path in known.features if path not in observed)
    return Choice(known, acted, observed, standard)

  numbers = [path for path, leaf in below.items() if leaf.kind == "numeric"]
  actions = tuple(actions) or _fitting(numbers, _ACTIONS)
  if not actions:
    raise ValueError(
      f"{directory.path / 'features.json'}: no numeric feature has 'action' in its path; choose "
      f"with --action among {', '.join(numbers) or 'none: it has no numeric features'}"
    )
  narrow = [
    path
    for path in numbers
    if path not in actions and width(below[path]) <= _WIDEST and "embedding" not in path
  ]
  states = tuple(states) or _fitting(narrow, _STATES)
  texts = [path for path, leaf in below.items() if leaf.kind == "text"]
  texts += [
    name
    for name, leaf in sorted(directory.features.items())
    if name.startswith("episode_metadata/") and leaf.kind == "text"
  ]
  task = task or next(iter(_fitting(texts, _TASKS)), "")
  # Every dataset is read with a state; where it has none the actions stand in, and are not shown.
  return Choice(standardize.plain(actions, states or actions, task, every), actions, states)


def _fitting(paths: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
  """Returns the paths that the first pattern fits that fits any."""
  found = (tuple(p for p in paths if re.fullmatch(pattern, p)) for pattern in patterns)
  return next(filter(None, found), ())


def _leaf_names(paths: Sequence[str]) -> list[str]:
  """The last parts of the paths, or the whole ones where two would be the same."""
  leaves = [path.rpartition("/")[2] for path in paths]
  return leaves if len(set(leaves)) == len(leaves) else [path.replace("/", "_") for path in paths]


def width(leaf: directory_lib.Feature) -> int:
  """Returns how many values a numeric feature has in a step."""
  return math.prod(size or 1 for size in leaf.shape)


def read(
  path: str | os.PathLike,
  split: str = "",
  standard: str = "",
  actions: Sequence[str] = (),
  states: Sequence[str] = (),
  task: str = "",
  on_error: str = "raise",
) -> Dataset:
  """Reads a split; see `rlds.read` for `path`, `on_error` and errors, `choose` for the others.

  Args:
    split: a name or a part, e.g. "train[:10%]"; the first that holds records if empty.
  """
  cache = index_lib.default_cache()
  if fetch.is_remote(path):
    if not split:
      raise ValueError(f"{path} must be copied first; say how much by --split, e.g. train[:1%]")
    path = fetch.fetch(os.fspath(path), split, cache, 100.0)
  directory = directory_lib.open_directory(path)
  split = split or next(filter(directory.num_records, directory.splits), "train")
  choice = choose(directory, standard, actions, states, task)
  index = index_lib.open_index(directory, split, choice.standard, cache, on_error)
  # The frames of a camera may have several sizes; nothing here needs them to have one.
  episodes = rlds.read(directory.path, split, choice.standard, image_size=(1, 1), on_error=on_error)
  statistics = episodes.statistics(np.arange(episodes.num_episodes))
  names = {"actions": episodes.action_names, "state": episodes.state_names}
  if not choice.known:
    for of, paths in (("actions", choice.actions), ("state", choice.states)):
      names[of] = _dimension_names(directory, paths)
  if not choice.states:
    del statistics["state"], names["state"]
  if choice.standard.unscaled:
    scaled = [name not in choice.standard.unscaled for name in names["actions"]]
    statistics["actions"] = statistics["actions"]._replace(mask=np.array(scaled))
  sizes = {
    camera: sorted((height, width) for height, width, _ in found)
    for camera, found in index.meta["sizes"].items()
  }
  return Dataset(directory, split, choice, episodes, statistics, names, sizes)


def _dimension_names(directory: directory_lib.Directory, paths: Sequence[str]) -> tuple[str, ...]:
  """Names dimensions that nobody named after their features: a mixture of them stays readable."""
  names = []
  for path, leaf in zip(paths, _leaf_names(paths)):
    size = width(directory.find(path, "numeric"))
    names += [leaf] if size == 1 and len(paths) > 1 else [f"{leaf}_{i}" for i in range(size)]
  return tuple(names)


def write_statistics(path: str | os.PathLike, dataset: Dataset, file_format: str) -> None:
  """Writes the statistics in a format of `statistics.FORMATS`, its directory made if missing."""
  try:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    statistics_lib.write(path, dataset.statistics, file_format, dataset.episodes.num_episodes)
  except OSError as error:
    raise OSError(f"{path} cannot be written ({error}); give another file") from error
