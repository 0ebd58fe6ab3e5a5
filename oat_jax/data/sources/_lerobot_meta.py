"""What `meta/` of a LeRobot dataset says: its features, tasks, splits, and where its episodes lie.

In v3.0 many episodes share a parquet file and a video, and `meta/episodes/` says which and from
what second on; in v2.x every episode has files of its own, named by a pattern of info.json.
"""

from collections.abc import Iterator
import json
import pathlib
import re
from typing import Any, NamedTuple

from oat_jax.data import sources

try:
  import pyarrow
  import pyarrow.parquet
except ImportError as error:
  raise sources.missing("pyarrow") from error

_V3_PATHS = {
  "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
  "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
_V2_PATHS = {
  "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
  "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}


class Episode(NamedTuple):
  """Where an episode lies; paths are relative to the dataset."""

  length: int
  tasks: list[str]
  data: str
  videos: dict[str, tuple[str, float]]  # feature -> file, seconds at which the episode begins


class Dataset(NamedTuple):
  """A dataset, its frames not yet read."""

  root: pathlib.Path
  fps: float
  features: dict[str, dict[str, Any]]  # of info.json: dtype, shape, names, info
  episodes: dict[int, Episode]
  tasks: dict[int, str]
  splits: dict[str, list[int]]

  def is_a(self, feature: str, dtype: str) -> bool:
    return self.features[feature]["dtype"] == dtype


def load(root: pathlib.Path) -> Dataset:
  """Reads `meta/`.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is not what it should be, or the version is another one.
  """
  path = root / "meta" / "info.json"
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file; give a LeRobot dataset, which holds meta/")
  try:
    info = json.loads(path.read_text("utf-8"))
    version, fps, features = str(info["codebase_version"]), float(info["fps"]), info["features"]
    videos = [name for name, facts in features.items() if facts["dtype"] == "video"]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path}: not the info.json of a LeRobot dataset: {error!r}") from error
  major = re.match(r"v?(\d+)", version)
  if major is None or major[1] not in ("2", "3"):
    raise ValueError(
      f"{path}: codebase_version is '{version}'; v2.0, v2.1 and v3.0 are read. Older ones are"
      " raised by lerobot's own scripts, convert_dataset_v1_to_v2 and convert_dataset_v20_to_v21"
    )
  if not fps > 0:
    raise ValueError(f"{path}: fps is {fps}; it must be positive")
  read = _read_v3 if major[1] == "3" else _read_v2
  try:
    episodes, tasks = read(root, info, videos)
  except (KeyError, TypeError) as error:
    raise ValueError(f"{root / 'meta'}: episodes or tasks lack {error}") from error
  if not episodes:
    raise ValueError(f"{root / 'meta'}: there are no episodes")
  episodes = dict(sorted(episodes.items()))
  return Dataset(root, fps, features, episodes, tasks, _splits(path, info, list(episodes)))


def _read_v3(
  root: pathlib.Path, info: dict[str, Any], videos: list[str]
) -> tuple[dict[int, Episode], dict[int, str]]:
  episodes = {}
  paths = {key: info.get(key) or default for key, default in _V3_PATHS.items()}
  files = sorted(root.glob("meta/episodes/*/*.parquet"))
  if not files:
    raise FileNotFoundError(f"{root}/meta/episodes: there is no chunk-000/file-000.parquet")
  for file in files:
    for row in _rows(file):

      def place(pattern: str, prefix: str, row: dict[str, Any] = row, **key: str) -> str:
        chunk, number = row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"]
        return pattern.format(chunk_index=chunk, file_index=number, **key)

      episodes[row["episode_index"]] = Episode(
        length=row["length"],
        tasks=list(row.get("tasks") or []),
        data=place(paths["data_path"], "data"),
        videos={
          key: (
            place(paths["video_path"], f"videos/{key}", video_key=key),
            row[f"videos/{key}/from_timestamp"],
          )
          for key in videos
        },
      )
  file = root / "meta" / "tasks.parquet"
  if not file.is_file():
    return episodes, {}
  rows = list(_rows(file))
  # pandas stores the index, the task, under its name or under one of its own.
  name = next((name for name in (rows[0] if rows else ()) if name != "task_index"), "task")
  return episodes, {row["task_index"]: row[name] for row in rows}


def _read_v2(
  root: pathlib.Path, info: dict[str, Any], videos: list[str]
) -> tuple[dict[int, Episode], dict[int, str]]:
  episodes = {}
  paths = {key: info.get(key) or default for key, default in _V2_PATHS.items()}
  for row in _lines(root / "meta" / "episodes.jsonl"):
    number = row["episode_index"]
    where = {"episode_index": number, "episode_chunk": number // info.get("chunks_size", 1000)}
    episodes[number] = Episode(
      length=row["length"],
      tasks=list(row.get("tasks") or []),
      data=paths["data_path"].format(**where),
      videos={key: (paths["video_path"].format(video_key=key, **where), 0.0) for key in videos},
    )
  tasks = {row["task_index"]: row["task"] for row in _lines(root / "meta" / "tasks.jsonl")}
  return episodes, tasks


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the rows of a parquet file without the statistics of episodes, which are wide."""
  try:
    file = pyarrow.parquet.ParquetFile(path)
    names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
    for batch in file.iter_batches(1000, columns=names):
      yield from batch.to_pylist()
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(f"{path}: not a parquet file, or truncated ({error})") from error


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file")
  try:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
  except ValueError as error:
    raise ValueError(f"{path}: not a file of JSON lines: {error}") from error


def _splits(path: pathlib.Path, info: dict[str, Any], numbers: list[int]) -> dict[str, list[int]]:
  """Returns split -> episodes; info.json has ranges such as {"train": "0:50"}."""
  ranges = info.get("splits") or {"train": f"0:{max(numbers) + 1}"}
  splits: dict[str, list[int]] = {}
  for split, text in ranges.items():
    match = re.fullmatch(r"(\d+):(\d+)", str(text))
    if not match or not re.fullmatch("[a-z][a-z0-9_]*", split):
      raise ValueError(f"{path}: split '{split}' is '{text}'; it must be a range such as 0:50")
    splits[split] = [n for n in numbers if int(match[1]) <= n < int(match[2])]
  held = sorted(number for split in splits.values() for number in split)
  if held != numbers:
    wrong = min({n for n in numbers if held.count(n) != 1})
    raise ValueError(
      f"{path}: splits {ranges} hold episode {wrong} {held.count(wrong)} times; it must be once"
    )
  return splits
