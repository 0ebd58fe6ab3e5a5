"""ArrayRecord files as sequences of payloads, as `tfrecord.TFRecordFile` is."""

import os
from typing import Any

import numpy as np


class ArrayRecordFile:
  """An ArrayRecord file (the random access format of grain and TFDS), checked by its own hashes."""

  def __init__(self, path: str | os.PathLike):
    """Opens the file; ValueError where it is none, or truncated."""
    from array_record.python import array_record_module  # pyright: ignore

    self.path = os.fspath(path)
    try:
      # Without read-ahead and threads of its own: records are asked for one by one.
      self._reader: Any = array_record_module.ArrayRecordReader(
        self.path, "readahead_buffer_size:0,max_parallelism:0"
      )
      if not self._reader.ok():  # it does not always raise
        raise ValueError("its footer cannot be read")
      self._length = self._reader.num_records()
      self.offsets = np.zeros(self._length, np.int64)  # of payloads: they are read whole
      self.damage = ""  # a truncated file says that it holds no records
    except (RuntimeError, ValueError, IndexError) as error:
      raise ValueError(
        f"{self.path}: not an ArrayRecord file, or truncated ({_first_line(error)}); fetch it again"
      ) from error

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, record: int) -> memoryview:
    """Returns the payload of one record; ValueError if it is corrupt."""
    try:
      return memoryview(self._reader.read([int(record)])[0])
    except (RuntimeError, ValueError, IndexError) as error:
      raise ValueError(
        f"{self.path}: record {record}: {_first_line(error)}; the file is corrupt, fetch it again"
      ) from error


def _first_line(error: BaseException) -> str:
  return str(error).partition("\n")[0][:200]
