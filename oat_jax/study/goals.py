"""Goals are episode seeds: those reported, those that choose, and those that were demonstrated."""

from collections.abc import Sequence
import json
import pathlib


def check_apart(ranges: Sequence[tuple[str, int, int]]) -> None:
  """Raises ValueError where two of these (name, first seed, end) share a seed."""
  ordered = sorted(ranges, key=lambda each: each[1:])
  for (one, begin, end), (other, first, last) in zip(ordered, ordered[1:]):
    if first < end:
      raise ValueError(
        f"{other} goals of seeds {first}..{last - 1} overlap with {one} goals of seeds "
        f"{begin}..{end - 1}; choose seeds further apart"
      )


def check_new(data_path: str, suite_name: str, seeds: Sequence[int], episodes: int) -> bool:
  """Raises ValueError where goals were demonstrated; False where the dataset does not tell.

  Datasets that launch/collect.py wrote tell, as long as they lie where the run was trained on them.

  Args:
    data_path: of the demonstrations.
    suite_name: of the goals.
    seeds: first seeds of `episodes` goals each.
    episodes: goals per task and first seed.
  """
  path = pathlib.Path(data_path) / "collection.json"
  if not path.exists():
    return False
  collection = json.loads(path.read_text())
  if collection["request"]["suite"] != suite_name:
    return True
  begin = collection["request"]["seed"]
  end = begin + max(total["attempts"] for total in collection["totals"].values())
  for first in seeds:
    if first < end and begin < first + episodes:
      raise ValueError(
        f"goals of seeds {first}..{first + episodes - 1} were demonstrated in {data_path} "
        f"(seeds {begin}..{end - 1}); pass other seeds"
      )
  return True
