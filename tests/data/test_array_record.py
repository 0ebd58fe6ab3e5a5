"""The ArrayRecord reader: what it shares with `tfrecord.TFRecordFile`, and damaged files."""

import made
import pytest

from oat_jax.data import array_record

PAYLOADS = [b"first", b"", b"third" * 100, bytes(range(256)) * 9]


@pytest.fixture
def path(tmp_path):
  made.write_shard(tmp_path / "records", PAYLOADS, "array_record")
  return tmp_path / "records"


def test_files_are_sequences_of_records(path):
  file = array_record.ArrayRecordFile(path)
  assert len(file) == len(PAYLOADS)
  assert [bytes(file[i]) for i in (2, 0, 1, 3)] == [PAYLOADS[i] for i in (2, 0, 1, 3)]
  assert type(file[0]) is memoryview  # slices of it do not copy, as with TFRecord
  with pytest.raises(ValueError, match="records: record 4: "):
    file[4]


def test_every_truncation_is_an_error_naming_the_path(path):
  whole = path.read_bytes()
  for end in {*range(0, len(whole), 4999), len(whole) - 1}:
    path.write_bytes(whole[:end])
    with pytest.raises(ValueError, match="records: not an ArrayRecord file, or truncated"):
      array_record.ArrayRecordFile(path)


def test_text_files_are_refused(tmp_path):
  (tmp_path / "text").write_text("This is no ArrayRecord file at all." * 9)
  with pytest.raises(ValueError, match="text: not an ArrayRecord file.*fetch it again"):
    array_record.ArrayRecordFile(tmp_path / "text")


def test_flipped_bytes_are_detected_or_do_no_harm(path):
  """Riegeli pads its blocks with bytes that mean nothing; all others are under a hash."""
  whole = path.read_bytes()
  detected = 0
  for position in [i for i in range(len(whole)) if whole[i]][::17] + [9, 1000, 100_000]:
    damaged = bytearray(whole)
    damaged[position] ^= 0x10
    path.write_bytes(damaged)
    try:
      file = array_record.ArrayRecordFile(path)
      assert [bytes(file[i]) for i in range(len(file))] == PAYLOADS
    except ValueError as error:
      assert str(path) in str(error)
      detected += 1
  assert detected > 10
