"""Remote datasets are copied to the local disk before they are read: shards are read at random."""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import contextlib
import fcntl
import hashlib
import os
import pathlib
from typing import Any
import uuid

import tqdm

from oat_jax.data import directory as directory_lib
from oat_jax.data import index as index_lib

_STATS = 32  # remote files asked about at once: each answer takes a round trip
# Scheme that etils.epath knows -> what it needs.
_PACKAGES = {"gs": "'oat-jax[gcs]'", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path has a scheme, such as gs:// or s3://."""
  return "://" in os.fspath(path)


def fetch(
  path: str,
  split: str,
  cache: pathlib.Path,
  limit_gb: float,
  progress: bool = True,
  open_path: Callable[[str], Any] | None = None,
) -> pathlib.Path:
  """Copies the metadata of a remote TFDS directory and the shards of a split into the cache.

  Files that are there already, of the remote's size and time (s3 and hf tell no time), are not
  copied again; each appears under its name only when it is whole, so a stopped copy goes on where
  it was. Of the processes of a host one copies, and the others wait for it.

  Args:
    path: of a version's directory or of its parent, with a scheme that etils.epath knows.
    split: what is wanted of it, see `Directory.shards`; other shards stay where they are.
    cache: copies go below its `datasets/`.
    limit_gb: the most that may lie there of this dataset, in 10**9 bytes.
    progress: whether to show a progress bar.
    open_path: from the string to a path; etils.epath.Path if None.

  Returns:
    The local directory, for `directory.open_directory`.

  Raises:
    FileNotFoundError: there is no such directory, or a shard is missing there.
    ImportError: what reads paths of that scheme is not installed; the message says how to.
    ValueError: an unknown scheme, or the shards exceed the limit; none has been copied.
    OSError: the cache is full or cannot be written; the message says how to choose another one.
  """
  scheme = path.partition("://")[0]
  if scheme not in _PACKAGES:
    raise ValueError(
      f"{path}: unknown scheme '{scheme}'; it must be one of {', '.join(_PACKAGES)}; a local "
      "directory is given without one"
    )
  if open_path is None:
    from etils import epath

    open_path = epath.Path
  try:
    source = _find(open_path(path), path)
  except ImportError as error:
    raise ImportError(f"{path}: {error}; pip install {_PACKAGES[scheme]}") from error
  local = cache / "datasets" / hashlib.sha256(str(source).encode()).hexdigest()[:16]
  with index_lib.cache_errors(cache):
    local.mkdir(parents=True, exist_ok=True)
    lock = open(local.with_suffix(".lock"), "w")
  with lock:
    with contextlib.suppress(OSError):  # without locks each process copies for itself
      fcntl.flock(lock, fcntl.LOCK_EX)
    _fetch(source, local, path, split, cache, limit_gb, progress)
  return local


def _fetch(
  source: Any,
  local: pathlib.Path,
  path: str,
  split: str,
  cache: pathlib.Path,
  limit_gb: float,
  progress: bool,
) -> None:
  """Copies what is not in `local` yet; see `fetch`."""
  with index_lib.cache_errors(cache):
    for name in ("features.json", "dataset_info.json"):
      content, target = b"".join(_blocks(source / name)), local / name
      if not target.is_file() or target.read_bytes() != content:  # its time is part of index keys
        _write(target, [content])
  shards = directory_lib.open_directory(local).shards(split)

  def stat(remote: Any) -> Any:
    try:
      return remote.stat()
    except FileNotFoundError as error:
      message = f"{remote}: a shard of split '{split}' is missing there"
      raise FileNotFoundError(message) from error

  # A shard that several parts are taken of is there once.
  remotes = {name: source / name for name in dict.fromkeys(shard.path.name for shard in shards)}
  with futures.ThreadPoolExecutor(_STATS) as pool:
    stats = dict(zip(remotes, pool.map(stat, remotes.values())))
  total = sum(entry.length for entry in stats.values())
  if total > limit_gb * 1e9:
    raise ValueError(
      f"{path}: split '{split}' has {total / 1e9:.3g} GB in {len(shards)} shards, more than "
      f"the limit of {limit_gb} GB; raise fetch_gb (config.data.fetch_gb), or take a part, such as "
      "train[:1%]"
    )
  with (
    index_lib.cache_errors(cache),
    tqdm.tqdm(
      desc=f"fetching {path}", unit="B", unit_scale=True, total=total, disable=not progress
    ) as bar,
  ):
    for name, remote in remotes.items():
      if _is_copy(local / name, stats[name]):
        bar.update(stats[name].length)
      else:
        _write(local / name, _blocks(remote, bar.update), stats[name].mtime)


def _is_copy(target: pathlib.Path, remote: Any) -> bool:
  """Whether a file is that of a remote's `stat`, as far as size and time tell."""
  if not target.exists():
    return False
  local = target.stat()
  # Remotes count whole seconds, some local disks only every other; 0 is a remote without times.
  same_time = not remote.mtime or abs(local.st_mtime - remote.mtime) < 2
  return local.st_size == remote.length and same_time


def _find(path: Any, text: str) -> Any:
  """Returns the directory itself, or that of its newest version."""
  if directory_lib.is_tfds(path):
    return path
  versions = [p.name for p in path.iterdir()] if path.exists() else []
  newest = directory_lib.newest(versions)
  if not newest or not directory_lib.is_tfds(path / newest):
    raise FileNotFoundError(
      f"{text}: no TFDS directory, which holds features.json and dataset_info.json, or versions"
    )
  return path / newest


def _write(target: pathlib.Path, blocks: Iterable[bytes], mtime: float = 0) -> None:
  partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
  try:
    with open(partial, "wb") as writer:
      for block in blocks:
        writer.write(block)
    if mtime:
      os.utime(partial, (mtime, mtime))
    partial.replace(target)
  finally:
    partial.unlink(missing_ok=True)


def _blocks(source: Any, update: Callable[[int], Any] | None = None) -> Iterator[bytes]:
  try:
    with source.open("rb") as reader:
      while block := reader.read(4 << 20):
        yield block
        if update is not None:
          update(len(block))
  except OSError as error:
    if error.filename is None:  # a lost connection does not say of what; a full disk neither
      error.filename = str(source)
    raise
