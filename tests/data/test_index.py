"""The index cache: what it is keyed on, damaged entries, killed and concurrent builders, disks."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import made
import numpy as np
import pytest
import tiny

from oat_jax.data import directory
from oat_jax.data import episode
from oat_jax.data import index
from oat_jax.data import records
from oat_jax.data import rlds
from oat_jax.data import standardize


@pytest.fixture
def small(tmp_path):
  features, payloads = made.small()
  shards = {"train": [payloads[:2], payloads[2:]], "val": [payloads[:1]]}
  made.write(tmp_path / "made", features, shards)
  return tmp_path / "made"


@pytest.fixture
def cache(tmp_path):
  return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch):
  """Counts how often an index is built."""
  calls, build = [], index._build
  monkeypatch.setattr(index, "_build", lambda *args: calls.append(0) or build(*args))
  return calls


def entries(cache):
  return sorted(path for path in (cache / "index").glob("*/"))


def bump(path):
  """Lets a file look as if it had been written again."""
  stat = path.stat()
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def test_a_second_opening_reads_no_shard(small, cache, monkeypatch):
  first = made.contents(made.read(small, cache=cache))

  def fail(*_):
    raise AssertionError("a shard was opened")

  monkeypatch.setattr(records, "open_records", fail)
  monkeypatch.setattr(episode, "parse", fail)
  assert made.contents(made.read(small, cache=cache)) == first
  with pytest.raises(AssertionError, match="a shard was opened"):
    made.read(small, "val", cache=cache)


def test_what_has_been_indexed_is_mapped_and_read_only(small, cache):
  episodes = made.read(small, cache=cache)
  for array in (episodes.actions_LA, episodes.states_LS, episodes.tasks_L, episodes.starts_E):
    assert isinstance(array.base, np.memmap) and not array.flags.writeable


@pytest.mark.parametrize(
  ("change", "rebuilt"),
  [
    (lambda p: None, False),
    (lambda p: bump(p / "made-train.tfrecord-00001-of-00002"), True),
    (lambda p: bump(p / "features.json"), True),
    (lambda p: bump(p / "dataset_info.json"), True),
    (lambda p: bump(p / "made-val.tfrecord-00000-of-00001"), False),
    (lambda p: (p / "README.md").write_text("new"), False),
    (lambda p: os.chmod(p / "made-train.tfrecord-00001-of-00002", 0o600), False),
  ],
)
def test_what_an_entry_depends_on(small, cache, builds, change, rebuilt):
  before = made.contents(made.read(small, cache=cache))
  change(small)
  assert made.contents(made.read(small, cache=cache)) == before
  assert len(builds) == 1 + rebuilt


def test_another_size_or_content_is_indexed_anew(small, cache):
  made.read(small, cache=cache)
  _, payloads = made.small(lengths=(2, 2, 2))
  path = small / "made-train.tfrecord-00001-of-00002"
  times = path.stat()
  made.write_shard(path, payloads)
  os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync and cp -p keep them
  assert np.diff(made.read(small, cache=cache).starts_E).tolist() == [3, 1, 2, 2, 2]


def test_each_want_has_its_own_entry(small, cache, builds):
  wants = [
    ("train", made.SMALL, "raise"),
    ("train", made.SMALL, "skip"),
    ("train", made.SMALL._replace(cameras=()), "raise"),
    ("train", made.SMALL._replace(cameras=(("other", "observation/top"),)), "raise"),
    ("train", made.SMALL._replace(task=""), "raise"),
    ("train", standardize.plain(state=("observation/unread",)), "raise"),
    ("train", standardize.plain(state=("observation/state", "observation/unread")), "raise"),
    ("train[:3]", made.SMALL, "raise"),
    ("val", made.SMALL, "raise"),
  ]
  read = lambda split, standard, on_error: made.read(
    small, split, standard, on_error=on_error, cache=cache
  )
  first = [made.contents(read(*want)) for want in wants]
  assert len(builds) == len(entries(cache)) == len(wants)
  assert [made.contents(read(*want)) for want in wants] == first
  # Sizes are for whoever decodes, not for the index.
  made.read(small, image_size=(4, 4), cache=cache)
  assert len(builds) == len(wants)


def test_the_code_of_a_named_standard_is_part_of_the_key(small, cache, builds, monkeypatch):
  named = made.SMALL._replace(name="known")
  monkeypatch.setitem(standardize.STANDARDS, "known", named)
  for _ in range(2):
    made.read(small, standard=named, cache=cache)
  assert len(builds) == 1
  source = cache.with_name("standardize.py")
  source.write_text("# changed")
  monkeypatch.setattr(standardize, "__file__", str(source))
  made.read(small, standard=named, cache=cache)
  made.read(small, cache=cache)  # a plain one has no code of its own
  assert len(builds) == 3
  made.read(small, standard=named, cache=cache)
  assert len(builds) == 3


def truncate(path):
  os.truncate(path, path.stat().st_size - 1)


DAMAGE = {
  "no meta": lambda e: (e / "meta.json").unlink(),
  "empty meta": lambda e: (e / "meta.json").write_text(""),
  "cut meta": lambda e: truncate(e / "meta.json"),
  "other json": lambda e: (e / "meta.json").write_text("[]"),
  "edited meta": lambda e: (e / "meta.json").write_bytes(
    (e / "meta.json").read_bytes().replace(b"actions", b"sctiona")
  ),
  "binary meta": lambda e: (e / "meta.json").write_bytes(bytes(range(256))),
  "an array is missing": lambda e: (e / "actions").unlink(),
  "an array is cut": lambda e: truncate(e / "states"),
  "an array is longer": lambda e: (e / "tasks").write_bytes((e / "tasks").read_bytes() + b"\0"),
  "nothing in it": lambda e: [path.unlink() for path in e.iterdir()],
  "a directory for an array": lambda e: ((e / "starts").unlink(), (e / "starts").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entries_are_built_again(small, cache, builds, damage):
  before = made.contents(made.read(small, cache=cache))
  (entry,) = entries(cache)
  DAMAGE[damage](entry)
  assert made.contents(made.read(small, cache=cache)) == before
  assert len(builds) == 2
  assert made.contents(made.read(small, cache=cache)) == before
  assert len(builds) == 2 and entries(cache) == [entry]


def test_the_fingerprint_is_that_of_the_contents(small, cache, tmp_path):
  fingerprint = made.read(small, cache=cache).fingerprint
  shutil.copytree(small, tmp_path / "copy")
  assert made.read(tmp_path / "copy", cache=cache).fingerprint == fingerprint
  _, payloads = made.small()
  one = {"train": [payloads], "val": [payloads[:1]]}
  made.write(tmp_path / "one shard", made.small()[0], one)
  assert made.read(tmp_path / "one shard", cache=cache).fingerprint == fingerprint

  def other(features):
    features["steps/action"].float_list.value[0] += 1

  changes = [other, lambda f: f["steps/text"].bytes_list.value.__setitem__(0, b"other")]
  found = {fingerprint}
  for i, change in enumerate(changes):
    made.write(tmp_path / str(i), made.small()[0], [made.replaced(payloads, 3, change)])
    found.add(made.read(tmp_path / str(i), cache=cache).fingerprint)
  found.add(made.read(small, "train[:4]", cache=cache).fingerprint)
  found.add(made.read(small, "train[1:]+train[:1]", cache=cache).fingerprint)
  assert len(found) == 5


def test_a_shard_that_changes_while_it_is_indexed_is_noticed(small, cache, monkeypatch):
  path, parse = small / "made-train.tfrecord-00001-of-00002", episode.parse

  def change(*args):
    bump(path)
    return parse(*args)

  monkeypatch.setattr(episode, "parse", change)
  episodes = made.read(small, cache=cache)
  with pytest.raises(ValueError, match="00001-of-00002: the file has changed since it was indexed"):
    episodes.cameras["top"](np.array([14]))


CHILD = """
import pathlib, sys, time
import made
from oat_jax.data import episode, index

slow, path, cache = float(sys.argv[1]), sys.argv[2], sys.argv[3]
parse, build = episode.parse, index._build

def parsing(*args):
  pathlib.Path(cache + ".started").touch()
  time.sleep(slow)
  return parse(*args)

def building(*args):
  print("built", flush=True)
  return build(*args)

episode.parse, index._build = parsing, building
episodes = made.read(path, cache=cache)
print(episodes.fingerprint, episodes.num_episodes, flush=True)
"""


@contextlib.contextmanager
def child(slow, small, cache):
  paths = [str(tiny.ROOT), str(tiny.ROOT / "tests"), str(pathlib.Path(__file__).parent)]
  process = subprocess.Popen(
    [sys.executable, "-c", CHILD, str(slow), str(small), str(cache)],
    env=tiny.environment(PYTHONPATH=os.pathsep.join(paths)),
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    yield process
  finally:
    process.kill()
    process.wait()


def wait_until(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_a_builder_that_is_killed_leaves_nothing_that_counts(small, cache):
  started = pathlib.Path(f"{cache}.started")
  with child(60, small, cache) as process:
    wait_until(started.exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
  (left,) = entries(cache)
  assert not (left / "meta.json").exists()
  episodes = made.read(small, cache=cache)
  assert episodes.num_episodes == 5
  assert made.contents(episodes) == made.contents(made.read(small, cache=cache.with_name("other")))
  assert entries(cache) == [episodes.cache]  # what the dead process left is gone


def test_two_processes_at_once_agree_and_build_once(small, cache):
  started = pathlib.Path(f"{cache}.started")
  with child(0.1, small, cache) as first, child(0.1, small, cache) as second:
    outs = [process.communicate(timeout=120)[0].split() for process in (first, second)]
    assert first.returncode == second.returncode == 0
  assert started.exists() and len(entries(cache)) == 1
  fingerprint = made.read(small, cache=cache).fingerprint
  assert sorted(outs, key=len) == [[fingerprint, "5"], ["built", fingerprint, "5"]]


def test_without_locks_the_first_to_finish_stays(small, cache, monkeypatch):
  """Some network disks have no locks: two may build at once."""

  def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(index.fcntl, "flock", no_locks)
  build, inner = index._build, []

  def racing(*args):
    if not inner:
      inner.append(1)
      inner.append(made.read(small, cache=cache))
    return build(*args)

  monkeypatch.setattr(index, "_build", racing)
  outer = made.read(small, cache=cache)
  assert made.contents(outer) == made.contents(inner[1])
  assert entries(cache) == [outer.cache]


USELESS = "the index cache cannot be used.*OAT_JAX_CACHE or config.data.cache"


def test_a_file_in_the_place_of_the_cache(small, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  for place in (tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(OSError, match=f"{place}: {USELESS}"):
      made.read(small, cache=place)
  monkeypatch.setenv("OAT_JAX_CACHE", str(tmp_path / "file"))
  with pytest.raises(OSError, match=f"{tmp_path}/file: {USELESS}"):
    made.read(small)


def test_a_full_disk_leaves_nothing_and_says_what_to_do(small, cache, monkeypatch):
  class Full:
    """A disk that takes no more than so many bytes."""

    def __init__(self, path, mode):
      self._file = open(path, mode)

    def write(self, data):
      self._file.write(bytes(data)[:10])
      raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
      self._file.close()

  with monkeypatch.context() as patch:
    disk = lambda path, mode="r": Full(path, mode) if mode == "wb" else open(path, mode)
    patch.setattr(index, "open", disk, raising=False)
    with pytest.raises(OSError, match=f"{cache}: {USELESS}") as error:
      made.read(small, cache=cache)
    assert "No space left on device" in str(error.value)
  assert entries(cache) == []
  assert made.read(small, cache=cache).num_episodes == 5


def test_a_disk_that_is_really_full(small, cache):
  """/dev/full takes what is buffered and fails when it is flushed, as full disks do."""
  found = directory.open_directory(small)
  wanted = episode.wanted(found, made.SMALL)
  cache.mkdir()
  for name in ("actions", "states", "tasks", "camera_top"):
    (cache / name).symlink_to("/dev/full")
  with pytest.raises(OSError, match=f"{cache}: {USELESS}"), index.cache_errors(cache):
    index._build(cache, found, found.shards("train"), wanted, "raise", False)


def test_errors_of_shards_are_not_blamed_on_the_cache(small, tmp_path, monkeypatch):
  def fail(path, file_format):
    raise OSError(errno.EIO, "Input/output error", str(path))

  monkeypatch.setattr(records, "open_records", fail)
  with pytest.raises(OSError, match="Input/output error: .*made-train") as error:
    made.read(small, cache=str(small)[:-1])  # whose name the dataset's begins with
  assert "OAT_JAX_CACHE" not in str(error.value)


def test_a_cache_that_cannot_be_written_still_serves_what_it_has(small, cache, monkeypatch):
  before = made.contents(made.read(small, cache=cache))

  def read_only(self, *_, **__):
    raise OSError(errno.EROFS, "Read-only file system", str(self))

  monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
  assert made.contents(made.read(small, cache=cache)) == before
  with pytest.raises(OSError, match=USELESS):
    made.read(small, "val", cache=cache)


def test_the_default_cache(monkeypatch, tmp_path):
  monkeypatch.setenv("OAT_JAX_CACHE", str(tmp_path / "a"))
  assert index.default_cache() == tmp_path / "a"
  monkeypatch.delenv("OAT_JAX_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
  assert index.default_cache() == tmp_path / "b" / "oat_jax"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path / "c"))
  assert index.default_cache() == tmp_path / "c" / ".cache" / "oat_jax"


def test_entries_say_where_and_what(small, cache):
  episodes = made.read(small, cache=cache)
  meta = json.loads((episodes.cache / "meta.json").read_bytes().splitlines()[0])
  assert meta["dataset"] == "made" and meta["cameras"] == {"top": "steps/observation/top"}
  assert [pathlib.Path(file[0]).name[-14:] for file in meta["files"]] == [
    "00000-of-00002",
    "00001-of-00002",
  ]
  assert episodes.cache.parent == cache / "index"
  assert rlds.read(small, cache=cache, progress=False).cache != episodes.cache
