"""Pieces of records at random: what reads one frame out of terabytes of shards.

Pieces are read with `pread`, not through a map of the file: resident memory does not grow with the
images that were read, and a shard that shrinks meanwhile is an error instead of a crash.
"""

import functools
import os
from typing import Any, NamedTuple

import numpy as np

from oat_jax.data import array_record
from oat_jax.data import tfrecord


def open_records(path: str | os.PathLike, file_format: str) -> Any:
  """Returns the payloads of a TFRecord or an ArrayRecord file as a sequence."""
  return {"tfrecord": tfrecord.TFRecordFile, "array_record": array_record.ArrayRecordFile}[
    file_format
  ](path)


class File(NamedTuple):
  """A shard as it was when it was indexed."""

  path: str
  size: int
  mtime_ns: int


def describe(path: str | os.PathLike) -> File:
  stat = os.stat(path)
  return File(os.fspath(path), stat.st_size, stat.st_mtime_ns)


class Records(NamedTuple):
  """The records of an index: one an episode (E)."""

  files: tuple[File, ...]
  file_format: str
  places_E3: np.ndarray  # int64: the record's file, its number there, its payload's first byte

  def read(self, episode: int, start: int, length: int) -> Any:
    """Returns bytes [start, start + length) of an episode's payload.

    Whether they are those that were indexed, `check` says: once a batch, since asking costs half as
    much as reading.

    Raises:
      ValueError: the file has become shorter.
    """
    file, number, first = self.places_E3[episode].tolist()
    if self.file_format == "tfrecord":
      opened = _open(self.files[file])
      data = os.pread(opened.fileno(), length, first + start)
    else:
      try:
        data = _payload(self.files[file], number)[start : start + length]
      except ValueError:
        self.check(np.array([episode]))
        raise
    if len(data) != length:
      raise ValueError(f"{self.files[file].path}: {_CHANGED}")
    return data

  def check(self, episodes: np.ndarray) -> None:
    """Raises ValueError where a file of the episodes, int (N,), has changed since it was indexed.

    What was read before this call from a file that was overwritten in place is found out too.
    """
    for number in np.unique(self.places_E3[episodes, 0]).tolist():
      file = self.files[number]
      place = _open(file).fileno() if self.file_format == "tfrecord" else file.path
      stat = os.stat(place)
      if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
        raise ValueError(f"{file.path}: {_CHANGED}")

  def where(self, episode: int) -> str:
    """Names an episode's file and record, for errors."""
    file, number, _ = self.places_E3[episode].tolist()
    return f"{self.files[file].path}: record {number}"


_CHANGED = "the file has changed since it was indexed; start again"


# A descriptor a file: thousands of shards would exceed what a process may hold. A file that falls
# out of the cache is closed when the last thread that reads it is done.
@functools.lru_cache(maxsize=256)
def _open(file: File) -> Any:
  return open(file.path, "rb", buffering=0)


@functools.lru_cache(maxsize=64)
def _open_array_record(file: File) -> array_record.ArrayRecordFile:
  return array_record.ArrayRecordFile(file.path)


# An ArrayRecord payload is compressed as a whole: keep those of the frames of one window.
@functools.lru_cache(maxsize=8)
def _payload(file: File, number: int) -> memoryview:
  return _open_array_record(file)[number]
