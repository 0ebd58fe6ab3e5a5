"""The TFRecord reader against protocol buffers' own parser, and against damaged bytes."""

import struct

import hypothesis
from hypothesis import strategies as st
import made
from made import frame
import numpy as np
import pytest

from oat_jax.data import tfrecord

pb2, feature_pb2 = made.example_serializer.tf_example_pb2, made.example_serializer.tf_feature_pb2

INT64 = st.integers(-(2**63), 2**63 - 1)
LISTS = st.one_of(
  st.lists(st.binary(max_size=5), max_size=4).map(
    lambda v: feature_pb2.Feature(bytes_list=feature_pb2.BytesList(value=v))
  ),
  st.lists(st.floats(width=32), max_size=4).map(
    lambda v: feature_pb2.Feature(float_list=feature_pb2.FloatList(value=v))
  ),
  st.lists(INT64 | st.integers(-3, 200), max_size=6).map(
    lambda v: feature_pb2.Feature(int64_list=feature_pb2.Int64List(value=v))
  ),
  st.just(feature_pb2.Feature()),
)
MESSAGES = st.dictionaries(st.text(max_size=6), LISTS, max_size=4).map(
  lambda f: pb2.Example(features=feature_pb2.Features(feature=f)).SerializeToString()
)
SMALL = pb2.Example(
  features=feature_pb2.Features(
    feature={
      "floats": feature_pb2.Feature(float_list=feature_pb2.FloatList(value=[1, -2, 3])),
      "ints": feature_pb2.Feature(int64_list=feature_pb2.Int64List(value=[5, -1, 300])),
      "bytes": feature_pb2.Feature(bytes_list=feature_pb2.BytesList(value=[b"a", b""])),
    }
  )
).SerializeToString(deterministic=True)


def read_all(message):
  readers = {
    tfrecord.EMPTY: lambda *_: [],
    tfrecord.BYTES: tfrecord.bytes_,
    tfrecord.FLOATS: tfrecord.floats,
    tfrecord.INTS: tfrecord.ints,
  }
  spans = tfrecord.parse_example(message)
  return {name: (span[0], readers[span[0]](message, *span[1:])) for name, span in spans.items()}


def assert_equals_protobuf(message):
  mine, theirs = read_all(message), pb2.Example.FromString(message).features.feature
  assert mine.keys() == theirs.keys()
  names = {None: 0, "bytes_list": 1, "float_list": 2, "int64_list": 3}
  for name, (kind, values) in mine.items():
    which = theirs[name].WhichOneof("kind")
    assert kind == names[which]
    if which:
      expected = getattr(theirs[name], which).value
      assert len(values) == len(expected)
      if kind != tfrecord.BYTES:
        expected = np.array(expected, values.dtype)
        assert values.tobytes() == expected.tobytes() or np.isnan(expected).any()
      else:
        assert values == list(expected)


def test_masked_crc_is_that_of_the_format():
  # The CRC-32C of RFC 3720 (B.4) for 32 zeros is 0x8a9136aa; masking rotates and adds.
  crc = 0x8A9136AA
  rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  assert tfrecord.masked_crc(bytes(32)) == (rotated + 0xA282EAD8) % 2**32
  assert tfrecord.masked_crc(memoryview(b"xabcx")[1:4]) == tfrecord.masked_crc(b"abc")
  assert tfrecord.masked_crc(b"") == 0xA282EAD8


@hypothesis.given(MESSAGES)
def test_examples_equal_protobuf(message):
  assert_equals_protobuf(message)
  assert_equals_protobuf(memoryview(message).tobytes())


@hypothesis.settings(max_examples=400)
@hypothesis.given(
  MESSAGES | st.just(SMALL),
  st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_mutated_examples_raise_value_error_or_mean_what_protobuf_says(message, edits):
  message = bytearray(message)
  for position, byte in edits:
    if message:
      message[position % len(message)] = byte
  try:
    read_all(bytes(message))
  except ValueError:
    return
  assert_equals_protobuf(bytes(message))


@hypothesis.settings(max_examples=400)
@hypothesis.given(st.binary(max_size=60))
def test_garbage_raises_value_error_or_parses(garbage):
  for read in (tfrecord.floats, tfrecord.ints, tfrecord.bytes_):
    try:
      read(garbage, 0, len(garbage))
    except ValueError:
      pass
  try:
    read_all(garbage)
  except ValueError:
    pass


def test_every_cut_example_raises_value_error():
  for end in range(1, len(SMALL)):
    with pytest.raises(ValueError):
      read_all(SMALL[:end])


def test_wanted_features_only():
  spans = tfrecord.parse_example(SMALL, {"ints", "absent"})
  assert list(spans) == ["ints"]
  np.testing.assert_array_equal(tfrecord.ints(SMALL, *spans["ints"][1:]), [5, -1, 300])


def test_unpacked_and_mixed_lists():
  floats = b"\x0d" + struct.pack("<f", 1.5) + b"\x0a\x08" + struct.pack("<ff", 2, 3)
  np.testing.assert_array_equal(tfrecord.floats(floats, 0, len(floats)), [1.5, 2, 3])
  minus_one = b"\xff" * 9 + b"\x01"
  ints = b"\x08\x07" + b"\x08" + minus_one + b"\x0a\x03\x05\x80\x01"
  np.testing.assert_array_equal(tfrecord.ints(ints, 0, len(ints)), [7, -1, 5, 128])
  assert tfrecord.floats(b"", 0, 0).dtype == np.float32
  assert tfrecord.ints(b"\x0a\x00", 0, 2).dtype == np.int64


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    (b"\x0a\x01a\x0a\x01b", "no name and Feature"),
    (b"\x0a\x01a\x12\x04\x12\x00\x1a\x00", "2 lists"),
    (b"\x08\x01", "unexpected tag 0x8"),
    (b"\x0a\x7fa", "ends at"),
    (b"\xff" * 11, "unterminated varint"),
  ],
)
def test_malformed_entries_are_named(entry, message):
  feature = b"\x0a" + bytes([len(entry)]) + entry
  with pytest.raises(ValueError, match=message):
    tfrecord.parse_example(b"\x0a" + bytes([len(feature)]) + feature)


@pytest.mark.parametrize(
  ("read", "span", "message"),
  [
    (tfrecord.floats, b"\x0a\x03abc", "has 3 bytes, no multiple of 4"),
    (tfrecord.floats, b"\x0dabc", "FloatList: the field at byte 0 ends at 5"),
    (tfrecord.ints, b"\x0a\x02\x01\x80", "Int64List: unterminated varint behind byte 2"),
    (tfrecord.ints, b"\x0a\x0b" + b"\xff" * 10 + b"\x01", "Int64List: unterminated varint"),
    (tfrecord.ints, b"\x08" + b"\xff" * 10 + b"\x01", "unterminated varint at byte 1"),
    (tfrecord.bytes_, b"\x0a\x80", "BytesList: unterminated varint at byte 2"),
    (tfrecord.bytes_, b"\x0a\x02a", "BytesList: a value ends at 4, behind byte 3"),
  ],
)
def test_malformed_lists_are_named(read, span, message):
  with pytest.raises(ValueError, match=message):
    read(span + b"\x00more", 0, len(span))


def test_files_are_sequences_of_records(tmp_path):
  payloads = [b"first", b"", b"third" * 100]
  path = tmp_path / "records"
  path.write_bytes(b"".join(map(frame, payloads)))
  offsets, lengths, damage = tfrecord.scan(path)
  assert not damage and lengths.tolist() == [5, 0, 500] and offsets[0] == 12
  file = tfrecord.TFRecordFile(path)
  assert [bytes(file[i]) for i in (2, 0, 1, -1)] == [payloads[i] for i in (2, 0, 1, -1)]
  with pytest.raises(IndexError):
    file[3]


def test_empty_file_has_no_records(tmp_path):
  (tmp_path / "empty").write_bytes(b"")
  assert len(tfrecord.TFRecordFile(tmp_path / "empty")) == 0


def test_a_truncated_file_says_where_and_keeps_what_is_whole(tmp_path):
  whole, path = frame(b"one") + frame(b"two"), tmp_path / "cut"
  boundary = len(frame(b"one"))
  for end in range(len(whole)):
    path.write_bytes(whole[:end])
    file = tfrecord.TFRecordFile(path)
    assert [bytes(file[i]) for i in range(len(file))] == [b"one"] * (end >= boundary)
    if end in (0, boundary):  # what dataset_info.json says would be missed
      assert file.damage == ""
    else:
      kind = "record header" if end % boundary < 12 else "record"
      where = f"{path}: truncated {kind} at byte {0 if end < boundary else boundary}"
      assert file.damage.startswith(where) and str(end) in file.damage


def test_every_flipped_byte_is_detected(tmp_path):
  payloads = [b"one", b"two", b"three"]
  whole, path = b"".join(map(frame, payloads)), tmp_path / "flipped"
  starts = [0, len(frame(b"one")), len(frame(b"one") + frame(b"two"))]
  for position in range(len(whole)):
    damaged = bytearray(whole)
    damaged[position] ^= 1
    path.write_bytes(damaged)
    file = tfrecord.TFRecordFile(path)
    hit = sum(position >= start for start in starts) - 1
    assert [bytes(file[i]) for i in range(hit)] == payloads[:hit]
    if position - starts[hit] < 12:  # the lengths behind this one are unknown
      assert len(file) == hit
      assert f"{path}: wrong length checksum at byte {starts[hit]}" in file.damage
    else:
      assert (
        file.damage == "" and [bytes(file[i]) for i in range(hit + 1, 3)] == payloads[hit + 1 :]
      )
      with pytest.raises(
        ValueError, match=f"flipped: record {hit}, bytes .*wrong payload checksum"
      ):
        file[hit]


def test_text_files_are_refused(tmp_path):
  (tmp_path / "text").write_text("This is no TFRecord file at all.")
  assert "text: wrong length checksum at byte 0" in tfrecord.scan(tmp_path / "text")[2]
