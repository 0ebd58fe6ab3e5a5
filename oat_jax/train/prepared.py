"""What a policy computes once for each window, the tokens of its frozen tokenizer, kept on disk.

An entry of the cache is a directory of .npy files, made under another name and renamed when whole.
It is keyed on the windows, the tokenizer and what is computed, so that runs which differ in
anything else share it.
"""

from collections.abc import Callable
import contextlib
import hashlib
import json
import pathlib
import shutil
from typing import Any, NamedTuple
import uuid

from jax.experimental import multihost_utils
import numpy as np
import tqdm

from oat_jax.data import index as index_lib
from oat_jax.data import pipeline

_FORMAT = 1  # of what `Policy.prepare` computes


class WithColumns(NamedTuple):
  """Windows with further arrays, one row a window, added to their batches."""

  windows: Any
  columns: dict[str, np.ndarray]

  def __len__(self):
    return len(self.windows)

  def __call__(self, indices_B):
    return self.windows(indices_B) | {name: rows[indices_B] for name, rows in self.columns.items()}


def prepared(
  prepare: Callable[..., dict[str, Any]],
  params: Callable[[], Any],
  windows: Any,
  *,
  of: str = "",
  cache: str | pathlib.Path = "",
  batch_size: int = 1024,
) -> WithColumns:
  """Adds to batches what is computed once a window.

  Args:
    prepare: (params, batch) -> {name: (B, ...)}, compiled; it sees no images.
    params: gives its first argument, if that is needed.
    windows: of a run, with `without_images` and `digest`.
    of: says what `prepare` computes with: the tokenizer's digest. If empty, nothing is kept.
    cache: directory of the cache; see `index.default_cache` if empty.
    batch_size: rows computed at once.
  """
  blind, entry = windows.without_images(), None
  if of:
    place = pathlib.Path(cache) if cache else index_lib.default_cache()
    key = json.dumps([_FORMAT, of, windows.digest(), len(windows)])
    entry = place / "prepared" / hashlib.sha256(key.encode()).hexdigest()[:24]
    columns = _read(entry, len(windows))
    # Giving the parameters may take all processes, whose caches may differ: all go the same way.
    if multihost_utils.process_allgather(np.array(columns is not None)).all():
      assert columns is not None
      return WithColumns(windows, columns)
  on_device = params()
  rows: dict[str, list[np.ndarray]] = {}
  bar = tqdm.tqdm(desc="tokens of windows", unit=" windows", delay=2, total=len(windows))
  with bar:
    for batch, valid_B in pipeline.epoch(blind, batch_size):
      for name, values in prepare(on_device, batch).items():
        rows.setdefault(name, []).append(np.asarray(values)[valid_B])
      bar.update(int(valid_B.sum()))
  columns = {name: np.concatenate(parts) for name, parts in rows.items()}
  if entry is not None:
    try:
      _write(entry, columns)
    except OSError as error:
      print(f"{entry.parent}: tokens are not kept for the next run ({error})", flush=True)
  return WithColumns(windows, columns)


def _read(entry: pathlib.Path, count: int) -> dict[str, np.ndarray] | None:
  """Maps an entry's arrays; None where there is none, or it is damaged."""
  try:
    columns = {path.stem: np.load(path, mmap_mode="r") for path in sorted(entry.glob("*.npy"))}
  except (OSError, ValueError):
    return None
  whole = columns and all(len(values) == count for values in columns.values())
  return columns if whole else None


def _write(entry: pathlib.Path, columns: dict[str, np.ndarray]) -> None:
  entry.parent.mkdir(parents=True, exist_ok=True)
  partial = entry.with_name(f"{entry.name}.{uuid.uuid4().hex[:8]}")
  partial.mkdir()
  try:
    for name, values in columns.items():
      np.save(partial / f"{name}.npy", values)
    if entry.exists() and _read(entry, len(next(iter(columns.values())))) is None:
      shutil.rmtree(entry, ignore_errors=True)  # damaged
    with contextlib.suppress(OSError):  # another process was first
      partial.rename(entry)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
