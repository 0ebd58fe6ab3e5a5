"""Mixtures of datasets, and the order in which an endless stream visits their windows.

The order is a function: place in the stream -> window. It needs no memory, no state and no other
process: a permutation by a keyed Feistel network (Luby and Rackoff 1988) in place of a shuffled
list, and a fixed schedule of datasets in place of a random choice.
"""

from collections.abc import Sequence
import fractions
import math
from typing import Any

import numpy as np

from oat_jax.data import windows as windows_lib

# Shares of weights with large denominators are exact to one window in so many.
MAX_PERIOD = 10_000
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# A number a round, an even number of rounds: the halves have their own widths again behind two.
_ROUNDS = [np.uint64(i * 0xD1B54A32D192ED03 % 2**64) for i in range(8)]


class Mixture:
  """The windows of several datasets as one: those of the first, then those of the second, ..."""

  def __init__(self, sources: Sequence[windows_lib.Windows]):
    """Takes windows of one layout; ValueError where their specs differ."""
    for i, source in enumerate(sources):
      if source.spec != sources[0].spec:
        raise ValueError(f"datasets 0 and {i} differ: {sources[0].spec} and {source.spec}")
    self.spec = sources[0].spec
    self.sizes = tuple(len(source) for source in sources)
    self._sources = tuple(sources)
    self._starts = np.cumsum([0, *self.sizes])

  def __len__(self) -> int:
    return int(self._starts[-1])

  @property
  def episode_W(self) -> np.ndarray:
    """The episode of each window, int64; other numbers for other datasets."""
    parts, first = [], 0
    for source in self._sources:
      parts.append(source.episode_W + first)
      first = parts[-1].max() + 1
    return np.concatenate(parts)

  def without_images(self) -> "Mixture":
    """Returns the same windows, whose batches hold neither frames nor language."""
    return Mixture([source.without_images() for source in self._sources])

  def digest(self) -> str:
    """Returns hex digits of which steps of which datasets the windows are."""
    return "-".join(source.digest() for source in self._sources)

  def __call__(self, indices_B: np.ndarray) -> dict[str, Any]:
    """Returns the batch of the windows at int (B,) positions; see `windows.Windows`."""
    indices_B = np.asarray(indices_B, np.int64)
    if len(self._sources) == 1:
      return self._sources[0](indices_B)
    # A position outside is left to the first or last dataset, which refuses it.
    dataset_B = np.searchsorted(self._starts[1:-1], indices_B, "right")
    out: dict[str, Any] = {}
    for dataset in np.unique(dataset_B):
      rows = np.flatnonzero(dataset_B == dataset)
      part = self._sources[dataset](indices_B[rows] - self._starts[dataset])
      _scatter(out, part, rows, len(indices_B))
    return out


def _scatter(out: dict[str, Any], part: dict[str, Any], rows: np.ndarray, size: int) -> None:
  for name, values in part.items():
    if isinstance(values, dict):
      _scatter(out.setdefault(name, {}), values, rows, size)
    else:
      if name not in out:
        out[name] = np.empty((size, *values.shape[1:]), values.dtype)
      out[name][rows] = values


def make_order(sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> "Order":
  """Returns the order in which a stream visits a `Mixture`'s windows.

  Without weights every window counts the same: one permutation of all of them, an epoch.
  """
  return Order([sum(sizes)], [1], seed) if weights is None else Order(sizes, weights, seed)


class Order:
  """Place in the stream -> window of a `Mixture`, the same on every machine.

  In every period each dataset has exactly its share of the places, spread evenly; each dataset
  visits its windows in epochs of its own, every window once in each, in a new order.
  """

  def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
    """Plans one period.

    Args:
      sizes: windows of each dataset.
      weights: of each dataset; only their ratios count, and 0 leaves it out.
      seed: of the permutations, not negative.

    Raises:
      ValueError: the sizes and weights disagree in number, a weight is negative or not finite, all
        are 0, or a dataset with a weight has no windows.
    """
    if len(sizes) != len(weights):
      raise ValueError(f"there are {len(sizes)} datasets and {len(weights)} weights")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
      raise ValueError(f"weights are {list(weights)}; they must be at least 0, and not all 0")
    empty = [i for i, (size, weight) in enumerate(zip(sizes, weights)) if weight and size < 1]
    if empty:
      raise ValueError(f"dataset {empty[0]} has weight {weights[empty[0]]} but no windows")
    if seed < 0:
      raise ValueError(f"seed is {seed}; it must not be negative")
    self._seed, self._sizes = seed, np.asarray(sizes, np.int64)
    self._starts = np.cumsum(self._sizes) - self._sizes
    self.counts = np.array(_counts(weights), np.int64)  # places of each dataset in a period
    self.period = int(self.counts.sum())
    # The j-th of n places of a dataset wants to be at (j + 1/2) / n of the period.
    dataset_P = np.repeat(np.arange(len(sizes)), self.counts)
    rank_P = np.concatenate([np.arange(count) for count in self.counts])
    order_P = np.argsort((rank_P + 0.5) / self.counts[dataset_P], kind="stable")
    self._dataset_P, self._rank_P = dataset_P[order_P], rank_P[order_P]

  def __call__(self, places_N: np.ndarray) -> np.ndarray:
    """Returns the windows, int64 (N,), at these places of the stream."""
    places_N = np.asarray(places_N, np.int64)
    slot_N = places_N % self.period
    dataset_N = self._dataset_P[slot_N]
    visit_N = places_N // self.period * self.counts[dataset_N] + self._rank_P[slot_N]
    size_N = self._sizes[dataset_N]
    epoch_N, place_N = np.divmod(visit_N, size_N)
    key_N = _hash(
      _hash(_hash(np.uint64(self._seed)) + dataset_N.astype(np.uint64)) + epoch_N.astype(np.uint64)
    )
    return self._starts[dataset_N] + permute(place_N, size_N, key_N)


def _counts(weights: Sequence[float]) -> list[int]:
  """Returns whole numbers in the ratio of the weights, exact where their sum is in MAX_PERIOD."""
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  shares = [weight / sum(exact) for weight in exact]
  period = math.lcm(*(share.denominator for share in shares))
  if period <= MAX_PERIOD:
    return [int(share * period) for share in shares]
  # Largest remainders; a dataset with any weight has at least one place.
  counts = [int(share * MAX_PERIOD) for share in shares]
  by_rest = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i] * MAX_PERIOD)
  for i in by_rest[: MAX_PERIOD - sum(counts)]:
    counts[i] += 1
  return [max(count, int(share > 0)) for count, share in zip(counts, shares)]


def permute(place_N: np.ndarray, size_N: np.ndarray, key_N: np.ndarray) -> np.ndarray:
  """Returns where pseudo-random permutations of range(size) take the places.

  Args:
    place_N: int64, in [0, size).
    size_N: int64, at least 1.
    key_N: uint64, one permutation each.

  Returns:
    int64 (N,), in [0, size): for one size and key a bijection.
  """
  size_N = size_N.astype(np.uint64)
  # With fewer bits the network knows too few permutations of them to be fair.
  bits_N = np.ceil(np.log2(np.maximum(size_N, 64))).astype(np.uint64)
  # np.log2 rounds: for huge sizes next to a power of two it may be one short.
  bits_N += (np.uint64(1) << bits_N) < size_N
  out_N = place_N.astype(np.uint64)
  outside = np.arange(len(out_N))
  # A Feistel network permutes the next power of two. Whoever lands outside of the size goes on
  # until inside: that is a permutation too, and less than two steps on average.
  while len(outside):
    bits, key = bits_N[outside], key_N[outside]
    low = bits // 2  # the halves differ by a bit where the number of bits is odd
    left, right = out_N[outside] >> low, out_N[outside] & _ones(low)
    masks = _ones(bits - low), _ones(low)
    for i, constant in enumerate(_ROUNDS):
      left, right = right, left ^ (_hash((key + constant) ^ right) & masks[i % 2])
    out_N[outside] = left << low | right
    outside = outside[out_N[outside] >= size_N[outside]]
  return out_N.astype(np.int64)


def _ones(bits_N: np.ndarray) -> np.ndarray:
  return (np.uint64(1) << bits_N) - np.uint64(1)


def _hash(x: Any) -> np.ndarray:
  """SplitMix64's output function (Steele, Lea and Flood 2014), over uint64."""
  x = np.atleast_1d(x).astype(np.uint64) + _GOLDEN
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
