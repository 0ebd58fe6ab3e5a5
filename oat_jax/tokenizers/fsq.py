"""Finite scalar quantisation (arXiv 2309.15505): bounded latents, rounded to a few levels.

The codebook is the product of the levels and is not learned; an id is a mixed-radix number whose
first dimension runs fastest. Latents that leave `quantize` lie in [-1, 1].
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

Levels = tuple[int, ...]
MOST_CODES = 2**24  # a policy's logits over more would not fit, long before ids overflow


def codebook_size(levels: Levels) -> int:
  return math.prod(levels)


def check_levels(levels: Levels) -> None:
  """Raises ValueError for levels that make no code, or too many."""
  if min(levels, default=0) < 2:
    raise ValueError(f"config.model.levels is {levels}; every level must be at least 2")
  if codebook_size(levels) > MOST_CODES:
    raise ValueError(
      f"config.model.levels {levels} make {codebook_size(levels):,} codes; at most {MOST_CODES:,} "
      "can be told apart"
    )


def quantize(z: jax.Array, levels: Levels) -> jax.Array:
  """Rounds latents (..., D_l) to the grid in [-1, 1]; gradients pass straight through."""
  rounded = _bound(z, levels)
  rounded = rounded + jax.lax.stop_gradient(jnp.round(rounded) - rounded)
  return rounded / (np.asarray(levels) // 2)


def ids(codes: jax.Array, levels: Levels) -> jax.Array:
  """Returns int32 ids (...) of grid points (..., D_l) as `quantize` makes them."""
  half = np.asarray(levels) // 2
  digits = jnp.round(codes * half + half).astype(jnp.int32)  # round: 2.9999998 is digit 3
  return jnp.sum(digits * _basis(levels), axis=-1).astype(jnp.int32)


def codes(token_ids: jax.Array, levels: Levels) -> jax.Array:
  """Returns the grid points (..., D_l) in [-1, 1] of ids (...) in 0 .. codebook_size - 1."""
  half = np.asarray(levels) // 2
  digits = token_ids[..., None] // _basis(levels) % np.asarray(levels)
  return (digits - half) / half.astype(np.float32)


def coordinates(levels: Levels) -> np.ndarray:
  """Returns the grid points (V, D_l) of all ids, float32."""
  half = np.asarray(levels) // 2
  digits = np.arange(codebook_size(levels))[:, None] // _basis(levels) % np.asarray(levels)
  return ((digits - half) / half).astype(np.float32)


def count_used(codes: jax.Array, levels: Levels) -> jax.Array:
  """Returns how many different codes occur among grid points (..., D_l)."""
  used_V = jnp.zeros(codebook_size(levels), bool).at[ids(codes, levels).reshape(-1)].set(True)
  return jnp.sum(used_V)


def _basis(levels: Levels) -> np.ndarray:
  return np.concatenate([[1], np.cumprod(levels[:-1])]).astype(np.int32)


def _bound(z: jax.Array, levels: Levels) -> jax.Array:
  """Squashes z so that rounding gives `levels` values; an even number is offset by a half."""
  levels_array = np.asarray(levels)
  half = (levels_array - 1) * (1 + 1e-3) / 2
  offset = np.where(levels_array % 2 == 0, 0.5, 0.0)
  shift = np.arctanh(offset / half)
  return jnp.tanh(z + shift) * half - offset
