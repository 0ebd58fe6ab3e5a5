"""Camera frames: checked by their headers when a dataset is indexed, decoded when a window asks.

Axis letters: L all steps of all episodes concatenated, N frames, then height, width and 3.
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from oat_jax.data import records as records_lib

# As stored: an orientation tag turns no frame, and grey ones get three equal channels.
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB\x60\x82"
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's SOF0 to SOF15


def decode(data: Any) -> np.ndarray:
  """Returns uint8 (height, width, 3) RGB of a JPEG or PNG file's bytes.

  Raises:
    ValueError: they are neither, or damaged.
  """
  if not len(data):
    raise ValueError("there are no bytes of an image")
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
  except cv2.error as error:
    raise ValueError(f"the image does not decode: {str(error).strip()}") from error
  if image is None:
    raise ValueError(f"the image does not decode; it begins with {bytes(data[:8]).hex(' ')}")
  return image


def header(data: Any) -> tuple[int, int, int]:
  """Reads a JPEG's or PNG's size without decoding it.

  Returns:
    height, width, and how many bytes of the file say so.

  Raises:
    ValueError: the bytes are neither, or end too early.
  """
  size = len(data)
  start = bytes(data[:32])
  if not size:
    raise ValueError("there are no bytes of an image")
  if start.startswith(_PNG) and size >= 24:
    return int.from_bytes(start[20:24], "big"), int.from_bytes(start[16:20], "big"), 24
  if not start.startswith(_JPEG):
    raise ValueError(f"neither JPEG nor PNG; the bytes begin with {start[:8].hex(' ')}")
  position = 2
  while position + 9 <= size and data[position] == 0xFF:
    if data[position + 1] in _FRAME_MARKERS:
      height, width = (int.from_bytes(data[position + i : position + i + 2], "big") for i in (5, 7))
      return height, width, position + 9
    # Fill bytes may stand before a marker; a segment says its own length.
    filling = data[position + 1] == 0xFF
    position += 1 if filling else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
  raise ValueError("a JPEG without a frame header: truncated or damaged")


def inspect(payload: Any, starts: Sequence[int], lengths: Sequence[int]) -> tuple[int, int]:
  """Checks the frames of an episode by their first and last bytes.

  Args:
    payload: the record.
    starts, lengths: where each step's frame lies.

  Returns:
    height, width of all of them.

  Raises:
    ValueError: a frame, named by its step, is no JPEG or PNG, is cut off, or has another size.
  """
  file = np.frombuffer(payload, np.uint8)
  starts_N, lengths_N = np.asarray(starts), np.asarray(lengths)
  frame = lambda i: payload[starts[i] : starts[i] + lengths[i]]
  try:
    height, width, known = header(frame(0))
  except ValueError as error:
    raise ValueError(f"step 0: {error}") from error
  end = np.frombuffer(_PNG_END if frame(0)[0] == _PNG[0] else _JPEG_END, np.uint8)
  # The frames of one encoder begin alike: comparing bytes, all frames at once, is much cheaper than
  # parsing each. Those that differ are parsed, and all where the header has a picture of its own.
  alike_N = lengths_N >= known + len(end) if known <= 1024 else np.zeros(len(lengths_N), bool)
  known = min(known, 1024)
  first_N = np.where(alike_N, starts_N, starts_N[0])
  last_N = np.where(alike_N, starts_N + lengths_N, starts_N[0] + lengths_N[0]) - len(end)
  alike_N &= (file[first_N[:, None] + np.arange(known)] == file[starts[0] :][:known]).all(1)
  alike_N &= (file[last_N[:, None] + np.arange(len(end))] == end).all(1)
  for i in np.flatnonzero(~alike_N):
    try:
      *found, body = header(frame(i))
    except ValueError as error:
      raise ValueError(f"step {i}: {error}") from error
    if found != [height, width]:
      raise ValueError(
        f"step {i}: the image is {found[0]}x{found[1]} (height x width), step 0's {height}x{width}"
      )
    ends = _PNG_END if frame(i)[0] == _PNG[0] else _JPEG_END
    if ends not in bytes(frame(i)[body:]):  # bytes may follow it
      raise ValueError(f"step {i}: the image has no end marker: it is cut off")
  return height, width


class Camera(NamedTuple):
  """The frames of one camera in a dataset, read and decoded on demand."""

  feature: str  # name in features.json
  size: tuple[int, int]  # height, width of what is returned
  spans_L2: np.ndarray  # uint32: first byte within the record's payload, number of bytes
  starts_E: np.ndarray  # int64 (E + 1,)
  records: records_lib.Records

  def __call__(self, steps_N: np.ndarray) -> np.ndarray:
    """Returns uint8 (N, height, width, 3), resized by area where the files have another size.

    Raises:
      ValueError: a frame does not decode; the message names file, record, step and feature.
    """
    out = _POOL.empty((len(steps_N), *self.size, 3))
    steps_N = np.asarray(steps_N)
    episodes_N = np.searchsorted(self.starts_E, steps_N, "right") - 1
    spans = self.spans_L2[steps_N].tolist()
    # The frames of a window lie side by side in its record: they are read at once.
    step_N = np.diff(steps_N)
    apart_N = (np.diff(episodes_N) != 0) | (step_N < 0) | (step_N > 1)
    ends = [*(np.flatnonzero(apart_N) + 1).tolist(), len(spans)] if spans else []
    repeated = np.append(False, ~apart_N & (step_N == 0)).tolist()
    first = 0
    for end, episode in zip(ends, episodes_N[np.array(ends, int) - 1].tolist()):
      start = spans[first][0]
      data = self.records.read(episode, start, sum(spans[end - 1]) - start)
      file = np.frombuffer(data, np.uint8)
      for i in range(first, end):
        if repeated[i]:
          out[i] = out[i - 1]  # an episode's first frame, repeated before its start
          continue
        at, length = spans[i]
        frame = file[at - start : at - start + length]
        try:
          image = decode(frame)
        except ValueError as error:
          self.records.check(np.array([episode]))
          where = f"{self.records.where(episode)}: step {steps_N[i] - self.starts_E[episode]}"
          raise ValueError(f"{where}: '{self.feature}': {error}") from error
        if image.shape[:2] != self.size:
          image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        out[i] = image
      first = end
    self.records.check(episodes_N)
    return out


class _Pool:
  """Memory of batches that nobody holds any more, for the next ones.

  Fresh memory costs a page fault every 4 KB: a fifth of the decoding of small frames.
  """

  def __init__(self, keep: int):
    self._keep, self._free = keep, collections.defaultdict(list)

  def empty(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a uint8 array whose memory comes back here when its last view is gone."""
    free = self._free[shape]
    try:
      memory = free.pop()
    except IndexError:
      memory = np.empty(shape, np.uint8)
    return np.asarray(_Lease(memory, self))

  def take_back(self, memory: np.ndarray) -> None:
    if len(self._free[memory.shape]) < self._keep:
      self._free[memory.shape].append(memory)


class _Lease:
  """What an array of the pool keeps alive."""

  def __init__(self, memory: np.ndarray, pool: _Pool):
    self.__array_interface__ = memory.__array_interface__
    self._memory, self._pool = memory, pool

  def __del__(self):
    self._pool.take_back(self._memory)


_POOL = _Pool(keep=8)
