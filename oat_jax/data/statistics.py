"""Statistics of episodes, kept beside their index, and the files that other frameworks use.

openpi writes `norm_stats.json`: {"norm_stats": {"state": {...}, "actions": {...}}} with mean, std,
q01 and q99. Octo writes `dataset_statistics.json`: {"action": {...}, "proprio": {...},
"num_transitions", "num_trajectories"} with mean, std, max, min, p99, p01 and, for actions, mask.
"""

from collections.abc import Mapping
import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any
import uuid

import numpy as np

from oat_jax.data import normalization

FORMATS = ("openpi", "octo")
_OCTO = {"p01": "q01", "p99": "q99"}  # its names of ours
_OCTO_GROUPS = {"actions": "action", "state": "proprio"}


def of_episodes(episodes: Any, episode_ids: np.ndarray) -> dict[str, normalization.Statistics]:
  """Returns the exact statistics of "actions" and "state" over all steps of the chosen episodes.

  Args:
    episodes: `rlds.Episodes`; where they come from the index cache, results are kept there.
    episode_ids: int, which of them: those of the training split.
  """
  chosen_E = np.zeros(episodes.num_episodes, bool)
  chosen_E[episode_ids] = True
  kept = None
  if episodes.cache is not None:
    kept = episodes.cache / f"statistics-{hashlib.sha256(chosen_E.tobytes()).hexdigest()[:16]}.json"
    # None yet, or cut off: made again.
    with contextlib.suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
      content = json.loads(kept.read_text())
      return {name: normalization.from_json(values) for name, values in content.items()}
  every = chosen_E.all()
  chosen_L = None if every else np.repeat(chosen_E, np.diff(episodes.starts_E))
  arrays = {"actions": episodes.actions_LA, "state": episodes.states_LS}
  found = {name: normalization.compute(values, chosen_L) for name, values in arrays.items()}
  if kept is not None:
    with contextlib.suppress(OSError):  # of a cache that others filled, perhaps
      write_whole(kept, {name: normalization.to_json(values) for name, values in found.items()})
  return found


def write_whole(path: pathlib.Path, content: Any) -> None:
  """Writes JSON under another name, then renames: readers see all of it or nothing."""
  partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
  try:
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def write(
  path: str | os.PathLike,
  statistics: Mapping[str, normalization.Statistics],
  file_format: str,
  num_episodes: int = 0,
) -> None:
  """Writes "actions" and "state" as another framework's file.

  Args:
    path: the file, replaced if there is one.
    statistics: of one dataset.
    file_format: "openpi" or "octo".
    num_episodes: Octo's num_trajectories.

  Raises:
    ValueError: there is no such format.
  """
  if file_format not in FORMATS:
    raise ValueError(f"statistics format is '{file_format}'; it must be one of {FORMATS}")
  as_lists = {name: normalization.to_json(values) for name, values in statistics.items()}
  content: dict[str, Any]
  if file_format == "openpi":
    names = ("mean", "std", "q01", "q99")
    content = {"norm_stats": {group: {n: v[n] for n in names} for group, v in as_lists.items()}}
  else:
    names = {"mean": "mean", "std": "std", "max": "max", "min": "min", "q99": "p99", "q01": "p01"}
    content = {
      _OCTO_GROUPS[group]: {theirs: v[ours] for ours, theirs in names.items()}
      for group, v in as_lists.items()
    }
    content["action"]["mask"] = as_lists["actions"]["mask"]
    content["num_transitions"] = as_lists["actions"]["count"]
    content["num_trajectories"] = num_episodes
  write_whole(pathlib.Path(path), content)


def read(
  path: str | os.PathLike, extremes: Mapping[str, normalization.Statistics] | None = None
) -> dict[str, normalization.Statistics]:
  """Reads "actions" and "state" from openpi's or Octo's file, or from one of the index cache.

  openpi keeps no count: it is 0. A file of several datasets (OpenVLA's) is refused.

  Args:
    path: the file.
    extremes: statistics of the data at hand, whose minimum and maximum are taken where the file is
      openpi's, which keeps none: decoded actions are clipped to them. q01 and q99 if None.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is none of these files; the message says what is missing.
  """
  path = pathlib.Path(path)
  try:
    content = json.loads(path.read_text())
    if "norm_stats" in content:
      found = {}
      for group in ("actions", "state"):
        values = content["norm_stats"].get(group)
        if values is not None:
          ends = {"min": values["q01"], "max": values["q99"]}
          if extremes is not None:
            ends = {name: getattr(extremes[group], name) for name in ends}
          found[group] = _statistics(values | ends, 0)
      return found
    if "action" in content:
      count = int(content.get("num_transitions", 0))
      return {
        ours: _statistics({_OCTO.get(n) or n: v for n, v in content[theirs].items()}, count)
        for ours, theirs in _OCTO_GROUPS.items()
        if theirs in content
      }
    return {name: normalization.from_json(content[name]) for name in ("actions", "state")}
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path}: neither openpi's norm_stats.json nor Octo's dataset_statistics.json: {error!r}"
    ) from error


def _statistics(values: Mapping[str, Any], count: int) -> normalization.Statistics:
  names = ("min", "max", "mean", "std", "q01", "q99")
  content = {name: values[name] for name in names}
  content |= {"mask": values.get("mask", [True] * len(values["mean"])), "count": count}
  return normalization.from_json(content)
