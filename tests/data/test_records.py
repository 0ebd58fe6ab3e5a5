"""Pieces of records at random, in both formats, and files that change behind the reader's back."""

import os
import resource

import made
import numpy as np
import pytest

from oat_jax.data import records

PAYLOADS = [os.urandom(size) for size in (50, 1, 3000, 7)]


def make(paths, file_format):
  """Records of shards that hold PAYLOADS[:1] and PAYLOADS[1:]."""
  for path, payloads in zip(paths, (PAYLOADS[:1], PAYLOADS[1:])):
    made.write_shard(path, payloads, file_format)
  places = []
  for e, (file, number) in enumerate([(0, 0), (1, 0), (1, 1), (1, 2)]):
    opened = records.open_records(paths[file], file_format)
    assert bytes(opened[number]) == PAYLOADS[e]
    first = int(opened.offsets[number]) if file_format == "tfrecord" else 0
    places.append((file, number, first))
  files = tuple(records.describe(path) for path in paths)
  return records.Records(files, file_format, np.array(places, np.int64))


@pytest.fixture(params=["tfrecord", "array_record"])
def made_in(request, tmp_path):
  paths = [tmp_path / "a", tmp_path / "b"]
  return make(paths, request.param), paths


def test_any_piece_of_any_record(made_in):
  found, paths = made_in
  rng = np.random.default_rng(0)
  for _ in range(50):
    e = int(rng.integers(4))
    start, end = sorted(rng.integers(0, len(PAYLOADS[e]) + 1, 2).tolist())
    assert bytes(found.read(e, start, end - start)) == PAYLOADS[e][start:end]
  assert found.where(3) == f"{paths[1]}: record 2"
  assert found.where(0) == f"{paths[0]}: record 0"


@pytest.mark.parametrize("opened", [False, True])
def test_a_file_that_changed_is_an_error(tmp_path, opened):
  paths = [tmp_path / "a", tmp_path / "b"]
  for change in ("shrunk", "touched", "gone"):
    found = make(paths, "tfrecord")
    if opened:
      found.read(1, 0, 1)
    if change == "shrunk":
      os.truncate(paths[1], 30)
    elif change == "touched":
      os.utime(paths[1], ns=(0, 0))
    elif opened:  # whoever has it open can still read it
      continue
    else:
      paths[1].unlink()
    error = FileNotFoundError if change == "gone" else ValueError
    with pytest.raises(error, match=str(paths[1])):
      found.read(2, 0, 10)
      found.check(np.arange(3))
    assert found.read(0, 0, 50) == PAYLOADS[0]


def test_a_changed_array_record_is_an_error(tmp_path):
  paths = [tmp_path / "a", tmp_path / "b"]
  found = make(paths, "array_record")
  os.utime(paths[1], ns=(0, 0))
  with pytest.raises(ValueError, match=f"{paths[1]}: the file has changed since it was indexed"):
    found.read(1, 0, 1)
    found.check(np.array([1]))


def test_descriptors_do_not_run_out(tmp_path):
  path, limits = tmp_path / "shard", resource.getrlimit(resource.RLIMIT_NOFILE)
  records._open.cache_clear()
  open_now = len(os.listdir("/proc/self/fd"))
  made.write_shard(path, PAYLOADS)
  files = []
  for i in range(400):
    os.link(path, tmp_path / str(i))
    files.append(records.describe(tmp_path / str(i)))
  # Hard links share one inode, whose times the last link has set.
  files = tuple(file._replace(mtime_ns=path.stat().st_mtime_ns) for file in files)
  places = np.array([(i, 0, 12) for i in range(len(files))])
  found = records.Records(files, "tfrecord", places)
  resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 300, limits[1]))
  try:
    for i in range(len(files)):
      assert found.read(i, 0, 50) == PAYLOADS[0]
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    records._open.cache_clear()
