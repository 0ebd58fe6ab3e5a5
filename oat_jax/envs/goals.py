"""Goals are episode seeds: those reported, those that choose, and those that were demonstrated."""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import Any


def check_apart(ranges: Sequence[tuple[str, int, int]]) -> None:
  """Raises ValueError where two of these (name, first seed, end) share a seed."""
  ordered = sorted(ranges, key=lambda each: each[1:])
  for (one, begin, end), (other, first, last) in zip(ordered, ordered[1:]):
    if first < end:
      raise ValueError(
        f"{other} goals of seeds {first}..{last - 1} overlap with {one} goals of seeds "
        f"{begin}..{end - 1}; choose seeds further apart"
      )


def demonstrated(data_path: str | os.PathLike) -> dict[str, Any] | None:
  """Returns {"suite", "begin", "end"}: the seeds whose goals a dataset's experts have shown.

  None where the dataset does not tell. Those that launch/collect.py wrote do.
  """
  path = pathlib.Path(data_path) / "collection.json"
  if not os.fspath(data_path) or not path.exists():
    return None
  collection = json.loads(path.read_text())
  begin = collection["request"]["seed"]
  end = begin + max(total["attempts"] for total in collection["totals"].values())
  return {"suite": collection["request"]["suite"], "begin": begin, "end": end}


def check_new(
  shown: Mapping[str, Any] | None, suite_name: str, seeds: Sequence[int], episodes: int
) -> bool:
  """Raises ValueError where goals were demonstrated; False where nobody knows.

  Args:
    shown: what `demonstrated` says of the training data.
    suite_name: of the goals.
    seeds: first seeds of `episodes` goals each.
    episodes: goals per task and first seed.
  """
  if shown is None:
    return False
  begin, end = shown["begin"], shown["end"]
  simulator = lambda name: name.partition("/")[0]  # whose suites share tasks, and so goals
  for first in seeds if simulator(shown["suite"]) == simulator(suite_name) else ():
    if first < end and begin < first + episodes:
      raise ValueError(
        f"goals of seeds {first}..{first + episodes - 1} were demonstrated in the training data "
        f"(seeds {begin}..{end - 1}); pass other seeds"
      )
  return True
