"""A writer of shards loses nothing that it said was final, and keeps others out."""

import errno
import fcntl
import json
import os

import pytest
import tiny

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `train` is not installed")

from oat_jax.data import shards  # noqa: E402
from oat_jax.data import tfrecord  # noqa: E402

FEATURES = tfds.features.FeaturesDict({"text": tfds.features.Text()})
RECORDS = [
  (split, f"{split} {i} ".encode() * (5 + 7 * i % 11))
  for split in ("train", "val")
  for i in range(9)
]


def writing(out, request=None, **kwargs):
  return shards.writing(out, name="made", shard_bytes=200, request=request, **kwargs)


def finish(writer):
  for i in range(writer.position, len(RECORDS)):
    if i % 7 == 3:
      writer.skip(record=i)
    else:
      writer.add(*RECORDS[i])
  writer.finish(FEATURES, {"note.txt": "done"})


def test_splits_lie_in_shards_of_their_own(tmp_path):
  with writing(tmp_path / "a", description="What it is.\nMore.") as writer:
    finish(writer)
  assert writer.skipped == [{"record": 3}, {"record": 10}, {"record": 17}]
  assert writer.counts == {"train": 8, "val": 7}
  assert (tmp_path / "a" / "note.txt").read_text() == "done\n"
  assert os.listdir(tmp_path) == ["a"]
  info = tfds.builder_from_directory(str(tmp_path / "a")).info
  assert info.description.startswith("What it is.")
  for split in ("train", "val"):
    want = [r for i, (name, r) in enumerate(RECORDS) if name == split and i % 7 != 3]
    files = [tfrecord.TFRecordFile(path) for path in info.splits[split].filepaths]
    assert len(files) > 2 and info.splits[split].shard_lengths == [len(f) for f in files]
    assert [bytes(record) for file in files for record in file] == want
    assert info.splits[split].num_bytes == sum(map(len, want))
    assert all(os.path.getsize(file.path) < 400 for file in files)
  assert len(list((tmp_path / "a").glob("*.tfrecord-*"))) == sum(
    split.num_shards for split in info.splits.values()
  )


def stop(out, at):
  """A request's work, from where it is, ended by an error before record `at`."""
  with pytest.raises(KeyError), writing(out, {"what": 1}) as writer:
    for i in range(writer.position, at):
      writer.skip(record=i) if i % 7 == 3 else writer.add(*RECORDS[i])
    raise KeyError


@pytest.mark.parametrize("stops", [[0], [1], [8], [18], [4, 5, 11], [5, 11, 18]])
@pytest.mark.parametrize("tear", [b"", b'{"shard": ["tr'])
def test_work_goes_on_behind_the_last_full_shard(tmp_path, stops, tear):
  with writing(tmp_path / "want") as writer:
    finish(writer)
  for at in stops:
    stop(tmp_path / "a", at)
    with open(tmp_path / "a.writing" / "journal.jsonl", "ab") as journal:
      journal.write(tear)
  (tmp_path / "a.writing" / "dataset" / "00099.train.shard").write_text("of a full disk")
  with writing(tmp_path / "a", {"what": 1}) as resumed:
    assert at - 5 < resumed.position <= at
    finish(resumed)
  assert tiny.listing(tmp_path / "a") == tiny.listing(tmp_path / "want")
  assert resumed.skipped == writer.skipped and resumed.counts == writer.counts
  assert sorted(os.listdir(tmp_path)) == ["a", "want"]


def test_a_second_writer_is_kept_out(tmp_path):
  for request in (None, {"what": 1}):
    with writing(tmp_path / "a", request) as writer:
      writer.add(*RECORDS[0])
      with pytest.raises(BlockingIOError, match="another process is writing .*/a; wait"):
        with writing(tmp_path / "a", request):
          pass
      before = tiny.listing(tmp_path / "a.writing")
      writer.finish(FEATURES)
    assert before["dataset/00000.train.shard"] is not None
    assert os.listdir(tmp_path) == ["a"]
    (tmp_path / "a").rename(tmp_path.with_name(f"{tmp_path.name}_{request is None}"))


def test_a_file_system_without_locks_is_written(tmp_path, monkeypatch):
  def flock(file, how):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with writing(tmp_path / "a", {"what": 1}) as writer:
    finish(writer)
  assert os.listdir(tmp_path) == ["a"]


def test_work_without_a_request_is_not_adopted(tmp_path):
  with writing(tmp_path / "want") as writer:
    finish(writer)
  stop(tmp_path / "a", 11)
  (tmp_path / "a.writing" / "request.json").unlink()  # as a killed process without one leaves it
  with writing(tmp_path / "a", {"what": 2}) as writer:
    assert (writer.position, writer.counts, writer.skipped) == (0, {}, [])
    finish(writer)
  assert tiny.listing(tmp_path / "a") == tiny.listing(tmp_path / "want")


def test_a_kept_lock_file_without_a_holder_keeps_nobody_out(tmp_path):
  stop(tmp_path / "a", 5)
  assert (tmp_path / "a.writing" / "lock").exists()
  with writing(tmp_path / "a", {"what": 1}) as writer:
    finish(writer)


def test_work_that_can_be_finished_is_neither_deleted_nor_mixed(tmp_path):
  stop(tmp_path / "a", 11)
  before = tiny.listing(tmp_path / "a.writing")
  for request, words in (
    (None, "its own command can finish"),
    ({"what": 2}, "what 1 there, 2 ask"),
  ):
    with pytest.raises(FileExistsError, match=words):
      with writing(tmp_path / "a", request):
        pass
  assert tiny.listing(tmp_path / "a.writing") == before


def test_a_damaged_shard_is_named(tmp_path):
  stop(tmp_path / "a", 11)
  shard = tmp_path / "a.writing" / "dataset" / "00001.train.shard"
  size = shard.stat().st_size
  os.truncate(shard, 20)
  with pytest.raises(ValueError, match=f"{shard} has 20 bytes, not the {size} written; delete"):
    with writing(tmp_path / "a", {"what": 1}):
      pass
  shard.unlink()
  with pytest.raises(ValueError, match="has 0 bytes"):
    with writing(tmp_path / "a", {"what": 1}):
      pass


def test_the_request_is_kept_as_it_was_given(tmp_path):
  stop(tmp_path / "a", 0)
  assert json.loads((tmp_path / "a.writing" / "request.json").read_text()) == {"what": 1}
