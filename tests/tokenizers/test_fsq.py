"""FSQ: every id is one grid point, every level is reachable, gradients pass straight through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oat_jax.tokenizers import fsq

PUBLISHED = (8, 5, 5, 5)
LEVELS = [PUBLISHED, (2, 3), (4,), (7, 2, 6)]


@pytest.mark.parametrize("levels", LEVELS)
def test_ids_and_codes_are_inverse_over_the_whole_codebook(levels):
  ids_V = np.arange(np.prod(levels))
  codes_VL = fsq.codes(ids_V, levels)
  np.testing.assert_array_equal(fsq.ids(codes_VL, levels), ids_V)
  assert len(np.unique(codes_VL, axis=0)) == len(ids_V) == fsq.codebook_size(levels)
  assert np.abs(codes_VL).max() <= 1


def test_the_first_dimension_runs_fastest():
  digits_VL = np.stack(np.unravel_index(np.arange(1000), (5, 5, 5, 8))[::-1], -1)
  expected_VL = (digits_VL - [4, 2, 2, 2]) / [4, 2, 2, 2]
  np.testing.assert_allclose(fsq.codes(np.arange(1000), PUBLISHED), expected_VL, atol=1e-7)


@pytest.mark.parametrize("levels", LEVELS)
def test_quantize_reaches_every_level_and_nothing_else(levels):
  z_XL = jnp.tile(jnp.linspace(-6, 6, 4001)[:, None], (1, len(levels)))
  codes_XL = np.asarray(fsq.quantize(z_XL, levels))
  for dim, level in enumerate(levels):
    values = np.unique(np.round(codes_XL[:, dim] * (level // 2)))
    np.testing.assert_array_equal(values, np.arange(level) - level // 2)
    assert (np.diff(codes_XL[:, dim]) >= 0).all()
  # What comes out is a grid point, up to rounding: encoding it anew gives the same code.
  ids_X = fsq.ids(codes_XL, levels)
  np.testing.assert_allclose(fsq.codes(ids_X, levels), codes_XL, atol=1e-6)


def test_ids_round_and_do_not_truncate():
  codes_VL = fsq.codes(np.arange(1000), PUBLISHED)
  for error in (-1e-6, 1e-6):
    np.testing.assert_array_equal(fsq.ids(codes_VL + error, PUBLISHED), np.arange(1000))


@pytest.mark.parametrize("value", [0.0, 1e-30, 50.0, -50.0, 3e38, -3e38, np.inf, -np.inf])
@pytest.mark.parametrize("levels", LEVELS)
def test_ids_stay_in_range_for_extreme_latents(levels, value):
  z_L = jnp.full(len(levels), value, jnp.float32)
  ids = int(fsq.ids(fsq.quantize(z_L, levels), levels))
  assert 0 <= ids < fsq.codebook_size(levels)
  if abs(value) >= 50:
    assert ids == (fsq.codebook_size(levels) - 1 if value > 0 else 0)


def test_the_gradient_is_the_bound_s_own_as_if_nothing_were_rounded():
  z_XL = jax.random.normal(jax.random.key(0), (50, 4))

  def smooth(z_XL):
    levels = np.array(PUBLISHED)
    half, offset = (levels - 1) * 1.001 / 2, np.array([0.5, 0, 0, 0])
    return (jnp.tanh(z_XL + np.arctanh(offset / half)) * half - offset) / (levels // 2)

  weights_XL = jnp.arange(200.0).reshape(50, 4)
  got = jax.grad(lambda z: jnp.sum(weights_XL * fsq.quantize(z, PUBLISHED)))(z_XL)
  want = jax.grad(lambda z: jnp.sum(weights_XL * smooth(z)))(z_XL)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  assert (np.abs(got[1:]) > 0).all()
