"""What a dataset holds, on a page of text: splits, features, ranges, statistics, languages.

Axis letters: L all steps of all episodes concatenated, E episodes, A action dims, D any dims.
"""

from collections.abc import Iterable, Sequence
import math
import os
import textwrap

import numpy as np

from oat_jax.data import directory as directory_lib
from oat_jax.data import normalization
from oat_jax.study import dataset as dataset_lib

_COLUMNS = 100  # of the terminal
_MOST = 10  # languages, and reasons of skipped episodes
_MOST_DIMS = 48  # rows of a table of statistics
_NOTES = {
  "constant": "min..max is too narrow to be scaled",
  "binary": "is min or max, nothing between",
  "rare": "hardly ever changes: q01..q99 is too narrow to be scaled, min..max is not",
  "outliers": "min..max is more than 5 times as wide as q01..q99",
  "unscaled": "the standard lets normalisation leave it as it is",
}
_OUTLIERS = 5  # widths of q01..q99
_IDLE = 1e-3  # of q01..q99


def describe(dataset: dataset_lib.Dataset) -> str:
  """Returns the page, at most 100 columns wide."""
  sections = [_head(dataset), _splits(dataset), _features(dataset), _episodes(dataset)]
  for of, statistics in dataset.statistics.items():
    sections.append(_statistics(of, dataset, statistics))
  sections += [_languages(dataset), _skipped(dataset)]
  return "\n\n".join("\n".join(section) for section in sections if section)


def _head(dataset: dataset_lib.Dataset) -> list[str]:
  directory = dataset.directory
  files = {shard.path for name in directory.splits for shard in _shards(directory, name)}
  size = _bytes(sum(path.stat().st_size for path in files if path.is_file()))
  return [f"{dataset.title}: {directory.file_format}, {size} on disk", os.fspath(directory.path)]


def _shards(directory: directory_lib.Directory, split: str) -> list[directory_lib.Shard]:
  return directory.shards(split) if directory.num_records(split) else []


def _splits(dataset: dataset_lib.Dataset) -> list[str]:
  rows = []
  for name in dataset.directory.splits:
    shards = _shards(dataset.directory, name)
    here = [shard.path.stat().st_size for shard in shards if shard.path.is_file()]
    records = dataset.directory.num_records(name)
    missing = "" if len(here) == len(shards) else f"{len(shards) - len(here)} shards are not here"
    rows.append([name, f"{records:,}", str(len(shards)), _bytes(sum(here)), missing])
  return _table(["splits", "episodes", "shards", "size", ""], rows, "<>>><")


def _features(dataset: dataset_lib.Dataset) -> list[str]:
  choice, roles = dataset.choice, {}
  for role, paths in (("action", choice.actions), ("state", choice.states)):
    roles |= {f"steps/{path}": role for path in paths}
  for camera, path in choice.standard.cameras:
    roles[f"steps/{path}"] = "camera" if path.endswith(f"/{camera}") else f"camera {camera}"
  roles[_full(choice.standard.task)] = "language"
  values = _values(dataset)
  rows = []
  features = dataset.directory.features
  for name in sorted(features, key=lambda name: (not name.startswith("steps/"), name)):
    leaf = features[name]
    shape = str([size or "?" for size in leaf.shape]).replace("'", "")
    known = leaf.kind in ("numeric", "image", "text")
    what = values.get(name, "") if known else leaf.kind
    kind = [leaf.kind, "" if leaf.kind == "text" else shape, leaf.dtype]
    path = name.removeprefix("steps/")  # as the flags take it
    rows.append([path, *(kind if known else ["other", "", ""]), what, roles.get(name, "-")])
  lines = _table(["features", "kind", "shape", "dtype", "values", "read as"], rows, "<<<<<<")
  how = "Chosen by name; --action, --state, --task or --standard choose otherwise."
  if choice.known:
    how = f"Read by the standard '{choice.known}'."
  return [*lines, f"  {how}"]


def _values(dataset: dataset_lib.Dataset) -> dict[str, str]:
  """What was seen of each feature that was read, by its name."""
  choice, found = dataset.choice, {}
  for camera, path in choice.standard.cameras:
    sizes = [f"{height}x{width}" for height, width in dataset.sizes[camera]]
    more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
    found[f"steps/{path}"] = ", ".join(sizes[:3]) + more
  for of, paths in (("actions", choice.actions), ("state", choice.states)):
    column = 0
    for path in paths:
      if choice.known:
        found[f"steps/{path}"] = f"see {of}"
        continue
      end = column + dataset_lib.width(dataset.directory.find(path, "numeric"))
      low, high = (getattr(dataset.statistics[of], name)[column:end] for name in ("min", "max"))
      found[f"steps/{path}"] = f"{low.min():.4g} .. {high.max():.4g}"
      column = end
  found[_full(choice.standard.task)] = f"{len(dataset.episodes.task_names):,} distinct"
  return found


def _full(task: str) -> str:
  """The name of the feature that a standard calls `task`."""
  return task if task.startswith("episode_metadata/") else f"steps/{task}"


def _episodes(dataset: dataset_lib.Dataset) -> list[str]:
  lengths = np.diff(dataset.episodes.starts_E)
  low, median, high = lengths.min(), np.median(lengths), lengths.max()
  idle = "repeat the action before them"
  if dataset.choice.known:
    idle = "are idle: nothing is displaced, no target changes"
  return [
    f"{dataset.split}: {len(lengths):,} episodes, {lengths.sum():,} steps",
    f"  steps of an episode: min {low:,}, median {median:,.0f}, max {high:,}",
    f"  {100 * _idle(dataset):.1f} % of the steps {idle}, to 0.1 % of q01..q99",
  ]


def _idle(dataset: dataset_lib.Dataset) -> float:
  """Share of steps at which nothing moves: displacements are zero, targets stay as they were.

  Where no standard says which actions are displacements, all are taken for targets.
  """
  episodes, statistics = dataset.episodes, dataset.statistics["actions"]
  constant_D = _constant(statistics, "min_max")
  idle_L = np.ones(len(episodes.actions_LA), bool)
  for dim, name in enumerate(dataset.names["actions"]):
    if constant_D[dim]:
      continue
    x_L = np.array(episodes.actions_LA[:, dim])
    if not dataset.choice.known or name in dataset.choice.standard.absolute:
      x_L[1:] -= episodes.actions_LA[:-1, dim]
      x_L[episodes.starts_E[:-1]] = np.inf  # nothing was before an episode's first step
    idle_L &= np.abs(x_L) <= _IDLE * (statistics.q99[dim] - statistics.q01[dim])
  return float(idle_L.mean())


def _constant(statistics: normalization.Statistics, mode: str) -> np.ndarray:
  """Whether normalisation finds a dimension too narrow to scale it, bool (D,)."""
  low, high = mode.split("_")
  width = getattr(statistics, high) - getattr(statistics, low)
  every = statistics._asdict() | {"mask": np.ones(len(width), bool)}
  return ~np.isclose(width * normalization.affine(every, mode)[1], 2)  # the others become 2 wide


def _statistics(
  of: str, dataset: dataset_lib.Dataset, statistics: normalization.Statistics
) -> list[str]:
  values_LD = dataset.episodes.actions_LA if of == "actions" else dataset.episodes.states_LS
  constant, mostly = (_constant(statistics, mode) for mode in ("min_max", "q01_q99"))
  heads = ["min", "q01", "mean", "q99", "max", "std"]
  numbers, notes = [], []
  for dim in range(values_LD.shape[1]):
    at = {head: float(getattr(statistics, head)[dim]) for head in heads}
    x_L = values_LD[:, dim]
    binary = ((x_L == statistics.min[dim]) | (x_L == statistics.max[dim])).all()
    wide = at["max"] - at["min"] > _OUTLIERS * (at["q99"] - at["q01"])
    holds = {
      "constant": constant[dim],
      "binary": binary and not constant[dim],
      "rare": mostly[dim] and not constant[dim],
      "outliers": wide and not (binary or mostly[dim]),
      "unscaled": not statistics.mask[dim],
    }
    notes.append([note for note in _NOTES if holds[note]])
    numbers.append(_numbers(list(at.values())))
  rows = [
    [name, *row, ", ".join(found)]
    for name, row, found in zip(dataset.names[of], _align(numbers), notes)
  ]
  lines = _table([of, *heads, ""], rows[:_MOST_DIMS], "<>>>>>><")
  if len(rows) > _MOST_DIMS:
    lines.append(f"  and {len(rows) - _MOST_DIMS} more; --statistics=FILE writes all of them")
  seen = {note for found in notes for note in found}
  return lines + [f"  {note}: {text}" for note, text in _NOTES.items() if note in seen]


def _languages(dataset: dataset_lib.Dataset) -> list[str]:
  episodes, task = dataset.episodes, dataset.choice.standard.task
  if not task:
    return ["languages: there is no text that tells the task"]
  counts = np.bincount(episodes.tasks_E, minlength=len(episodes.task_names))
  order = sorted(range(len(counts)), key=lambda i: (-counts[i], episodes.task_names[i]))
  rows = [
    [f"{counts[i]:,}", " ".join(episodes.task_names[i].split()) or "(empty)"] for i in order[:_MOST]
  ]
  fixed = (np.repeat(episodes.tasks_E, np.diff(episodes.starts_E)) == episodes.tasks_L).all()
  within = "" if fixed else ", the first of each: they change within episodes"
  heads = ["languages", f"{len(counts):,} distinct in '{task}'; here by episodes{within}"]
  lines = _table(heads, rows, "><")
  return lines + [f"  and {len(counts) - _MOST:,} more"] * (len(counts) > _MOST)


def _skipped(dataset: dataset_lib.Dataset) -> list[str]:
  reasons = dataset.episodes.skipped
  if not reasons:
    return []
  lines = [f"skipped: {len(reasons):,} episodes that cannot be read"]
  for reason in reasons[:_MOST]:
    lines += textwrap.wrap(
      reason, _COLUMNS, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
  return lines + [f"  and {len(reasons) - _MOST:,} more"] * (len(reasons) > _MOST)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
  """Columns two blanks apart, "<" left and ">" right; a last one that is too wide is cut."""
  table = [heads, *([f"  {first}", *others] for first, *others in rows)]
  widths = [max(map(len, column)) for column in zip(*table)]
  lines = []
  for row in table:
    line = "  ".join(f"{cell:{side}{n}}" for cell, side, n in zip(row, align, widths)).rstrip()
    lines.append(line if len(line) <= _COLUMNS else f"{line[: _COLUMNS - 3]}...")
  return lines


def _numbers(values: Sequence[float]) -> list[str]:
  """Formats a row with one number of decimals, four significant digits of the largest."""
  largest = max(map(abs, values))
  if largest and not 1e-5 <= largest < 1e7:
    return [f"{value:.2e}" for value in values]
  decimals = min(max(3 - math.floor(math.log10(largest)), 0), 8) if largest else 0
  return [f"{value:.{decimals}f}" for value in values]


def _align(rows: list[list[str]]) -> list[list[str]]:
  """Fills up numbers with blanks, so that right-aligned their decimal points stand in a column."""
  behind = lambda text: len(text) - text.index(".") if "." in text and "e" not in text else 0
  most = max(behind(text) for row in rows for text in row)
  return [
    [text if "e" in text else text + " " * (most - behind(text)) for text in row] for row in rows
  ]


def _bytes(count: float) -> str:
  """Formats a size in units of 1000 bytes."""
  for unit in ("B", "kB", "MB", "GB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1000
  return f"{count:,.3g} TB"
