"""The index of a split: its numbers as flat arrays, and where its images lie. Built once, cached.

An entry of the cache is a directory of raw little-endian arrays and a `meta.json` that says their
shapes. It is keyed on the shards' names, sizes and modification times and on the wanted features,
made under another name and renamed when whole, so that a reader sees all of it or nothing; a
process that wants what another one is making waits for it.

Axis letters: L all steps of all episodes concatenated, E episodes, A action dims, S state dims,
R distinct language embeddings, D numbers of each.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import sys
from typing import Any, BinaryIO, NamedTuple
import uuid

import numpy as np
import tqdm

from oat_jax.data import directory as directory_lib
from oat_jax.data import episode as episode_lib
from oat_jax.data import records as records_lib
from oat_jax.data import standardize

_FORMAT = 1  # of the cache's entries


class Index(NamedTuple):
  """An opened entry."""

  path: pathlib.Path
  meta: dict[str, Any]
  arrays: dict[str, np.ndarray]  # mapped from disk, read-only


def default_cache() -> pathlib.Path:
  """Returns $OAT_JAX_CACHE, or oat_jax in the user's cache directory."""
  if os.environ.get("OAT_JAX_CACHE"):
    return pathlib.Path(os.environ["OAT_JAX_CACHE"])
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(home) / "oat_jax"


def open_index(
  directory: directory_lib.Directory,
  split: str,
  standard: standardize.Standard,
  cache: pathlib.Path,
  on_error: str = "raise",
  progress: bool = True,
  language: str = "",
) -> Index:
  """Opens the index of a split; builds it first where the cache has none that holds.

  Args:
    directory: the dataset.
    split: see `Directory.shards`.
    standard: what to read, and what to make of it.
    cache: the cache's directory, made if there is none.
    on_error: "raise", or "skip" to leave out episodes that cannot be read and list them.
    progress: whether to show a progress bar once building has taken two seconds.
    language: the feature that embeds the instruction; none if "".

  Raises:
    ValueError, FileNotFoundError: the dataset cannot be read; the message names file, record, step
      and feature.
    OSError: the cache cannot be written or read; the message says how to choose another one.
  """
  if on_error not in ("raise", "skip"):
    raise ValueError(f"on_error is '{on_error}'; it must be 'raise' or 'skip'")
  features = episode_lib.wanted(directory, standard, language)
  shards = directory.shards(split)
  key = _key(directory, split, shards, standard, on_error, language)
  name = f"{directory.name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
  entry = cache / "index" / name
  with cache_errors(cache):
    found = _open(entry)
    if found is not None:
      return found
    entry.parent.mkdir(parents=True, exist_ok=True)
    with open(entry.with_suffix(".lock"), "w") as lock:
      left = []
      with contextlib.suppress(OSError):  # without locks both build; the first to finish stays
        _wait_for(lock, directory)
        entries = entry.parent.iterdir()
        left = [path for path in entries if path.name.startswith(f"{name}.") and path.is_dir()]
      found = _open(entry)
      if found is None:
        for path in (entry, *left):  # damaged, or left by processes that were killed
          shutil.rmtree(path, ignore_errors=True)
        # Not by tempfile, whose directories others may not read: caches are shared.
        partial = entry.with_name(f"{name}.{uuid.uuid4().hex[:8]}")
        partial.mkdir()
        try:
          _build(partial, directory, shards, features, on_error, progress)
          with contextlib.suppress(FileExistsError, OSError):
            partial.rename(entry)
        finally:
          shutil.rmtree(partial, ignore_errors=True)
        found = _open(entry)
    if found is None:
      raise OSError(f"{entry} cannot be read though it was just written")
  return found


def _wait_for(lock: Any, directory: directory_lib.Directory) -> None:
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    print(f"waiting for another process, which indexes {directory.path}", file=sys.stderr)
    fcntl.flock(lock, fcntl.LOCK_EX)


@contextlib.contextmanager
def cache_errors(cache: pathlib.Path) -> Iterator[None]:
  """Makes errors of the cache, not those of other files, say what to do about them."""
  try:
    yield
  except OSError as error:
    if error.filename is not None and not pathlib.Path(str(error.filename)).is_relative_to(cache):
      raise  # a shard; writing to a full disk names no file
    raise OSError(
      f"{cache}: the index cache cannot be used ({error}); free some space, or choose another "
      "directory by OAT_JAX_CACHE or config.data.cache"
    ) from error


def _key(
  directory: directory_lib.Directory,
  split: str,
  shards: list[directory_lib.Shard],
  standard: standardize.Standard,
  on_error: str,
  language: str = "",
) -> dict[str, Any]:
  """Returns all that the contents of an index depend on."""
  files = [directory.path / "features.json", directory.path / "dataset_info.json"]
  for shard in shards:
    if not shard.path.is_file() and on_error == "raise":
      raise FileNotFoundError(
        f"{shard.path}: a shard of split '{split}' is missing; fetch it again"
      )
    files.append(shard.path)
  key = {
    "format": _FORMAT,
    "split": split,
    "files": [records_lib.describe(path) if path.is_file() else str(path) for path in files],
    "standard": standard._replace(convert=None, restore=None),  # pyright: ignore
    "on_error": on_error,
  }
  if standard.name in standardize.STANDARDS:  # whose meaning is its code
    source = pathlib.Path(standardize.__file__).read_bytes()
    key["source"] = hashlib.sha256(source).hexdigest()
  if language:  # and only then: entries without it are those of older versions
    key["language"] = language
  return key


def reopen(entry: pathlib.Path) -> Index:
  """Opens an entry by its path; OSError where it is gone."""
  found = _open(entry)
  if found is None:
    raise OSError(f"{entry}: the index is gone from the cache; start again")
  return found


def _open(entry: pathlib.Path) -> Index | None:
  """Opens an entry; None where there is none, or it is not whole."""
  try:
    text, digest = (entry / "meta.json").read_bytes().split(b"\n")
  except (FileNotFoundError, ValueError):
    return None
  if digest.decode("ascii", "replace") != hashlib.sha256(text).hexdigest():
    return None
  meta, arrays = json.loads(text), {}
  for name, (dtype, shape) in meta["arrays"].items():
    path, dtype = entry / name, np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    if not path.is_file() or path.stat().st_size != size:
      return None
    mapped = np.memmap(path, dtype, "r", shape=tuple(shape)) if size else np.zeros(shape, dtype)
    arrays[name] = np.asarray(mapped)
  return Index(entry, meta, arrays)


def _build(
  out: pathlib.Path,
  directory: directory_lib.Directory,
  shards: list[directory_lib.Shard],
  features: episode_lib.Wanted,
  on_error: str,
  progress: bool,
) -> None:
  """Reads every record once, checked, and appends what is kept of it to the entry's files."""
  writer = _Writer(out)
  # As they are before they are read: whatever changes from now on is noticed when frames are read.
  files = [records_lib.describe(s.path) if s.path.is_file() else ("", 0, 0) for s in shards]
  with contextlib.closing(writer), tqdm.tqdm(
    desc=f"indexing {directory.name}", unit=" episodes", delay=2, disable=not progress,
    total=sum(shard.take for shard in shards),
  ) as bar:  # fmt: skip
    for file, shard in enumerate(shards):
      for number, payload, first, why in _records(shard, directory.file_format):
        if not why:
          try:
            writer.append(file, number, first, episode_lib.parse(payload, features))
          except ValueError as error:
            why = f"{shard.path}: record {number}: {error}"
        if why:
          if on_error == "raise":
            raise ValueError(why)
          writer.skipped.append(why)
        bar.update()
  writer.finish(
    {
      "dataset": directory.name,
      "version": directory.version,
      "files": files,
      "file_format": directory.file_format,
      "standard": features.standard.name,
      "cameras": {camera: leaf.name for camera, leaf in features.cameras.items()},
    }
  )


def _records(shard: directory_lib.Shard, file_format: str) -> Iterator[tuple[int, Any, int, str]]:
  """Yields number, payload and its first byte of a shard's records, or why a record is lost."""
  try:
    file = records_lib.open_records(shard.path, file_format)
    length, damage = len(file), file.damage
  except (FileNotFoundError, IsADirectoryError):
    file, length, damage = None, 0, f"{shard.path}: the shard is missing; fetch it again"
  except ValueError as error:
    file, length, damage = None, 0, str(error)
  if not damage and length != shard.length:
    damage = (
      f"{shard.path}: holds {length} records, but dataset_info.json says {shard.length}; fetch the "
      "shard or dataset_info.json again"
    )
  for number in range(shard.skip, shard.skip + shard.take):
    payload, first, why = b"", 0, ""
    if file is None or number >= length or length > shard.length:
      why = f"{damage} (record {number} is lost)"
    else:
      try:
        payload, first = file[number], int(file.offsets[number])
      except ValueError as error:
        why = str(error)
    yield number, payload, first, why


class _Writer:
  """Appends episodes to an entry's files.

  Memory holds what grows with episodes and with distinct embeddings, not with steps.
  """

  def __init__(self, out: pathlib.Path):
    self._out = out
    self._files: dict[str, BinaryIO] = {}
    self._shapes: dict[str, tuple[str, list[int]]] = {}
    self._lengths: list[int] = []
    self._places: list[tuple[int, int, int]] = []
    self._tasks: dict[str, int] = {}  # by first appearance
    self._sizes: dict[str, dict[tuple[int, int], int]] = {}  # by camera: size -> first episode
    self._language: dict[bytes, int] = {}  # an embedding's hash -> its row
    self.skipped: list[str] = []

  def append(self, file: int, number: int, first: int, episode: episode_lib.Episode) -> None:
    """Adds an episode; ValueError, with nothing added, where it does not fit those before it."""
    arrays = {"actions": episode.actions_LA, "states": episode.states_LS}
    arrays |= {f"camera_{camera}": spans_L2 for camera, spans_L2 in episode.spans_L2.items()}
    if episode.language_LD is not None:
      arrays["language"] = episode.language_LD
    for name, array in arrays.items():
      dtype, shape = self._shapes.get(name, (array.dtype.str, array.shape))
      if (array.dtype.str, array.shape[1:]) != (dtype, tuple(shape[1:])):
        raise ValueError(
          f"{name} are {array.dtype}{list(array.shape[1:])} a step; in the episodes before they "
          f"were {dtype}{list(shape[1:])}"
        )
    length = len(episode.actions_LA)
    ids = np.array([self._tasks.setdefault(task, len(self._tasks)) for task in episode.tasks])
    arrays["tasks"] = np.broadcast_to(ids.astype(np.int32), (length,))
    if "language" in arrays:
      arrays["language"], rows_L = self._distinct(arrays["language"])
      arrays["language_rows"] = np.broadcast_to(rows_L, (length,))
    for name, array in arrays.items():
      self._write(name, array)
    for camera, size in episode.sizes.items():
      self._sizes.setdefault(camera, {}).setdefault(size, len(self._lengths))
    self._lengths.append(length)
    self._places.append((file, number, first))

  def _distinct(self, language_LD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the embeddings not seen before (R, D), and the row of each, int32 (L,)."""
    changes = np.flatnonzero((language_LD[1:] != language_LD[:-1]).any(1)) + 1
    begins, rows, fresh = [0, *changes.tolist()], [], []
    for begin in begins:
      key = hashlib.sha256(language_LD[begin].tobytes()).digest()
      if key not in self._language:
        self._language[key] = len(self._language)
        fresh.append(begin)
      rows.append(self._language[key])
    repeats = np.diff([*begins, len(language_LD)])
    return language_LD[fresh], np.repeat(np.array(rows, np.int32), repeats)

  def _write(self, name: str, array: np.ndarray) -> None:
    array = np.ascontiguousarray(array)
    if name not in self._files:
      self._files[name] = open(self._out / name, "wb")
      self._shapes[name] = (array.dtype.str, [0, *array.shape[1:]])
    self._shapes[name][1][0] += len(array)
    self._files[name].write(array.data)

  def finish(self, meta: dict[str, Any]) -> None:
    """Writes what is known at the end, and last of all the file that makes the entry whole."""
    if not self._lengths:
      raise ValueError(
        f"no episode of {meta['dataset']} could be read; the first error: {self.skipped[0]}"
      )
    self._write("starts", np.cumsum([0, *self._lengths], dtype=np.int64))
    self._write("places", np.array(self._places, np.int64))
    self.close()
    # Tasks were numbered as they appeared; now by name, so that the order of files does not matter.
    names = sorted(self._tasks)
    by_name = np.argsort([self._tasks[name] for name in names]).astype(np.int32)
    tasks_L = np.memmap(self._out / "tasks", np.int32, "r+")
    tasks_L[:] = by_name[tasks_L]
    tasks_L.flush()
    meta |= {
      "arrays": self._shapes,
      "task_names": names,
      "sizes": {
        camera: [[*size, episode] for size, episode in sizes.items()]
        for camera, sizes in self._sizes.items()
      },
      "skipped": self.skipped,
      "fingerprint": _fingerprint(self._out, sorted(self._shapes), names),
    }
    text = json.dumps(meta)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (self._out / "meta.json").write_text(f"{text}\n{digest}")

  def close(self) -> None:
    for file in self._files.values():
      file.close()


def _fingerprint(out: pathlib.Path, names: list[str], task_names: list[str]) -> str:
  """Returns 16 hex digits of the SHA-256 of what was indexed, wherever it lies."""
  digest = hashlib.sha256(json.dumps(task_names).encode())
  for name in names:
    if name == "places":  # says where, not what
      continue
    with open(out / name, "rb") as file:
      digest.update(f"{name}{os.fstat(file.fileno()).st_size}".encode())
      digest.update(hashlib.file_digest(file, "sha256").digest())
  return digest.hexdigest()[:16]
