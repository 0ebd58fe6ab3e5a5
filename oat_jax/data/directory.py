"""What a TFDS directory says of itself: its features, its splits and the shards that hold them.

Metadata is read as plain JSON: the two files are small and stable. Only the arithmetic of
sub-splits (`train[:10%]`) is tensorflow_datasets', imported where one is asked for.
"""

from collections.abc import Iterable
import itertools
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import ml_dtypes  # lets numpy know "bfloat16"
import numpy as np

FORMATS = ("tfrecord", "array_record")
_FILES = ("features.json", "dataset_info.json")
_MANY = 10_000_000  # episodes in one shard: whatever says more is damaged
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # where dataset_info.json has none


class Feature(NamedTuple):
  """A leaf of features.json, named as the records name it, e.g. `steps/observation/state`."""

  name: str
  kind: str  # "numeric", "text", "image", or why it is none of them
  shape: tuple[int | None, ...] = ()  # of one step
  dtype: str = ""
  # Of a numeric feature that is not stored as its flat values: "bytes" and "zlib" are a string a
  # step; "ragged" are values beside the lengths of all steps, as TFDS stores nested sequences.
  encoding: str = ""


class Shard(NamedTuple):
  """A shard, and which of its records belong to a split: `take` of them, from `skip` on."""

  path: pathlib.Path
  length: int
  skip: int
  take: int


class Directory(NamedTuple):
  """A TFDS directory on a local disk."""

  path: pathlib.Path
  name: str
  version: str
  file_format: str  # one of FORMATS
  features: dict[str, Feature]
  splits: dict[str, dict[str, Any]]  # entries of dataset_info.json

  def num_records(self, split: str) -> int:
    return sum(length for _, length in self._files(split))

  def find(self, name: str, kind: str) -> Feature:
    """Returns a feature by name and kind; ValueError, listing those of its kind, if it is not."""
    below = "" if name.startswith("episode_metadata/") else "steps/"
    found = self.features.get(below + name)
    if found is None or found.kind != kind:
      problem = f"there is no feature '{below}{name}'"
      if found is not None:
        problem = f"'{below}{name}' is {found.kind}"
      known = [f.name for f in self.features.values() if f.kind == kind]
      if kind != "text" and below:
        known = [known_name for known_name in known if known_name.startswith("steps/")]
      known = ", ".join(sorted(known_name.removeprefix("steps/") for known_name in known))
      raise ValueError(
        f"{self.path / _FILES[0]}: {problem}; expected one of the {kind} features: "
        f"{known or 'it has none'}"
      )
    return found

  def shards(self, split: str) -> list[Shard]:
    """Returns the shards of a split or of a part of it, in order, empty ones left out.

    Args:
      split: a name, or TFDS's notation: "train[:10%]", "train[100:200]", "train+val".

    Raises:
      ValueError: there is no such split, it holds no records, or its parts overlap.
    """
    info = self.path / _FILES[1]
    whole = {name: self._files(name) for name in self.splits}
    if split in whole:
      shards = [Shard(path, length, 0, length) for path, length in whole[split]]
    else:
      shards = self._part(split, whole)
    for path, length in (file for name in whole if name in split for file in whole[name]):
      if not length and self.file_format == "tfrecord" and path.is_file() and path.stat().st_size:
        raise ValueError(f"{info}: shardLengths say that {path} is empty, which it is not")
    shards = [shard for shard in shards if shard.take]
    if not shards:
      raise ValueError(f"{info}: split '{split}' holds no records")
    return shards

  def _files(self, split: str) -> list[tuple[pathlib.Path, int]]:
    """Returns path and number of records of every file of a whole split."""
    entry, info = self.splits[split], self.path / _FILES[1]
    lengths = entry.get("shardLengths", [])
    try:
      # Strings, as JSON has no 64 bit integers.
      if type(lengths) is not list or not all(0 <= int(str(n)) < _MANY for n in lengths):
        raise ValueError(f"found {str(lengths)[:80]}")
      lengths = [int(length) for length in lengths]
    except (ArithmeticError, TypeError, ValueError) as error:
      raise ValueError(
        f"{info}: shardLengths of split '{split}' must be a list of whole numbers below {_MANY}: "
        f"{error}"
      ) from error
    template = entry.get("filepathTemplate") or _TEMPLATE
    files = []
    for i, length in enumerate(lengths):
      values = {
        "DATASET": self.name,
        "SPLIT": split,
        "FILEFORMAT": self.file_format,
        "SHARD_INDEX": f"{i:05d}",
        "NUM_SHARDS": f"{len(lengths):05d}",
        "SHARD_X_OF_Y": f"{i:05d}-of-{len(lengths):05d}",
      }
      try:
        name = pathlib.PurePosixPath(template.format_map(values))
        if name.is_absolute() or not all(map(_names, name.parts)):
          raise ValueError("no name of a file below the directory")
        files.append((self.path / name, length))
      except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
          f"{info}: filepathTemplate {template!r} may use {', '.join(values)} only, and lead "
          "nowhere else"
        ) from error
    return files

  def _part(self, split: str, whole: dict[str, list[tuple[pathlib.Path, int]]]) -> list[Shard]:
    problem = f"{self.path / _FILES[1]}: there is no split '{split}'; it has {', '.join(whole)}"
    if not re.search(r"[\[+]", split):
      raise ValueError(problem)
    from tensorflow_datasets.core import splits as tfds_splits

    infos = {
      name: tfds_splits.SplitInfo(name, [length for _, length in files], num_bytes=0)
      for name, files in whole.items()
    }
    try:
      parts = tfds_splits.AbstractSplit.from_spec(split).to_absolute(infos)
    except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
      raise ValueError(f"{problem}, and parts of them such as 'train[:10%]' ({error})") from error
    shards = []
    for part in parts:
      # TFDS's own instructions for files say -1 both for "the rest" and of [4:3].
      first = part.from_ or 0
      end = infos[part.splitname].num_examples if part.to is None else part.to
      for path, length in whole[part.splitname]:
        skip, stop = max(first, 0), min(end, length)
        if skip < stop:
          shards.append(Shard(path, length, skip, stop - skip))
        first, end = first - length, end - length
    for one, other in itertools.pairwise(sorted(shards)):
      if one.path == other.path and other.skip < one.skip + one.take:
        raise ValueError(
          f"{self.path / _FILES[1]}: the parts of split '{split}' overlap: record {other.skip} of "
          f"{other.path} would be read twice"
        )
    return shards


def open_directory(path: str | os.PathLike) -> Directory:
  """Reads the metadata of `path`, a TFDS directory or the parent of its versions.

  Args:
    path: on a local disk; a parent means its newest version (`1.0.0`).

  Raises:
    FileNotFoundError: there is no such directory.
    ValueError: it is not a TFDS directory, its metadata are not TFDS's, or its files are neither
      TFRecord nor ArrayRecord files.
  """
  found = _find(pathlib.Path(path))
  info = _json(found / _FILES[1])
  try:
    name, splits = info["name"], {entry["name"]: entry for entry in info["splits"]}
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"{found / _FILES[1]}: not the dataset_info.json of TFDS: {error!r}"
    ) from error
  version, file_format = info.get("version", ""), info.get("fileFormat", "tfrecord")
  # They become parts of paths.
  for value in (name, version, *splits):
    if type(value) is not str or "/" in value or not _names(value):
      raise ValueError(f"{found / _FILES[1]}: {value!r} cannot name a dataset, version or split")
  if file_format not in FORMATS:
    raise ValueError(
      f"{found / _FILES[1]}: fileFormat is '{file_format}'; it must be one of {', '.join(FORMATS)}"
    )
  features = _features(found / _FILES[0])
  return Directory(found, name, version, file_format, features, splits)


def _names(part: str) -> bool:
  """Whether a text may be a part of a path."""
  return part != ".." and part.isprintable() and len(part.encode()) < 200


def _find(path: pathlib.Path) -> pathlib.Path:
  if not path.is_dir():
    raise FileNotFoundError(f"{path}: no such directory; expected an RLDS (TFDS) directory")
  names = sorted(entry.name for entry in path.iterdir())
  if not names:
    raise ValueError(f"{path}: the directory is empty; expected a TFDS directory or its versions")
  if is_tfds(path):
    return path
  version = newest(names)
  if not version or not is_tfds(path / version):
    raise ValueError(
      f"{path / version}: not a TFDS directory, which holds {' and '.join(_FILES)} or versions "
      f"such as 1.0.0; {path} holds {', '.join(names[:8])}"
    )
  return path / version


def newest(names: Iterable[str]) -> str:
  """Returns the highest version (`1.10.0`) among the names; "" if there is none."""
  versions = [name for name in names if re.fullmatch(r"\d+\.\d+\.\d+", name)]
  return max(versions, key=lambda name: tuple(map(int, name.split("."))), default="")


def is_tfds(path: Any) -> bool:
  """Whether a directory (a local path or an epath) holds TFDS's metadata."""
  return all((path / name).is_file() for name in _FILES)


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise ValueError(f"{path}: not a JSON file: {error}") from error
  if type(content) is not dict:
    raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
  return content


def _features(path: pathlib.Path) -> dict[str, Feature]:
  """Flattens features.json to its leaves, named as the records name them."""
  leaves = {}

  def visit(node, name):
    if "featuresDict" in node:
      for key, child in node["featuresDict"]["features"].items():
        visit(child, f"{name}/{key}" if name else key)
    elif "sequence" in node and name == "steps":
      visit(node["sequence"]["feature"], name)
    else:
      leaves[name] = _leaf(node, name)

  try:
    visit(_json(path), "")
  except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
    if isinstance(error, ValueError) and str(path) in str(error):
      raise
    raise ValueError(f"{path}: not the features.json of TFDS 4.4 or newer: {error!r}") from error
  return leaves


def _leaf(node: dict[str, Any], name: str) -> Feature:
  if "text" in node:
    return Feature(name, "text")
  if "image" in node:
    image = node["image"]
    return Feature(name, "image", _shape(image["shape"]), image.get("dtype", "uint8"))
  if "classLabel" in node:
    return Feature(name, "numeric", (), "int64")
  if "boundingBox" in node:
    return Feature(name, "numeric", (4,), "float32")
  if "sequence" in node:
    inner = _leaf(node["sequence"]["feature"], name)
    length = int(node["sequence"].get("length", -1))
    if length < 1 or inner.kind != "numeric" or inner.encoding:
      return Feature(name, "a sequence of no fixed length")
    return inner._replace(shape=(length, *inner.shape), encoding="ragged")
  if "tensor" not in node:
    return Feature(name, f"of class {node['pythonClassName'].rsplit('.', 1)[-1]}")
  tensor = node["tensor"]
  shape, dtype = _shape(tensor["shape"]), tensor["dtype"]
  encoding = tensor.get("encoding", "none").lower()
  if dtype in ("string", "object"):
    return Feature(name, f"text{list(shape)}, not one text" if shape else "text", shape, dtype)
  if None in shape or 0 in shape:
    return Feature(name, f"a tensor without fixed shape, {list(shape)}")
  try:
    numeric = np.dtype(dtype).kind in "biuf" or np.dtype(dtype) == ml_dtypes.bfloat16
  except TypeError:
    numeric = False
  if not numeric or encoding not in ("none", "bytes", "zlib"):
    return Feature(name, f"a tensor of dtype {dtype} with encoding {encoding}")
  return Feature(name, "numeric", shape, dtype, "" if encoding == "none" else encoding)


def _shape(node: dict[str, Any]) -> tuple[int | None, ...]:
  """A dimension of -1 is open."""
  sizes = [int(size) for size in node.get("dimensions", ())]
  return tuple(None if size < 0 else size for size in sizes)
