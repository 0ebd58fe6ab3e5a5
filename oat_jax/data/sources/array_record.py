"""TFDS directories of ArrayRecord files: the records stay as they are, byte for byte."""

import json
import pathlib
import shutil
from typing import Any

from oat_jax.data import array_record
from oat_jax.data import directory as directory_lib
from oat_jax.data import sources


class _Features:
  """The features as the directory's own files say them, whatever classes they name."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def to_json(self) -> dict[str, Any]:
    return json.loads((self._path / "features.json").read_text())

  def save_config(self, directory: str) -> None:
    """Copies features.json and what belongs to it: the names of labels, and the like."""
    for path in self._path.iterdir():
      if path.name == "features.json" or path.suffix == ".txt":
        shutil.copyfile(path, pathlib.Path(directory, path.name))


def open_source(path: pathlib.Path, options: sources.Options) -> sources.Source:
  """Opens a TFDS directory or the parent of its versions, all of its splits; see `sources`."""
  if not path.is_dir():
    raise ValueError(f"{path} is a file; give the directory that holds dataset_info.json")
  found = directory_lib.open_directory(path)
  if found.file_format != "array_record":
    raise ValueError(f"{found.path}: holds {found.file_format} files, not array_record files")
  keys, broken = [], []
  for split in found.splits:
    for shard in found.shards(split) if found.num_records(split) else ():
      name = shard.path.relative_to(found.path).as_posix()
      try:
        held = len(array_record.ArrayRecordFile(shard.path))
        if held != shard.length:
          raise ValueError(
            f"{shard.path}: holds {held} records, but dataset_info.json says {shard.length}"
          )
      except ValueError as error:
        broken.append(sources.Broken(name, str(error)))
      else:
        keys += [sources.Key(split, name, str(i)) for i in range(held)]
  files: dict[str, array_record.ArrayRecordFile] = {}

  def read(key: sources.Key) -> bytes:
    if key.file not in files:
      files.clear()
      files[key.file] = array_record.ArrayRecordFile(found.path / key.file)
    return bytes(files[key.file][int(key.episode)])

  return sources.Source(
    name=found.name,
    description=f"{found.name} {found.version}, converted from array_record.",
    features=_Features(found.path),
    keys=keys,
    read=read,
    broken=tuple(broken),
  )
