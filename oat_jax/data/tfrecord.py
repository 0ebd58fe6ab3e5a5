"""TFRecord files and the tf.train.Example messages inside them, read without TensorFlow.

A record is an 8 byte length, the length's masked CRC-32C, the payload and the payload's masked
CRC-32C, all little-endian. A payload is a protocol buffer, `map<string, Feature>` under two
wrappers; a Feature is one list of bytes, floats or ints. `parse_example` finds the spans of those
lists without copying, `floats`, `ints` and `bytes_` read one span: a JPEG that nobody asks for
costs no more than its header.
"""

from collections.abc import Collection, Iterator
import mmap
import os
import struct

import google_crc32c
import numpy as np

Span = tuple[int, int, int]  # kind, start, end
Buffer = bytes | bytearray | memoryview

EMPTY, BYTES, FLOATS, INTS = 0, 1, 2, 3

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_VARINT_BYTES = 10  # 64 bits in groups of seven


def masked_crc(data: Buffer) -> int:
  """Returns TFRecord's masked CRC-32C of `data` as an unsigned 32 bit integer."""
  # The array is a view: google_crc32c refuses memoryviews, and bytes(data) would copy.
  crc = google_crc32c.value(np.frombuffer(data, np.uint8))
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scan(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, str]:
  """Indexes a TFRecord file by its headers alone: 12 bytes read per record, whatever its size.

  Returns:
    offsets, lengths: int64 (records,), where each payload starts and how many bytes it has.
    damage: why nothing behind these records can be read: the file ends inside a record, or a
      length's checksum is wrong. "" for a whole file.
  """
  path, size = os.fspath(path), os.path.getsize(path)
  offsets, lengths, position, damage = [], [], 0, ""
  with open(path, "rb", buffering=0) as file:
    while position < size:
      file.seek(position)
      header = file.read(_HEADER.size)
      if len(header) < _HEADER.size:
        damage = f"{path}: truncated record header at byte {position} of {size}"
        break
      length, crc = _HEADER.unpack(header)
      if masked_crc(header[:8]) != crc:
        damage = (
          f"{path}: wrong length checksum at byte {position}; "
          "the file is corrupt, compressed or not a TFRecord file"
        )
        break
      end = position + _HEADER.size + length + _FOOTER.size
      if end > size:
        damage = (
          f"{path}: truncated record at byte {position}: it ends at {end}, the file at {size}"
        )
        break
      offsets.append(position + _HEADER.size)
      lengths.append(length)
      position = end
  return np.array(offsets, np.int64), np.array(lengths, np.int64), damage


class TFRecordFile:
  """A TFRecord file as a sequence of payloads, each checked against its CRC when it is read."""

  def __init__(self, path: str | os.PathLike):
    """Scans the headers and maps the file; `damage` is not "" where its end cannot be read."""
    self.path = os.fspath(path)
    self.offsets, self.lengths, self.damage = scan(path)
    self._bytes = memoryview(b"")
    if len(self):  # an empty file cannot be mapped
      with open(path, "rb") as file:
        self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

  def __len__(self) -> int:
    return len(self.offsets)

  def __getitem__(self, record: int) -> memoryview:
    """Returns the payload of one record, a view of the mapped file; ValueError if it is corrupt."""
    start = int(self.offsets[record])
    end = start + int(self.lengths[record])
    payload = self._bytes[start:end]
    if masked_crc(payload) != _FOOTER.unpack_from(self._bytes, end)[0]:
      raise ValueError(
        f"{self.path}: record {record % len(self)}, bytes {start} to {end}: wrong payload "
        "checksum; the file is corrupt, fetch it again"
      )
    return payload


def parse_example(buffer: Buffer, wanted: Collection[str] | None = None) -> dict[str, Span]:
  """Finds the features of a serialised tf.train.Example.

  Args:
    buffer: the message.
    wanted: the names to return; all where None. Absent names are left out, not errors.

  Returns:
    For each feature its kind (BYTES, FLOATS, INTS, or EMPTY for a feature with no list at all) and
    the span of its list in `buffer`, to be read by `bytes_`, `floats` or `ints`.

  Raises:
    ValueError: the bytes are not a well-formed tf.train.Example.
  """
  spans = {}
  for _, first, last in _fields(buffer, 0, len(buffer), "Example", (0x0A,)):
    for _, start, end in _fields(buffer, first, last, "Features", (0x0A,)):
      entry = list(_fields(buffer, start, end, "Features.FeatureEntry", (0x0A, 0x12)))
      if [tag for tag, *_ in entry] != [0x0A, 0x12]:
        raise ValueError(f"malformed Features: the entry at byte {start} is no name and Feature")
      name = str(buffer[entry[0][1] : entry[0][2]], "utf-8")
      if wanted is None or name in wanted:
        lists = list(_fields(buffer, *entry[1][1:], f"Feature '{name}'", (0x0A, 0x12, 0x1A)))
        if len(lists) > 1:
          raise ValueError(f"feature '{name}' at byte {start} holds {len(lists)} lists, not one")
        spans[name] = (lists[0][0] >> 3, *lists[0][1:]) if lists else (EMPTY, 0, 0)
  return spans


def floats(buffer: Buffer, start: int, end: int) -> np.ndarray:
  """Reads the span of a FloatList, packed or not, into a new float32 array (values,)."""
  parts = []
  for _, first, last in _fields(buffer, start, end, "FloatList", (0x0A, 0x0D)):
    if (last - first) % 4:
      raise ValueError(f"FloatList at byte {first} has {last - first} bytes, no multiple of 4")
    parts.append(np.frombuffer(buffer[first:last], "<f4"))
  return np.concatenate([np.zeros(0, np.float32), *parts], dtype=np.float32)


def ints(buffer: Buffer, start: int, end: int) -> np.ndarray:
  """Reads the span of an Int64List, packed or not, into a new int64 array (values,)."""
  parts = [
    _varints(np.frombuffer(buffer[first:last], np.uint8), first)
    for _, first, last in _fields(buffer, start, end, "Int64List", (0x0A, 0x08))
  ]
  return np.concatenate([np.zeros(0, np.int64), *parts])


def bytes_(buffer: Buffer, start: int, end: int) -> list[bytes]:
  """Reads the span of a BytesList into copies of its values."""
  starts, lengths = bytes_spans(buffer, start, end)
  return [bytes(buffer[first : first + n]) for first, n in zip(starts, lengths)]


def bytes_spans(buffer: Buffer, start: int, end: int) -> tuple[list[int], list[int]]:
  """Returns where the values of a BytesList's span start and how many bytes each has."""
  starts, lengths, position = [], [], start
  while position < end:
    if buffer[position] != 0x0A:
      raise ValueError(f"malformed BytesList: unexpected tag {buffer[position]:#x} at {position}")
    position += 1
    # A varint, read here: an episode has one of them for every frame of every camera.
    length = shift = 0
    while True:
      if position >= end or shift > 63:
        raise ValueError(f"malformed BytesList: unterminated varint at byte {position}")
      byte = buffer[position]
      position += 1
      length |= (byte & 0x7F) << shift
      if byte < 0x80:
        break
      shift += 7
    starts.append(position)
    lengths.append(length)
    position += length
  if position > end:
    raise ValueError(f"malformed BytesList: a value ends at {position}, behind byte {end}")
  return starts, lengths


def _fields(
  buffer: Buffer, start: int, end: int, message: str, tags: tuple[int, ...]
) -> Iterator[tuple[int, int, int]]:
  """Yields (tag, start, end) of each field of the message in buffer[start:end].

  Stricter than protocol buffers, which skip unknown fields and merge repeated ones: no writer of
  tf.train.Example makes either, so a tag outside `tags` means that the bytes are something else.
  """
  position = start
  while position < end:
    tag, first = _varint(buffer, position, end)
    if tag not in tags:
      raise ValueError(f"malformed {message}: unexpected tag {tag:#x} at byte {position}")
    wire_type = tag & 7
    if wire_type == 0:
      last = _varint(buffer, first, end)[1]
    elif wire_type == 5:
      last = first + 4
    else:
      length, first = _varint(buffer, first, end)
      last = first + length
    if last > end:
      raise ValueError(
        f"malformed {message}: the field at byte {position} ends at {last}, behind byte {end}"
      )
    yield tag, first, last
    position = last


def _varint(buffer: Buffer, position: int, end: int) -> tuple[int, int]:
  """Returns the varint at `position` and the position behind it."""
  value = 0
  for i, byte in enumerate(buffer[position : min(end, position + _VARINT_BYTES)]):
    value |= (byte & 0x7F) << 7 * i
    if byte < 0x80:
      return value, position + i + 1
  raise ValueError(f"unterminated varint at byte {position}")


def _varints(bytes_N: np.ndarray, where: int) -> np.ndarray:
  """Decodes uint8 (bytes,) of whole varints to int64 (values,), all at once."""
  if not len(bytes_N):
    return np.zeros(0, np.int64)
  ends_V = np.flatnonzero(bytes_N < 0x80) + 1
  starts_V = np.concatenate([[0], ends_V[:-1]])
  if bytes_N[-1] >= 0x80 or (ends_V - starts_V).max() > _VARINT_BYTES:
    raise ValueError(f"malformed Int64List: unterminated varint behind byte {where}")
  places_N = np.arange(len(bytes_N)) - np.repeat(starts_V, ends_V - starts_V)
  groups_N = (bytes_N & 0x7F).astype(np.uint64) << (7 * places_N).astype(np.uint64)
  return np.bitwise_or.reduceat(groups_N, starts_V).view(np.int64)
