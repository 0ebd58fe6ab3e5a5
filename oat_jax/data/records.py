"""Pieces of records at random: what reads one frame out of terabytes of shards.

Pieces are read with `pread`, not through a map of the file: resident memory does not grow with the
images that were read, and a shard that shrinks meanwhile is an error instead of a crash.
"""

import functools
import os
import time
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

    Raises:
      ValueError: the file has changed since it was indexed.
    """
    file, number, first = self.places_E3[episode].tolist()
    if self.file_format == "tfrecord":
      opened = _open(self.files[file], _period())
      data = os.pread(opened.fileno(), length, first + start)
    else:
      data = _payload(self.files[file], number)[start : start + length]
    if len(data) != length:
      raise ValueError(f"{self.files[file].path}: {_CHANGED}")
    return data

  def where(self, episode: int) -> str:
    """Names an episode's file and record, for errors."""
    file, number, _ = self.places_E3[episode].tolist()
    return f"{self.files[file].path}: record {number}"


_CHANGED = "the file has changed since it was indexed; start again"


def _period() -> int:
  return int(time.monotonic()) // 10


# A descriptor a file: thousands of shards would exceed what a process may hold. A file that falls
# out of the cache is closed when the last thread that reads it is done. Every ten seconds it is
# opened anew, since one that is open may be overwritten in place; asking at every read costs half
# as much as reading.
@functools.lru_cache(maxsize=256)
def _open(file: File, period: int) -> Any:
  del period
  opened = open(file.path, "rb", buffering=0)
  stat = os.fstat(opened.fileno())
  if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
    opened.close()
    raise ValueError(f"{file.path}: {_CHANGED}")
  return opened


@functools.lru_cache(maxsize=64)
def _open_array_record(file: File) -> array_record.ArrayRecordFile:
  if describe(file.path) != file:
    raise ValueError(f"{file.path}: {_CHANGED}")
  return array_record.ArrayRecordFile(file.path)


# An ArrayRecord payload is compressed as a whole: keep those of the frames of one window.
@functools.lru_cache(maxsize=8)
def _payload(file: File, number: int) -> memoryview:
  return _open_array_record(file)[number]
