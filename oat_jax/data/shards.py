"""The shards and metadata of a TFDS directory, written so that a kill at any moment loses little.

A shard that is full is closed for good, and a line of a journal says so; whoever comes after a kill
deletes what the journal does not know and goes on behind what it does. Records are bytes here:
`write.serialize` makes them.
"""

from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import struct
from typing import Any, BinaryIO, NamedTuple

from oat_jax.data import tfrecord

SHARD_BYTES = 64 << 20


class _Shard(NamedTuple):
  """A closed shard; its file is final."""

  split: str
  records: int
  num_bytes: int  # of the payloads; every record has 16 bytes around it


class Writer:
  """Writes records into shards; `writing` makes one.

  `position` counts the episodes that were added or skipped, those of an earlier, killed process
  included: go on with the episode of that number.
  """

  def __init__(self, work: pathlib.Path, out: pathlib.Path, info: dict[str, Any], shard_bytes: int):
    self.position = 0
    self.skipped: list[dict[str, Any]] = []
    self._work, self._out, self._info, self._shard_bytes = work, out, info, shard_bytes
    self._data = work / "dataset"
    self._shards: list[_Shard] = []
    self._file: BinaryIO | None = None
    self._open = _Shard("", 0, 0)
    self._noted = 0  # of `skipped`, how many the journal has
    self._complete = False  # every episode is in a shard; only finishing is left
    self._data.mkdir(exist_ok=True)
    self._resume()

  @property
  def counts(self) -> dict[str, int]:
    """Returns split -> number of records in closed shards."""
    counts: dict[str, int] = {}
    for shard in self._shards:
      counts[shard.split] = counts.get(shard.split, 0) + shard.records
    return counts

  def add(self, split: str, record: bytes) -> None:
    """Appends a record to a split; a shard is closed when it is full, or when the split changes."""
    if self._file is not None and self._open.split != split:
      self._close_shard()
    if self._file is None:
      self._open = _Shard(split, 0, 0)
      self._file = open(self._path(len(self._shards), split), "wb")
    length = struct.pack("<Q", len(record))
    for part in (length, record):
      self._file.write(part)
      self._file.write(struct.pack("<I", tfrecord.masked_crc(part)))
    self._open = _Shard(split, self._open.records + 1, self._open.num_bytes + len(record))
    self.position += 1
    if self._file.tell() >= self._shard_bytes:
      self._close_shard()

  def skip(self, **what: Any) -> None:
    """Leaves an episode out; `what`, in JSON's types, goes into `skipped`."""
    self.skipped.append(what)
    self.position += 1

  def finish(self, features: Any, files: Mapping[str, str] | None = None) -> None:
    """Makes the directory whole and moves it to its place.

    Args:
      features: whatever saves features.json by `save_config(directory)`, as tfds's features do.
      files: name -> text of further files to put beside it.

    Raises:
      ValueError: there are no episodes.
    """
    if self._file is not None:
      self._close_shard()
    if not self._shards:
      raise ValueError(f"no episodes to write into {self._out}")
    if not self._complete:  # first: a shard that has got its last name is not to be written anew
      self._note(complete=True)
    splits: dict[str, list[int]] = {}
    for i, shard in enumerate(self._shards):
      splits.setdefault(shard.split, []).append(i)
    for split, indices in splits.items():
      for number, i in enumerate(indices):
        name = f"{self._info['name']}-{split}.tfrecord-{number:05d}-of-{len(indices):05d}"
        if self._path(i, split).exists():
          self._path(i, split).rename(self._data / name)
    features.save_config(os.fspath(self._data))
    entries = [
      {
        "name": split,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": str(sum(self._shards[i].num_bytes for i in indices)),
        "shardLengths": [str(self._shards[i].records) for i in indices],
      }
      for split, indices in splits.items()
    ]
    info = json.dumps(self._info | {"splits": entries}, indent=2)
    for name, text in {**(files or {}), "dataset_info.json": info}.items():
      (self._data / name).write_text(text + "\n")
    self._data.replace(self._out)
    shutil.rmtree(self._work, ignore_errors=True)

  def _path(self, i: int, split: str) -> pathlib.Path:
    """Shards are numbered through until the numbers of all splits are known."""
    return self._data / f"{i:05d}.{split}.shard"

  def _close_shard(self) -> None:
    assert self._file is not None
    self._file.flush()
    os.fsync(self._file.fileno())
    self._file.close()
    self._file = None
    self._shards.append(self._open)
    self._note(shard=self._open)

  def _note(self, **what: Any) -> None:
    """Appends a line to the journal; what it says holds whatever happens afterwards."""
    line = {**what, "position": self.position, "skipped": self.skipped[self._noted :]}
    with open(self._work / "journal.jsonl", "a") as journal:
      journal.write(json.dumps(line) + "\n")
      journal.flush()
      os.fsync(journal.fileno())
    self._noted = len(self.skipped)

  def _resume(self) -> None:
    """Takes over what the journal has and deletes what it has not."""
    path = self._work / "journal.jsonl"
    if path.exists():
      whole = path.read_bytes()
      whole = whole[: whole.rfind(b"\n") + 1]
      os.truncate(path, len(whole))  # a line that a kill cut short
      for line in map(json.loads, whole.splitlines()):
        self.position = line["position"]
        self.skipped += line["skipped"]
        self._complete = "complete" in line
        if "shard" in line:
          self._shards.append(_Shard(*line["shard"]))
    self._noted = len(self.skipped)
    if self._complete:
      return
    final = {
      self._path(i, s.split): s.num_bytes + 16 * s.records for i, s in enumerate(self._shards)
    }
    for path in set(self._data.iterdir()) - set(final):
      path.unlink()
    for path, size in final.items():
      found = path.stat().st_size if path.exists() else 0
      if found != size:
        raise ValueError(
          f"{path} has {found} bytes, not the {size} written; delete {self._work} to start again"
        )

  @property
  def file(self) -> str:
    """Returns what is being written: a full disk does not say it."""
    return os.fspath(self._data if self._file is None else self._file.name)

  def _drop(self) -> None:
    """Closes the file that was being written; a full disk may refuse its last bytes."""
    with contextlib.suppress(OSError):
      if self._file is not None:
        self._file.close()


@contextlib.contextmanager
def writing(
  out: str | os.PathLike[str],
  *,
  name: str,
  version: str = "1.0.0",
  description: str = "",
  shard_bytes: int = SHARD_BYTES,
  request: Mapping[str, Any] | None = None,
) -> Iterator[Writer]:
  """Yields a `Writer` of a dataset with any number of splits, to be ended by its `finish`.

  Everything goes into OUT.writing, which one process at a time may use. With a `request` it stays
  there after an error or a kill, and the same request goes on behind the last full shard: the
  dataset has the bytes that it would have had uninterrupted, provided that the episodes are the
  same. Without one, nothing remains of work that was not finished.

  Args:
    out, name, version, description, shard_bytes: see `write.write`.
    request: what is being written, in JSON's types; another one is refused.

  Raises:
    FileExistsError: `out` is not empty, or OUT.writing belongs to another request.
    BlockingIOError: another process is writing it.
    ValueError: a bad name, or OUT.writing is damaged.
  """
  if not re.fullmatch("[a-z][a-z0-9_]*", name):
    raise ValueError(
      f"dataset name '{name}': write small letters, digits and underscores, a letter first"
    )
  out = pathlib.Path(out).absolute()
  work = out.with_name(out.name + ".writing")
  info = {
    "name": name,
    "version": version,
    "description": description,
    "fileFormat": "tfrecord",
    "releaseNotes": {version: description.partition("\n")[0]},
  }
  with contextlib.ExitStack() as stack:
    _check_free(out)
    stack.enter_context(_lock(work, out))
    _check_free(out, work)
    _claim(work, request)
    writer = None
    try:
      writer = Writer(work, out, info, shard_bytes)
      yield writer
    except BaseException as error:
      if isinstance(error, OSError) and error.filename is None:
        error.filename = writer.file if writer is not None else os.fspath(work)
      raise
    finally:
      if writer is not None:
        writer._drop()
      if request is None:
        shutil.rmtree(work, ignore_errors=True)


def _check_free(out: pathlib.Path, work: pathlib.Path | None = None) -> None:
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    if work is not None:
      shutil.rmtree(work, ignore_errors=True)  # somebody finished `out` since we looked first
    raise FileExistsError(f"{out} is not empty; choose another directory or delete it")


@contextlib.contextmanager
def _lock(work: pathlib.Path, out: pathlib.Path) -> Iterator[None]:
  """Holds OUT.writing for this process; the system drops the lock when its holder dies."""
  work.mkdir(parents=True, exist_ok=True)
  busy = BlockingIOError(f"another process is writing {out}; wait for it, or choose another name")
  with open(work / "lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise busy from None
    except OSError:
      pass  # a file system without locks
    try:
      if not os.path.samestat(os.fstat(lock.fileno()), os.stat(work / "lock")):
        raise busy  # that one was deleted by whoever finished meanwhile
    except FileNotFoundError:
      raise busy from None
    yield


def _claim(work: pathlib.Path, request: Mapping[str, Any] | None) -> None:
  """Makes OUT.writing belong to this request, or refuses."""
  path = work / "request.json"
  if path.exists():
    if request is None:
      raise FileExistsError(
        f"{work} holds work that its own command can finish; delete it to start afresh"
      )
    check_same(work, json.loads(path.read_text()), request)
    return
  for entry in work.iterdir():  # of a killed process without a request, whose work nobody finishes
    if entry.name != "lock":
      shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
  if request is not None:
    scratch = path.with_suffix(".scratch")
    scratch.write_text(json.dumps(dict(request)) + "\n")
    scratch.replace(path)


def check_same(where: Any, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
  """Raises FileExistsError, naming what differs, unless both requests are the same."""
  differing = [key for key in sorted({*there, *asked}) if there.get(key) != asked.get(key)]
  if differing:
    words = "; ".join(
      f"{key} {there.get(key)!r} there, {asked.get(key)!r} asked for" for key in differing
    )
    raise FileExistsError(
      f"{where} was made for another request: {words}. Choose another directory, or delete it"
    )
