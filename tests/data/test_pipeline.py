"""The stream is one function of (seed, windows, batch size), however it is computed."""

import itertools
import time

import numpy as np
import pytest
import tiny

from oat_jax.data import mixture
from oat_jax.data import pipeline
from oat_jax.data import windows as windows_lib


class Recorder:
  """Windows whose batches are their own indices."""

  def __init__(self, size):
    self.size = size

  def __len__(self):
    return self.size

  def __call__(self, indices_B):
    assert indices_B.min() >= 0 and indices_B.max() < self.size
    return {"index": np.array(indices_B)}


def take(count, size=23, **options):
  iterator = pipeline.make_pipeline(Recorder(size), **{"batch_size": 8, "seed": 3, **options})
  return np.stack([batch["index"] for batch in itertools.islice(iterator, count)])


def test_every_epoch_visits_every_window_once_in_a_new_order():
  epochs = take(23).reshape(8, 23)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(23), (8, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 8
  assert not any((epoch == np.arange(23)).all() for epoch in epochs)


def test_the_seed_decides_the_order():
  np.testing.assert_array_equal(take(5), take(5))
  assert not np.array_equal(take(5), take(5, seed=4))
  # Were epoch e of seed s seeded by s + e, nearby seeds would repeat each other's epochs.
  a, b = (take(23, seed=seed).reshape(8, 23).tolist() for seed in (3, 4))
  assert not any(epoch in b for epoch in a)


def test_threads_do_not_change_the_stream():
  np.testing.assert_array_equal(take(40, threads=0), take(40, threads=2))


def test_worker_processes_do_not_change_the_stream():
  np.testing.assert_array_equal(take(6, workers=2, start_step=3, threads=1), take(9)[3:])


@pytest.mark.parametrize(
  "rows", [[[0, 1, 2, 3, 4, 5, 6, 7]], [[0, 1, 4, 5], [2, 3, 6, 7]], [[3], [7]]]
)
def test_every_process_gets_its_rows_of_the_global_batch(rows):
  for each in rows:
    np.testing.assert_array_equal(take(9, rows=np.array(each)), take(9)[:, each])


def test_rows_lie_across_blocks_of_the_order(monkeypatch):
  monkeypatch.setattr(pipeline._Gather, "_BLOCK", 3)
  np.testing.assert_array_equal(take(9, rows=np.array([0, 3, 4, 7])), take(9)[:, [0, 3, 4, 7]])


@pytest.mark.parametrize("threads", [0, 2])
def test_resume_from_any_step(threads):
  whole = take(30, threads=threads)
  for start in (0, 1, 2, 3, 7, 29):
    resumed = take(30 - start, threads=threads, start_step=start)
    np.testing.assert_array_equal(resumed, whole[start:])
  resumed = take(3, threads=threads, start_step=5, rows=np.arange(4, 8))
  np.testing.assert_array_equal(resumed, whole[5:8, 4:])


def test_resume_costs_nothing():
  start = time.perf_counter()
  take(1, start_step=10**9, threads=0)
  assert time.perf_counter() - start < 1


def test_real_windows_are_gathered():
  windows = windows_lib.Windows(tiny.episodes([5, 7]), np.arange(2), 2, 4)
  indices = take(2, size=12, batch_size=6)
  stream = pipeline.make_pipeline(windows, batch_size=6, seed=3)
  for batch, indices_B in zip(itertools.islice(stream, 2), indices):
    np.testing.assert_array_equal(batch["actions"], windows(indices_B)["actions"])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_mixture_goes_on_on_another_number_of_processes(count):
  sources = [
    windows_lib.Windows(tiny.episodes(lengths), np.arange(len(lengths)), 2, 4)
    for lengths in ([5, 7], [9])
  ]
  mixed = mixture.Mixture(sources)
  order = mixture.Order(mixed.sizes, [3, 1], 7)
  part = lambda number, **options: list(
    itertools.islice(pipeline.make_pipeline(mixed, batch_size=8, order=order, **options), number)
  )
  whole = part(9, threads=0)
  # However many began: `count` processes go on behind step 4.
  rows = np.split(np.arange(8), count)
  parts = [part(5, start_step=4, rows=rows[i]) for i in range(count)]
  for step, batches in enumerate(zip(*parts), 4):
    for name in ("actions", "dataset", "action_mask"):
      rows = np.concatenate([batch[name] for batch in batches])
      np.testing.assert_array_equal(rows, whole[step][name])
  assert len({batch["actions"].tobytes() for batch in whole}) == 9


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_validation_epoch_covers_every_window_in_order(size, batch_size):
  batches = list(pipeline.epoch(Recorder(size), batch_size))
  assert all(len(b["index"]) == len(v) == batch_size for b, v in batches)
  assert all(v.dtype == bool for _, v in batches)
  index = np.concatenate([b["index"] for b, _ in batches])
  valid = np.concatenate([v for _, v in batches])
  np.testing.assert_array_equal(index[valid], np.arange(size))
  assert not index[~valid].any() and len(index) - size < batch_size


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"rows": np.array([6, 7, 8])}, r"rows \[6 7 8\] do not ascend within 0..7"),
    ({"rows": np.array([1, 0])}, r"rows \[1 0\] do not ascend within 0..7"),
    ({"rows": np.array([], int)}, r"rows \[\] do not ascend"),
    ({"batch_size": 24}, "there are 23 windows, fewer than batch_size 24"),
    ({"batch_size": 0}, "batch_size 0"),
    ({"start_step": -1}, "start_step is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"threads": -1}, "threads is -1"),
    ({"workers": -1}, "workers is -1"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    take(1, **options)
