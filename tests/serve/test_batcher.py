"""Requests are run together where they are alike, in order, and each has its own answer."""

import math
import threading
import time

import pytest

from oat_jax.serve import batcher


class Device:
  """Doubles numbers; holds the first batch until it is let go, so that others gather."""

  def __init__(self):
    self.batches, self.go = [], threading.Event()

  def __call__(self, key, items):
    self.batches.append((key, list(items)))
    if len(self.batches) == 1:
      self.go.wait(10)
    return [ValueError(f"odd: {x}") if x % 2 else 2 * x for x in items]


def start(device, **settings):
  made = batcher.Batcher(device, **({"max_batch": 4, "window_ms": 0} | settings))
  first = made.submit("first", 0)
  while not device.batches:
    time.sleep(0.001)
  return made, first


def test_what_waits_is_run_together_by_key_the_oldest_first():
  device = Device()
  made, first = start(device)
  futures = [made.submit(key, x) for key, x in (("b", 2), ("a", 4), ("b", 6), ("a", 8), ("b", 10))]
  device.go.set()
  assert [future.result(10) for future in (first, *futures)] == [0, 4, 8, 12, 16, 20]
  assert device.batches == [("first", [0]), ("b", [2, 6, 10]), ("a", [4, 8])]
  made.close()


def test_a_batch_has_at_most_so_many_and_the_queue_too():
  device = Device()
  made, _ = start(device, max_queue=6)
  futures = [made.submit("a", 2 * x) for x in range(6)]
  with pytest.raises(batcher.Busy, match="6 requests are waiting"):
    made.submit("a", 0)
  device.go.set()
  assert [future.result(10) for future in futures] == [4 * x for x in range(6)]
  assert [len(items) for _, items in device.batches] == [1, 4, 2]
  made.close()


def test_an_error_is_its_own_request_s_and_that_of_a_batch_is_everyone_s():
  device = Device()
  made, _ = start(device)
  good, bad = made.submit("a", 2), made.submit("a", 3)
  device.go.set()
  assert good.result(10) == 4
  with pytest.raises(ValueError, match="odd: 3"):
    bad.result(10)

  def breaks(key, items):
    raise RuntimeError("broken")

  other = batcher.Batcher(breaks, max_batch=4)
  futures = [other.submit("a", x) for x in range(3)]
  for future in futures:
    with pytest.raises(RuntimeError, match="broken"):
      future.result(10)
  other.close()
  made.close()


def test_who_gave_up_is_not_run():
  device = Device()
  made, _ = start(device)
  gone, stays = made.submit("a", 2), made.submit("a", 4)
  assert gone.cancel()
  device.go.set()
  assert stays.result(10) == 8 and device.batches[1:] == [("a", [4])]
  made.close()


def test_closing_answers_what_waits_and_takes_no_more():
  device = Device()
  made, first = start(device)
  futures = [made.submit("a", 2), made.submit("b", 4)]
  threading.Timer(0.05, device.go.set).start()
  made.close()
  assert all(future.done() for future in (first, *futures))
  with pytest.raises(batcher.Busy, match="is stopping"):
    made.submit("a", 6)


def test_it_waits_for_clients_that_are_there_but_not_for_long():
  runs = []

  def device(key, items):
    runs.append(list(items))
    return items

  made = batcher.Batcher(device, max_batch=4, window_ms=10_000, clients=lambda: 2)
  one = made.submit("a", 1)
  time.sleep(0.05)
  assert not one.done()
  assert made.submit("a", 2).result(10) == 2 and one.result(10) == 1 and runs == [[1, 2]]
  made.close()
  made = batcher.Batcher(device, max_batch=4, window_ms=20, clients=lambda: 2)
  assert made.submit("a", 3).result(10) == 3  # the other one never asks
  made.close()


def test_it_says_for_how_long_a_batch_has_been_running():
  device = Device()
  made, first = start(device)
  time.sleep(0.05)
  assert 0.05 <= made.busy_s() < 10
  device.go.set()
  first.result(10)
  until = time.monotonic() + 10
  while made.busy_s() and time.monotonic() < until:
    time.sleep(0.001)
  assert made.busy_s() == 0
  made.close()
  assert made.busy_s() == math.inf


def test_batches_run_side_by_side_each_with_its_share():
  """None of them could end without the other."""
  both, sizes = threading.Barrier(2, timeout=30), []

  def run(key, items):
    sizes.append(len(items))
    both.wait()
    return [2 * x for x in items]

  made = batcher.Batcher(run, max_batch=8, window_ms=1e4, clients=lambda: 6, workers=2)
  for turn in range(20):
    futures = [made.submit("a", turn + x) for x in range(6)]
    assert [future.result(30) for future in futures] == [2 * (turn + x) for x in range(6)]
  assert sizes == [3] * 40 and made.busy_s() == 0
  made.close()
  assert made.busy_s() == math.inf


def test_many_threads_answer_everyone_once():
  answered, lock = [], threading.Lock()

  def run(key, items):
    with lock:
      answered.extend(items)
    return items

  made = batcher.Batcher(run, max_batch=3, window_ms=1, clients=lambda: 4, workers=4)
  futures = [made.submit(x % 2, x) for x in range(200)]
  assert [future.result(30) for future in futures] == list(range(200))
  assert sorted(answered) == list(range(200))
  made.close()
