"""The input pipeline: batches of shuffled windows, the same stream on any number of threads.

The stream is a function of the order's seed and the global batch size alone; threads, workers,
processes and restarts only decide who computes which part of it and when. Hence a checkpoint holds
no iterator, just the step. A batch's windows are found and gathered all at once, which is what
makes a light window cheap (20 times cheaper than one by one).
"""

from collections.abc import Callable, Iterator
import sys
from typing import Any, Protocol

from absl import flags
import grain
import numpy as np

from oat_jax.data import mixture


class WindowSource(Protocol):
  """Any callable with a length: windows, a mixture, or a wrapper that adds to their batches."""

  def __len__(self) -> int: ...

  def __call__(self, indices_B: np.ndarray) -> dict[str, Any]: ...


def make_pipeline(
  windows: WindowSource,
  *,
  batch_size: int,
  seed: int = 0,
  order: Callable[[np.ndarray], np.ndarray] | None = None,
  start_step: int = 0,
  rows: np.ndarray | None = None,
  threads: int = 2,
  workers: int = 0,
) -> Iterator[dict[str, Any]]:
  """Returns an endless iterator of this process's rows of the global batches.

  Args:
    windows: gathers the batch of given indices; called from `threads` threads at once.
    batch_size: rows of the global batch, over all processes.
    seed: of the shuffle where there is no `order`, not negative.
    order: place in the stream -> window, a `mixture.Order`. If None, every epoch visits every
      window exactly once, in a new order; a batch may begin in one epoch and end in the next.
    start_step: the stream's first batch, at no cost: the number of batches already consumed.
    rows: which rows of every global batch this process gets, ascending; None: all.
    threads: how many read ahead; 0 gathers in the caller's thread.
    workers: further processes that do so, each with `threads` threads and a copy of `windows`.

  Raises:
    ValueError: there are fewer windows than rows in a batch, or a number is out of its range.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size {batch_size} is not at least 1")
  rows_R = np.arange(batch_size) if rows is None else np.asarray(rows)
  if not rows_R.size or (np.diff(rows_R) < 1).any() or rows_R[0] < 0 or rows_R[-1] >= batch_size:
    raise ValueError(f"rows {rows_R} do not ascend within 0..{batch_size - 1}")
  if len(windows) < batch_size:
    raise ValueError(
      f"there are {len(windows)} windows, fewer than batch_size {batch_size}; "
      f"take at most {len(windows)}"
    )
  numbers = {"seed": seed, "start_step": start_step, "threads": threads, "workers": workers}
  for name, value in numbers.items():
    if value < 0:
      raise ValueError(f"{name} is {value}; it must not be negative")
  order = order or mixture.Order([len(windows)], [1], seed)
  gather = _Gather(windows, order, batch_size, rows_R)
  # Not an iterator that is set to a step: its state would hang on the number of workers.
  steps = grain.MapDataset.range(start_step, sys.maxsize // batch_size)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
  stream = steps.map(gather).to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():  # outside of absl's app, where grain's workers want it
      flags.FLAGS.mark_as_parsed()
    stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return iter(stream)


class _Gather:
  """step -> this process's rows of the global batch; a class, for worker processes to receive."""

  # The order is asked for in blocks: it costs as much for a few places as for a few hundred.
  _BLOCK = 4096

  def __init__(self, windows: Any, order: Any, batch_size: int, rows_R: np.ndarray):
    self._windows, self._order = windows, order
    self._batch_size, self._rows_R = batch_size, rows_R
    self._blocks: dict[int, np.ndarray] = {}

  def __call__(self, step: int) -> dict[str, Any]:
    blocks_R, places_R = np.divmod(step * self._batch_size + self._rows_R, self._BLOCK)
    numbers, starts = np.unique(blocks_R, return_index=True)
    parts = np.split(places_R, starts[1:])
    found = [self._block(int(number))[part] for number, part in zip(numbers, parts)]
    return self._windows(np.concatenate(found))

  def _block(self, number: int) -> np.ndarray:
    # Threads may make a block twice, or drop one that another still wants: both are harmless.
    found = self._blocks.get(number)
    if found is None:
      found = self._order(number * self._BLOCK + np.arange(self._BLOCK))
      if len(self._blocks) >= 8:
        self._blocks.clear()
      self._blocks[number] = found
    return found


def epoch(
  windows: WindowSource, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
  """Yields every window once, in order, as (batch, valid_B bool), all batches of one size.

  The last batch is filled up by window 0 with valid false, so that one compiled shape serves all.
  With `rows` only these rows of each batch are gathered; `valid_B` is of all.
  """
  for start in range(0, len(windows), batch_size):
    indices_B = np.arange(start, start + batch_size)
    valid_B = indices_B < len(windows)
    indices_B = np.where(valid_B, indices_B, 0)
    yield windows(indices_B if rows is None else indices_B[rows]), valid_B
