"""FSQ against the paper's equations: every code, every level, boundaries, gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oat_jax.tokenizers import fsq

PUBLISHED = (8, 5, 5, 5)
# Those of the papers, and every first level.
ALL_CODES = [PUBLISHED, (8, 6, 5), (8, 8, 8), (8, 8, 6, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5)]
ALL_CODES += [(first, 3, 2) for first in range(2, 65)]
# One dimension of each number of levels: quantize treats dimensions alike.
WIDE = tuple(range(2, 65))


def paper_bound(z, level):
  """f(z) of arXiv 2309.15505, section 3, in float64: L - 1 wide, and 0 at 0.

  floor(L / 2) tanh(z) for an odd L; for an even one shifted by half a step.
  """
  if level % 2:
    return level // 2 * np.tanh(z)
  return (level - 1) / 2 * np.tanh(z + np.arctanh(1 / (level - 1))) - 0.5


def inverse_bound(value, level):
  """Z whose bound is `value`, in float64, where the outermost levels are finite: L is a bit more
  than wide.
  """
  half, offset = (level - 1) * 1.001 / 2, 0.5 * (level % 2 == 0)
  return np.arctanh((value + offset) / half) - np.arctanh(offset / half)


@pytest.mark.parametrize("levels", ALL_CODES)
def test_every_code_is_the_paper_s_and_comes_back(levels):
  # The implicit codebook, the first dimension running fastest, divided by floor(L / 2).
  values = [[k / (level // 2) for k in range(-(level // 2), (level + 1) // 2)] for level in levels]
  codes_VL = np.array(list(itertools.product(*values[::-1])))[:, ::-1]
  ids_V = np.arange(len(codes_VL))
  assert fsq.codebook_size(levels) == len(codes_VL)
  np.testing.assert_allclose(fsq.codes(ids_V, levels), codes_VL, atol=1e-7)
  # Of one shape for all, so that little is compiled.
  tiled = np.resize(ids_V, -(-len(ids_V) // 512) * 512)
  np.testing.assert_array_equal(fsq.ids(codes_VL.astype(np.float32)[tiled], levels), tiled)
  bounded_VL = codes_VL * (np.array(levels) // 2)
  z_VL = np.stack([inverse_bound(x, level) for x, level in zip(bounded_VL.T, levels)], -1)
  again_VL = fsq.quantize(jnp.asarray(z_VL.astype(np.float32)[tiled]), levels)
  np.testing.assert_allclose(again_VL, codes_VL[tiled], atol=1e-6)
  np.testing.assert_array_equal(fsq.ids(again_VL, levels), tiled)


def test_quantize_rounds_the_paper_s_bound():
  z_X = np.linspace(-5, 5, 20001)
  codes_XL = np.asarray(fsq.quantize(jnp.asarray(z_X[:, None], jnp.float32), WIDE))
  for dim, level in enumerate(WIDE):
    if level == 2:  # the paper's shift is infinite there
      continue
    bounded_X = paper_bound(z_X, level)
    # A thousandth wider than the paper's, boundaries move by as much.
    clear_X = np.abs(bounded_X - np.floor(bounded_X) - 0.5) > 0.002 * (level // 2)
    assert clear_X.mean() > 0.85
    found_X = codes_XL[:, dim] * (level // 2)
    np.testing.assert_allclose(found_X[clear_X], np.round(bounded_X)[clear_X], atol=1e-5)


@pytest.mark.parametrize("distance", [1e-4, 1e-3, 0.1])
def test_just_below_and_above_a_boundary_lie_different_codes(distance):
  for side in (-1, 1):
    # Row b is the boundary above the b-th code, dimension by dimension; the last one is repeated.
    codes_BL = np.stack([np.minimum(np.arange(63), level - 2) - level // 2 for level in WIDE], -1)
    z_BL = inverse_bound(codes_BL + 0.5 + side * distance, np.array(WIDE))
    found_BL = fsq.quantize(jnp.asarray(z_BL, jnp.float32), WIDE) * (np.array(WIDE) // 2)
    np.testing.assert_allclose(found_BL, codes_BL + (side > 0), atol=1e-4)


def test_quantize_reaches_every_level_and_nothing_else():
  z_XL = jnp.tile(jnp.linspace(-6, 6, 20001)[:, None], (1, len(WIDE)))
  codes_XL = np.asarray(fsq.quantize(z_XL, WIDE))
  assert (np.diff(codes_XL, axis=0) >= 0).all() and np.abs(codes_XL).max() <= 1
  for dim, level in enumerate(WIDE):
    values = np.unique(np.round(codes_XL[:, dim] * (level // 2), 4))
    np.testing.assert_array_equal(values, np.arange(level) - level // 2)


def test_ids_round_and_do_not_truncate():
  codes_VL = fsq.codes(np.arange(1000), PUBLISHED)
  for error in (-1e-6, 1e-6):
    np.testing.assert_array_equal(fsq.ids(codes_VL + error, PUBLISHED), np.arange(1000))


@pytest.mark.parametrize("levels", [PUBLISHED, (2, 3), (4,), (64, 2, 7)])
def test_ids_stay_in_range_for_extreme_latents(levels):
  values = [-np.inf, -3e38, -50, 0, 1e-30, 50, 3e38, np.inf]
  z_XL = np.repeat(np.array(values, np.float32)[:, None], len(levels), 1)
  ids_X = np.asarray(fsq.ids(fsq.quantize(z_XL, levels), levels))
  last = fsq.codebook_size(levels) - 1
  zero = int(fsq.ids(np.zeros(len(levels)), levels))
  np.testing.assert_array_equal(ids_X, [0, 0, 0, zero, zero, last, last, last])


def test_the_gradient_is_the_bound_s_own_as_if_nothing_were_rounded():
  z_X = np.linspace(-2, 2, 400)
  step = 1e-6
  _, back = jax.vjp(lambda z: fsq.quantize(z, WIDE), jnp.tile(z_X[:, None], (1, len(WIDE))))
  weights_XL = np.random.default_rng(0).uniform(0.5, 2, (400, len(WIDE))).astype(np.float32)
  (got_XL,) = back(jnp.asarray(weights_XL))
  for dim, level in enumerate(WIDE):
    if level > 2:
      slope_X = (paper_bound(z_X + step, level) - paper_bound(z_X - step, level)) / (2 * step)
      want_X = weights_XL[:, dim] * slope_X / (level // 2)
      np.testing.assert_allclose(got_XL[:, dim], want_X, rtol=3e-3)
