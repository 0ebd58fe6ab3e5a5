"""LeRobot datasets, v3.0 and v2.x, read with pyarrow and PyAV.

A frame of a video is the one at the episode's beginning + number of the frame / fps.
`observation.state` becomes observation/state, `observation.images.top` observation/image_top;
indices and timestamps stay behind, and what is listed as left out.
"""

from collections.abc import Iterator
import pathlib
import re
from typing import Any

import numpy as np
from tensorflow_datasets import features as tfds_features

from oat_jax.data import sources
from oat_jax.data import write
from oat_jax.data.sources import _lerobot_meta
from oat_jax.data.sources import _video

try:
  import pyarrow
  import pyarrow.compute
  import pyarrow.parquet
except ImportError as error:
  raise sources.missing("pyarrow") from error

_INDICES = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
_NUMERIC = re.compile(r"(float|u?int)(16|32|64)|u?int8|bool")
_BATCH = 256  # rows of a parquet file read at once


def open_source(path: pathlib.Path, options: sources.Options) -> sources.Source:
  """Opens the directory that holds `meta`; see `sources`."""
  dataset = _lerobot_meta.load(path)
  if not 0 < options.tolerance <= 0.5 / dataset.fps:
    raise ValueError(
      f"tolerance is {options.tolerance} s; at {dataset.fps} frames/s it must be above 0 and at"
      f" most {0.5 / dataset.fps:.4g} s, half the time between two frames"
    )
  action, names, left_out = _names(dataset)
  features, success = _features(dataset, action, names, options), "next.success" in dataset.features
  rows = _Rows(path)
  videos = {key: _video.Video(options.tolerance) for key in names if dataset.is_a(key, "video")}

  def read(key: sources.Key) -> dict[str, Any]:
    number = int(key.episode)
    episode = dataset.episodes[number]
    wanted = set(dataset.features) - set(videos)
    table = rows.read(episode.data, number, wanted)
    if len(table) != episode.length:
      raise ValueError(f"there are {len(table)} rows of it, but meta says {episode.length}")
    _check_frames(table)
    observation, streams = {}, {}
    for column, name in names.items():
      if column in videos:
        file, start = episode.videos[column]
        times_T = start + np.arange(episode.length) / dataset.fps
        streams[name] = videos[column].frames(path / file, times_T)
      elif dataset.is_a(column, "image"):
        image = features["steps"]["observation"][name]
        observation[name] = _images(path, column, table, image.encoding_format)
      else:
        observation[name] = _values(dataset, column, table)
    reward = _values(dataset, "next.reward", table) if "next.reward" in dataset.features else None
    done = success and bool(_values(dataset, "next.success", table).any())
    return sources.episode(
      observation,
      _values(dataset, action, table),
      language=options.language or _language(dataset, episode, table),
      reward_T=None if reward is None else reward[:, 0],
      success=done,
      streams=streams,
      metadata={"file": key.file, "episode": key.episode} | ({"success": done} if success else {}),
    )

  return sources.Source(
    name=path.resolve().name,
    description=f"{len(dataset.episodes)} episodes at {dataset.fps} frames/s, from LeRobot.",
    features=features,
    keys=[
      sources.Key(split, dataset.episodes[number].data, str(number))
      for split, numbers in dataset.splits.items()
      for number in numbers
    ],
    read=read,
    left_out=tuple(left_out),
  )


def _names(dataset: _lerobot_meta.Dataset) -> tuple[str, dict[str, str], list[str]]:
  """Returns the column of the actions, column -> name of the observations, and what is neither."""
  action = "action" if "action" in dataset.features else "actions"
  if action not in dataset.features:
    raise ValueError(
      f"{dataset.root}/meta/info.json: there is no feature 'action'; it has"
      f" {', '.join(dataset.features)}"
    )
  names: dict[str, str] = {}
  left_out = []
  for column, facts in dataset.features.items():
    if column in _INDICES or column in (action, "next.reward", "next.success"):
      continue
    depth = any("is_depth_map" in key and value for key, value in (facts.get("info") or {}).items())
    known = facts["dtype"] in ("image", "video") or _NUMERIC.fullmatch(facts["dtype"])
    if column.startswith(("next.", "action")) or not known or depth:
      left_out.append(f"{column}, {'a depth map' if depth else facts['dtype']}")
      continue
    name = column.removeprefix("observation.").replace("images.", "image_", 1).replace(".", "_")
    if name in names.values():
      raise ValueError(f"{dataset.root}/meta/info.json: two features would be named '{name}'")
    names[column] = name
  return action, names, left_out


def _features(
  dataset: _lerobot_meta.Dataset, action: str, names: dict[str, str], options: sources.Options
) -> Any:
  observation: dict[str, Any] = {}
  for column, name in names.items():
    shape = tuple(dataset.features[column]["shape"])
    if dataset.is_a(column, "video") or dataset.is_a(column, "image"):
      if len(shape) != 3:
        raise ValueError(f"{dataset.root}/meta/info.json: shape of '{column}' is {list(shape)}")
      if shape[0] in (1, 3) and shape[2] not in (1, 3):  # channels first
        shape = (*shape[1:], shape[0])
      stored = "jpeg" if dataset.is_a(column, "video") else _stored_format(dataset, column)
      encoding = options.image_format or stored
      observation[name] = tfds_features.Image(shape=shape, encoding_format=encoding)
    else:
      observation[name] = tfds_features.Tensor(shape=shape, dtype=np.float32)
  metadata: dict[str, Any] = dict(sources.ORIGIN)
  if "next.success" in dataset.features:
    metadata["success"] = np.bool_
  return write.rlds_features(observation, _width(dataset, action), metadata)


def _width(dataset: _lerobot_meta.Dataset, action: str) -> int:
  shape = dataset.features[action]["shape"]
  if len(shape) != 1:
    raise ValueError(
      f"{dataset.root}/meta/info.json: shape of '{action}' is {shape}; it must be (dims,)"
    )
  return shape[0]


def _stored_format(dataset: _lerobot_meta.Dataset, column: str) -> str:
  """Returns the format of the first image, JPEG where it is another one or cannot be read."""
  rows = _Rows(dataset.root)
  for number, episode in dataset.episodes.items():
    try:
      table = rows.read(episode.data, number, {column}, limit=1)
      return write.image_encoding(_image_bytes(dataset.root, table[column][0].as_py())) or "jpeg"
    except (ValueError, OSError, IndexError):
      continue  # `read` will say what is wrong with that episode
  return "jpeg"


def _image_bytes(root: pathlib.Path, cell: Any) -> bytes:
  """Returns what a cell, {"bytes", "path"}, holds or names."""
  if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
    raise ValueError("it holds neither bytes nor a path")
  if cell.get("bytes"):
    return cell["bytes"]
  try:
    return (root / cell["path"]).read_bytes()
  except OSError as error:
    raise ValueError(f"{error}") from error


def _images(root: pathlib.Path, column: str, table: Any, encoding: str) -> list[Any]:
  """Returns images in the encoding asked for as they are, others decoded."""
  images = []
  for t, cell in enumerate(table[column]):
    try:
      data = _image_bytes(root, cell.as_py())
    except ValueError as error:
      raise ValueError(f"'{column}' at step {t}: {error}") from error
    image = data if write.image_encoding(data) == encoding else write.decode_image(data)
    if image is None:
      raise ValueError(f"'{column}' at step {t}: {len(data)} bytes that are no image")
    images.append(image)
  return images


def _values(dataset: _lerobot_meta.Dataset, column: str, table: Any) -> np.ndarray:
  """Returns float32 (T, *shape) of a numeric column."""
  shape = tuple(dataset.features[column]["shape"])
  if column not in table.column_names:
    raise ValueError(f"there is no column '{column}'; there are {', '.join(table.column_names)}")
  values, size = table[column].combine_chunks(), int(np.prod(shape))
  nested = hasattr(getattr(values.type, "value_type", None), "value_type")
  widths, lists = list(shape) if nested else [size], 1  # lists of one step, level by level
  while hasattr(values.type, "value_type"):
    width = widths.pop(0) if widths else 1
    lengths = np.asarray(pyarrow.compute.list_value_length(values).fill_null(0))  # pyright: ignore
    wrong = np.flatnonzero(lengths != width)
    if len(wrong):  # whatever the total is: values would move to other steps
      raise ValueError(
        f"'{column}' holds a list of {lengths[wrong[0]]}, not {width}, at step"
        f" {wrong[0] // lists}; info.json says {list(shape)} a step"
      )
    values, lists = values.flatten(), lists * width
  flat = np.asarray(values.to_numpy(zero_copy_only=False), np.float32)
  if flat.size != len(table) * size:
    raise ValueError(
      f"'{column}' holds {flat.size} values in {len(table)} steps; info.json says {list(shape)} a"
      " step"
    )
  return flat.reshape(len(table), *shape)


def _check_frames(table: Any) -> None:
  """Frames are numbered from 0; one that is missing would shift all frames of the videos."""
  if "frame_index" in table.column_names:
    numbers = table["frame_index"].to_numpy()
    wrong = np.flatnonzero(numbers != np.arange(len(numbers)))
    if len(wrong):
      raise ValueError(f"'frame_index' is {numbers[wrong[0]]} at step {wrong[0]}")


def _language(
  dataset: _lerobot_meta.Dataset, episode: _lerobot_meta.Episode, table: Any
) -> str | list[str]:
  if "task_index" in table.column_names and dataset.tasks:
    indices = table["task_index"].to_pylist()
    unknown = [index for index in indices if index not in dataset.tasks]
    if unknown:
      raise ValueError(f"'task_index' is {unknown[0]}, which the tasks of meta do not have")
    return [dataset.tasks[index] for index in indices]
  return episode.tasks[0] if episode.tasks else ""


class _Rows:
  """Rows of parquet files, read forwards in small batches; the last file stays open."""

  def __init__(self, root: pathlib.Path):
    self._root = root
    self._file = ""
    self._batches: Iterator[Any] = iter(())
    self._rest: Any = None  # rows read, but not asked for
    self._last = -1

  def read(self, file: str, number: int, columns: set[str], limit: int | None = None) -> Any:
    """Returns the rows of an episode as a table; ValueError if the file is none or corrupt."""
    path = self._root / file
    try:
      if file != self._file or number <= self._last:
        parquet = pyarrow.parquet.ParquetFile(path)
        wanted = [c for c in parquet.schema_arrow.names if c in columns | {"episode_index"}]
        self._batches = parquet.iter_batches(limit or _BATCH, columns=wanted)
        self._file, self._rest = file, None
      self._last = number
      parts = []
      while not (limit and parts):
        batch = next(self._batches, None) if self._rest is None else self._rest
        if batch is None:
          break
        numbers = batch["episode_index"].to_numpy(zero_copy_only=False)
        start, stop = np.searchsorted(numbers, [number, number + 1])
        if stop > start:
          parts.append(batch.slice(start, stop - start))
        self._rest = batch.slice(stop) if stop < len(numbers) else None
        if self._rest is not None:
          break
      if not parts:
        raise ValueError("no row belongs to it")
      return pyarrow.Table.from_batches(parts)
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
      self._file = ""
      raise ValueError(f"{path}: {error}") from error
