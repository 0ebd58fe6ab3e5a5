"""The stream's order: exact shares, whole epochs, permutations without a pattern."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats
import tiny

from oat_jax import batch as batch_lib
from oat_jax.data import mixture
from oat_jax.data import windows as windows_lib

# The first windows of a mixture of 1000 and 77, twice as many of the former, and those far ahead.
GOLDEN = [145, 1012, 298, 332, 1008, 474], [1074, 24, 189, 1023, 942, 896]


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 2**62), st.data()
)
def test_shares_are_exact_in_every_period_and_epochs_are_whole(sizes, seed, data):
  weights = data.draw(st.lists(st.integers(0, 7), min_size=len(sizes), max_size=len(sizes)))
  hypothesis.assume(any(weights))
  order = mixture.Order(sizes, weights, seed)
  periods = 12
  stream = order(np.arange(periods * order.period))
  starts = np.cumsum([0, *sizes])
  dataset = np.searchsorted(starts, stream, "right") - 1
  for d, (size, weight) in enumerate(zip(sizes, weights)):
    per_period = (dataset.reshape(periods, -1) == d).sum(1)
    assert (per_period * sum(weights) == weight * order.period).all()
    visits = stream[dataset == d] - starts[d]
    for epoch in range(len(visits) // size):
      assert sorted(visits[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_the_datasets_are_spread_evenly():
  order = mixture.Order([100, 100, 100], [5, 3, 2], 0)
  assert order.period == 10
  dataset = order(np.arange(1000)) // 100
  for d, share in enumerate((0.5, 0.3, 0.2)):
    drawn = np.cumsum(dataset == d)
    assert np.abs(drawn - share * np.arange(1, 1001)).max() <= 1


def test_weights_without_a_short_ratio_are_exact_to_one_window_in_the_longest_period():
  weights = [1 / 3, np.pi, 1e-9, 0]
  order = mixture.Order([5, 5, 5, 5], weights, 0)
  assert abs(order.period - mixture.MAX_PERIOD) <= len(weights)
  shares = np.array(weights) / sum(weights)
  assert np.abs(order.counts - shares * mixture.MAX_PERIOD).max() <= 1
  assert order.counts[2] == 1 and order.counts[3] == 0
  # Weights that are written as decimals are taken as they are written.
  assert mixture.Order([9, 9], [0.7, 0.3], 0).counts.tolist() == [7, 3]


def test_a_place_does_not_hang_on_the_other_places_asked_for():
  order = mixture.Order([1000, 77], [2, 1], 5)
  places = np.random.default_rng(0).integers(0, 10**12, 500)
  np.testing.assert_array_equal(order(places), [int(order(np.array([p]))[0]) for p in places])


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
  """A golden stream: changing it would make resumed runs see other data."""
  order = mixture.Order([1000, 77], [2, 1], 5)
  assert order(np.arange(6)).tolist() == GOLDEN[0]
  assert order(10**15 + np.arange(6)).tolist() == GOLDEN[1]


@pytest.mark.parametrize("size", [5, 8, 23, 64, 1000])
def test_every_window_comes_equally_often_to_every_place(size):
  epochs = 200_000 // size
  place, epoch = np.meshgrid(np.arange(size), np.arange(epochs))
  order = mixture.Order([size], [1], 1)
  stream = order((epoch * size + place).ravel()).reshape(epochs, size)
  for column in (0, size // 2, size - 1):
    assert stats.chisquare(np.bincount(stream[:, column], minlength=size)).pvalue > 1e-4
  # Neighbours in the stream are no neighbours in the data more often than by chance.
  steps = np.bincount((stream[:, 1] - stream[:, 0]) % size, minlength=size)[1:]
  assert stats.chisquare(steps).pvalue > 1e-4


def test_seeds_datasets_and_epochs_have_orders_of_their_own():
  streams = []
  for seed in range(4):
    order = mixture.Order([50, 50], [1, 1], seed)
    stream = order(np.arange(400))
    streams += (stream[stream < 50].reshape(-1, 50)).tolist()
    streams += (stream[stream >= 50].reshape(-1, 50) - 50).tolist()
  assert len(streams) == 32 and len({tuple(stream) for stream in streams}) == 32


@pytest.mark.parametrize(
  ("sizes", "weights", "seed", "message"),
  [
    ([3], [1, 1], 0, "1 datasets and 2 weights"),
    ([3, 3], [0, 0], 0, "not all 0"),
    ([3, 3], [1, -1], 0, "at least 0"),
    ([3, 3], [1, float("nan")], 0, "at least 0"),
    ([3, 3], [1, float("inf")], 0, "at least 0"),
    ([3, 0], [1, 1], 0, "dataset 1 has weight 1 but no windows"),
    ([3], [1], -1, "seed is -1"),
  ],
)
def test_bad_mixtures(sizes, weights, seed, message):
  with pytest.raises(ValueError, match=message):
    mixture.Order(sizes, weights, seed)


def two():
  a = tiny.episodes([3, 2])._replace(action_names=("dx", "dy"), task_names=("a",))
  b = tiny.episodes([4])._replace(action_names=("dy", "dz"), task_names=("b",))
  layout = windows_lib.layout([a, b])
  return [
    windows_lib.Windows(each, np.arange(each.num_episodes), 2, 3, layout, i)
    for i, each in enumerate((a, b))
  ]


def test_a_mixed_batch_holds_each_datasets_rows():
  sources = two()
  mixed = mixture.Mixture(sources)
  assert len(mixed) == 9 and mixed.sizes == (5, 4)
  assert mixed.episode_W.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
  indices = np.array([8, 0, 5, 4, 4])
  batch = mixed(indices)
  batch_lib.check(batch, mixed.spec)
  for row, index in enumerate(indices):
    source, at = (sources[0], index) if index < 5 else (sources[1], index - 5)
    alone = source(np.array([at]))
    for name in ("actions", "action_mask", "action_dim_mask", "observation_mask", "dataset"):
      np.testing.assert_array_equal(batch[name][row], alone[name][0])
    for name in ("state", "task"):
      np.testing.assert_array_equal(batch["observation"][name][row], alone["observation"][name][0])
  assert batch["dataset"].tolist() == [1, 0, 1, 0, 0]
  for bad in (-1, 9):
    with pytest.raises(IndexError, match="was asked for"):
      mixed(np.array([0, bad, 6]))


def test_sources_of_a_mixture_have_one_spec():
  sources = two()
  other = windows_lib.Windows(tiny.episodes([4]), np.arange(1), 2, 3)
  with pytest.raises(ValueError, match="datasets 0 and 1 differ"):
    mixture.Mixture([sources[0], other])
