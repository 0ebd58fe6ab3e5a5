"""Remote datasets are copied to the local disk before they are read: shards are read at random."""

from collections.abc import Callable, Iterator
import hashlib
import os
import pathlib
from typing import Any
import uuid

import tqdm

from oat_jax.data import directory as directory_lib
from oat_jax.data import index as index_lib


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

  Files that are there already, at their size, are not copied again; each appears under its name
  only when it is whole, so a stopped copy goes on where it was.

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
    ValueError: the shards exceed the limit; nothing of them has been copied.
    OSError: the cache is full or cannot be written; the message says how to choose another one.
  """
  if open_path is None:
    from etils import epath

    open_path = epath.Path
  source = _find(open_path(path), path)
  local = cache / "datasets" / hashlib.sha256(str(source).encode()).hexdigest()[:16]
  with index_lib.cache_errors(cache):
    local.mkdir(parents=True, exist_ok=True)
    for name in ("features.json", "dataset_info.json"):
      _copy(source / name, local / name, lambda count: None)
  shards = directory_lib.open_directory(local).shards(split)
  sizes = {}
  for shard in shards:
    remote = source / shard.path.name
    if not remote.exists():
      raise FileNotFoundError(f"{remote}: a shard of split '{split}' is missing there")
    sizes[remote] = remote.stat().length
  total = sum(sizes.values())
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
    for remote, size in sizes.items():
      target = local / remote.name
      if target.exists() and target.stat().st_size == size:
        bar.update(size)
      else:
        _copy(remote, target, bar.update)
  return local


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


def _copy(source: Any, target: pathlib.Path, update: Callable[[int], Any]) -> None:
  partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
  try:
    with open(partial, "wb") as writer:
      for block in _blocks(source):
        writer.write(block)
        update(len(block))
    partial.replace(target)
  finally:
    partial.unlink(missing_ok=True)


def _blocks(source: Any) -> Iterator[bytes]:
  try:
    with source.open("rb") as reader:
      while block := reader.read(4 << 20):
        yield block
  except OSError as error:
    if error.filename is None:  # a lost connection does not say of what; a full disk neither
      error.filename = str(source)
    raise
