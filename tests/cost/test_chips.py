"""Topologies by name, and what their links carry."""

import numpy as np
import pytest

from oat_jax.cost import chips


def test_a_name_says_chips_and_shape():
  pod = chips.topology("v5e:16x16")
  assert (pod.size, pod.hosts, pod.chip.hbm_bytes) == (256, 64, 16e9)
  assert chips.topology("v5p:4x4x4").shape == (4, 4, 4)
  both = chips.topology("2*v5e:16x16")
  assert (both.name, both.slices, both.size, both.hosts) == ("v5e:16x16", 2, 512, 128)
  assert chips.topology("h100:8").shape == (1, 8) and chips.topology("h100:4x8").size == 32


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5:4x4", "no chip 'v5'; did you mean 'v5"),
    ("tpu", "no chip 'tpu'"),
    ("v5e", "sizes, e.g. v5e:4x4"),
    ("v5e:4x", "sizes, e.g. v5e:4x4"),
    ("v5e:0x4", "sizes, e.g."),
    ("v5e:4x4x4", "v5e has 2 axes, e.g. v5e:4x4"),
    ("x*v5e:4x4", "a number of TPU slices, e.g. 2.v5e:4x4"),
    ("2*h100:4x8", "a number of TPU slices"),
    ("v5p:16x16", "v5p has 3 axes, e.g. v5p:4x4x4"),
  ],
)
def test_a_name_that_is_none_is_an_error_with_one_that_is(name, message):
  with pytest.raises(ValueError, match=message):
    chips.topology(name)


def test_a_group_uses_the_links_of_the_axes_that_it_spans():
  link = chips.CHIPS["v5e"].link_rate
  pod, small = chips.topology("v5e:16x16"), chips.topology("v5e:4x4")
  row, all_of = [(0, i) for i in range(4)], list(np.ndindex(4, 4))
  # A ring passes both ways round, a line has ends; both axes help at once.
  assert chips.rate(pod, [(0, i) for i in range(16)]) == 2 * link
  assert chips.rate(pod, list(np.ndindex(16, 16))) == 4 * link
  assert chips.rate(small, row) == link and chips.rate(small, all_of) == 2 * link
  both = chips.topology("2*v5e:16x16")
  assert chips.rate(both, [(0, 0, i) for i in range(16)]) == 2 * link
  assert chips.rate(both, [(0, 0, 0), (1, 0, 0)]) == both.chip.network_rate
  nodes = chips.topology("h100:2x8")
  assert chips.rate(nodes, [(0, 0), (0, 1)]) == nodes.chip.link_rate
  assert chips.rate(nodes, [(0, 0), (1, 0)]) == nodes.chip.network_rate


def test_what_is_alone_waits_for_nobody_and_a_sum_goes_there_and_back():
  assert chips.seconds("all-gather", 1e9, 1, 1e9) == 0
  assert chips.seconds("all-gather", 1e9, 4, 1e9) == pytest.approx(0.75)
  assert chips.seconds("reduce-scatter", 1e9, 4, 1e9) == pytest.approx(0.75)
  assert chips.seconds("all-reduce", 1e9, 4, 1e9) == pytest.approx(1.5)


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("v5e:32x32", "there is no such slice; near it is v5e:16x16"),
    ("v5e:3x5", "near it is v5e:4x4"),
    ("v5p:3x4x4", "multiples of 4, e.g. v5p:4x4x4, or v5p:2x2x1"),
    ("v5p:32x32x32", "the largest slice of v5p has 6144 chips"),
    ("h100:2x16", "a node has 8 GPUs; h100:4x8 is 4 of them"),
  ],
)
def test_slices_that_there_are_not_are_errors(name, text):
  with pytest.raises(ValueError, match=text):
    chips.topology(name)
  assert chips.topology("2*v5p:2x2x4").title == "2*v5p:2x2x4"
