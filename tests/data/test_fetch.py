"""Copying remote datasets, from a remote that is a directory with its own kind of path."""

import concurrent.futures
import errno
import fcntl
import io
import os
import re
import threading
import types

import made
import pytest

from oat_jax.data import fetch

SHARDS = ("made-train.tfrecord-00000-of-00003", "made-train.tfrecord-00002-of-00003")


class Remote:
  """As much of an epath as is needed, and no local path at all; counts what is read."""

  def __init__(self, local, opened, fail=None):
    self._local, self._opened, self._fail = local, opened, fail

  def __truediv__(self, name):
    return Remote(self._local / name, self._opened, self._fail)

  def __str__(self):
    return f"gs://{self._local.relative_to(self._local.anchor)}"

  @property
  def name(self):
    return self._local.name

  def exists(self):
    assert "tfrecord" not in self.name, "a round trip for every shard"
    return self._local.exists()

  def is_file(self):
    return self._local.is_file()

  def iterdir(self):
    return iter([self / path.name for path in self._local.iterdir()])

  def stat(self):
    stat = self._local.stat()
    return types.SimpleNamespace(length=stat.st_size, mtime=int(stat.st_mtime))

  def open(self, mode):
    assert mode == "rb"
    self._opened.append(self.name)
    content = self._local.read_bytes()
    return Failing(content) if self.name == self._fail else io.BytesIO(content)


class Failing(io.BytesIO):
  """A connection that is lost after half of the file."""

  def read(self, size=-1):
    if self.tell():
      raise OSError(errno.ECONNRESET, "Connection reset by peer")
    return super().read(len(self.getvalue()) // 2)


@pytest.fixture
def remote(tmp_path):
  """Fetches into `cache`; returns it and the names of files that were opened."""
  features, payloads = made.small()
  shards = {"train": [payloads[:2], [], payloads[2:]], "val": [payloads[:1]]}
  made.write(tmp_path / "remote" / "1.2.0", features, shards)
  made.write(tmp_path / "remote" / "1.10.0", features, shards)
  (tmp_path / "remote" / "1.11.0.incomplete").mkdir()
  opened = []

  def run(split="train", limit_gb=1.0, fail=None, below="remote", cache="cache"):
    opened.clear()
    open_path = lambda path: Remote(tmp_path / path.removeprefix("gs://"), opened, fail)
    return fetch.fetch(f"gs://{below}", split, tmp_path / cache, limit_gb, False, open_path)

  run.opened = opened
  run.path = tmp_path
  return run


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_only_the_wanted_shards_are_copied(remote):
  local = remote()
  assert names(local) == ["dataset_info.json", "features.json", *SHARDS]
  for path in local.iterdir():
    assert path.read_bytes() == (remote.path / "remote" / "1.10.0" / path.name).read_bytes()
  assert made.read(local).num_episodes == 5
  with pytest.raises(FileNotFoundError, match="made-val.*a shard of split 'val' is missing"):
    made.read(local, "val")
  assert remote("val") == local
  assert made.read(local, "val").num_episodes == 1


def test_a_part_of_a_split_copies_the_shards_that_hold_it(remote):
  local = remote("train[:2]")
  assert names(local)[2:] == [SHARDS[0]]
  assert made.read(local, "train[:2]").num_episodes == 2


def test_what_is_there_is_not_copied_again(remote):
  local = remote()
  assert sorted(remote.opened)[2:] == list(SHARDS)
  assert remote() == local and sorted(remote.opened) == ["dataset_info.json", "features.json"]
  (local / SHARDS[1]).write_bytes(b"another size")
  assert remote() == local and sorted(remote.opened)[2:] == [SHARDS[1]]
  assert made.read(local).num_episodes == 5


def test_metadata_that_did_not_change_keep_their_files(remote):
  """Keys of indices have their times: a dataset would be indexed anew at every start."""
  local = remote()
  os.utime(local / "features.json", (1, 1))
  files = lambda: [(path.stat().st_ino, path.stat().st_mtime_ns) for path in local.iterdir()]
  before = files()
  assert remote() == local and files() == before
  info = remote.path / "remote" / "1.10.0" / "dataset_info.json"
  info.write_text(info.read_text() + " ")
  remote()
  assert (local / info.name).read_bytes() == info.read_bytes()


def test_a_shard_that_changed_at_the_same_size_is_copied_again(remote):
  shard = remote.path / "remote" / "1.10.0" / SHARDS[0]
  os.utime(shard, (1e9, 1e9))
  local = remote()
  assert os.stat(local / SHARDS[0]).st_mtime == 1e9
  content = bytes(reversed(shard.read_bytes()))
  shard.write_bytes(content)
  os.utime(shard, (1e9 + 60, 1e9 + 60))
  assert remote() == local and sorted(remote.opened)[2:] == [SHARDS[0]]
  assert (local / SHARDS[0]).read_bytes() == content
  assert remote() == local and not sorted(remote.opened)[2:]


def test_a_remote_without_times_is_known_by_its_sizes(remote, monkeypatch):
  stat = Remote.stat
  untimed = lambda self: types.SimpleNamespace(length=stat(self).length, mtime=0)
  monkeypatch.setattr(Remote, "stat", untimed)
  remote()
  assert remote() and not sorted(remote.opened)[2:]


def test_shards_are_asked_about_at_once(remote, monkeypatch):
  both, stat = threading.Barrier(len(SHARDS)), Remote.stat

  def waiting(self):
    both.wait(timeout=10)  # for the question about the other shard
    return stat(self)

  monkeypatch.setattr(Remote, "stat", waiting)
  assert names(remote())[2:] == list(SHARDS)


def test_the_second_of_two_waits_and_copies_nothing(remote):
  local = remote()
  for name in SHARDS:
    (local / name).rename(remote.path / name)
  with (
    open(local.with_suffix(".lock"), "w") as lock,
    concurrent.futures.ThreadPoolExecutor() as pool,
  ):
    fcntl.flock(lock, fcntl.LOCK_EX)
    second = pool.submit(remote)
    with pytest.raises(concurrent.futures.TimeoutError):
      second.result(timeout=0.3)
    for name in SHARDS:
      (remote.path / name).rename(local / name)
    fcntl.flock(lock, fcntl.LOCK_UN)
    assert second.result(timeout=30) == local
  assert sorted(remote.opened) == ["dataset_info.json", "features.json"]


def test_a_cache_without_locks_is_used(remote, monkeypatch):
  def flock(file, how):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  assert names(remote())[2:] == list(SHARDS)


def test_versions_and_places_are_kept_apart(remote):
  assert len({remote(), remote(below="remote/1.2.0"), remote(cache="another")}) == 3
  assert remote(below="remote/1.10.0") == remote()


def test_a_stopped_copy_goes_on(remote):
  with pytest.raises(OSError, match="Connection reset by peer: 'gs://.*00002-of-00003'") as error:
    remote(fail=SHARDS[1])
  assert "OAT_JAX_CACHE" not in str(error.value)  # the cache is not to blame
  (local,) = filter(os.path.isdir, (remote.path / "cache" / "datasets").iterdir())
  assert names(local)[2:] == [SHARDS[0]]
  # A killed process leaves what it was writing.
  (local / f"{SHARDS[1]}.1234.part").write_bytes(b"half")
  assert remote() == local and sorted(remote.opened)[2:] == [SHARDS[1]]
  assert made.read(local).num_episodes == 5


def test_the_limit_is_checked_before_a_shard_is_copied(remote):
  sizes = [(remote.path / "remote" / "1.10.0" / name).stat().st_size for name in SHARDS]
  message = "gs://remote: split 'train' has .* GB in 2 shards, more than the limit of 1e-06 GB"
  with pytest.raises(ValueError, match=f"{message}; raise fetch_gb .config.data.fetch_gb., or"):
    remote(limit_gb=1e-6)
  assert not set(remote.opened) & set(SHARDS)
  with pytest.raises(ValueError, match="more than the limit"):
    remote(limit_gb=(sum(sizes) - 1) / 1e9)
  remote(limit_gb=sum(sizes) / 1e9)


def test_what_is_not_there(remote):
  for below in ("nowhere", "remote/1.11.0.incomplete", "remote/1.2.0/made"):
    with pytest.raises(FileNotFoundError, match=f"gs://{below}: no TFDS directory"):
      remote(below=below)
  with pytest.raises(ValueError, match="there is no split 'test'; it has train, val"):
    remote("test")
  (remote.path / "remote" / "1.10.0" / SHARDS[1]).unlink()
  with pytest.raises(
    FileNotFoundError, match=f"^gs://.*{SHARDS[1]}: a shard of split 'train' is mi"
  ):
    remote()
  assert not set(remote.opened) & set(SHARDS)
  (remote.path / "remote" / "1.10.0" / "features.json").unlink()
  with pytest.raises(FileNotFoundError, match="gs://remote: no TFDS directory"):
    remote()


def test_damaged_metadata_are_named(remote):
  (remote.path / "remote" / "1.10.0" / "features.json").write_text("{")
  with pytest.raises(ValueError, match="features.json: not a JSON file"):
    remote()


def test_a_full_disk_says_what_to_do_and_leaves_no_part(remote, monkeypatch):
  class Full(io.FileIO):
    def write(self, data):
      raise OSError(errno.ENOSPC, "No space left on device")

  is_shard = lambda path: "tfrecord" in str(path)
  disk = lambda path, mode: Full(path, "w") if is_shard(path) else open(path, mode)
  monkeypatch.setattr(fetch, "open", disk, raising=False)
  place = re.escape(str(remote.path / "cache"))
  with pytest.raises(OSError, match=f"{place}: .*No space left on device.*OAT_JAX_CACHE"):
    remote()
  (local,) = filter(os.path.isdir, (remote.path / "cache" / "datasets").iterdir())
  assert names(local) == ["dataset_info.json", "features.json"]


def test_a_file_in_the_place_of_the_cache(remote):
  (remote.path / "file").write_text("")
  with pytest.raises(OSError, match="file: .*OAT_JAX_CACHE or config.data.cache"):
    remote(cache="file")


@pytest.mark.parametrize(
  ("scheme", "package"),
  [("gs", "'oat-jax.gcs.'"), ("s3", "s3fs"), ("az", "adlfs"), ("hf", "huggingface_hub")],
)
def test_what_is_not_installed_is_named(tmp_path, scheme, package):
  def open_path(path):
    raise ImportError("Please install it")

  message = f"^{scheme}://bucket/made: Please install it; pip install {package}$"
  with pytest.raises(ImportError, match=message):
    fetch.fetch(f"{scheme}://bucket/made", "train", tmp_path, 1.0, False, open_path)


@pytest.mark.parametrize("path", ["https://host/made", "file:///data/made", "weird://made"])
def test_unknown_schemes_list_those_that_are_known(tmp_path, path):
  scheme = path.partition(":")[0]
  with pytest.raises(ValueError, match=f"^{path}: unknown scheme '{scheme}'.* of gs, s3, az, hf;"):
    fetch.fetch(path, "train", tmp_path, 1.0, False)


def test_schemes():
  assert fetch.is_remote("gs://bucket/dataset") and fetch.is_remote("s3://bucket")
  assert not fetch.is_remote("/data/bridge") and not fetch.is_remote("C:/data")
