"""Prefix decoding: one step a token, stopping behind the prefix; the cache is a value."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from oat_jax.policies.policy import Sampling


def sample(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
  """Draws one int32 token a row."""
  if sampling.temperature < 0 or sampling.top_k < 0:
    raise ValueError(f"{sampling}: temperature and top_k must not be negative")
  if sampling.top_k and not sampling.temperature:
    raise ValueError(f"{sampling}: top_k needs a temperature above 0; temperature 0 is greedy")
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  if sampling.top_k:
    kth_B1 = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
    logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
  return jax.random.categorical(key, logits_BV / sampling.temperature).astype(jnp.int32)


def decode(
  step: Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]],
  cache: Any,
  *,
  batch_size: int,
  max_tokens: int,
  bos: int,
  num_tokens: jax.Array | int,
  key: jax.Array,
  sampling: Sampling,
) -> jax.Array:
  """Generates the first `num_tokens` tokens, at a cost that grows with it, in one program.

  Args:
    step: (token_B, cache, position) -> (logits_BV, cache): feeds the token at `position`, returns
      the next one's logits.
    cache: the state of `step` after prefill.
    batch_size: B.
    max_tokens: N, the width of the result.
    bos: the id that is fed at position 0.
    num_tokens: K in 1 .. N, may be traced.
    key: split by position, so that a longer prefix begins with the shorter one's tokens.
    sampling: how a token is drawn.

  Returns:
    tokens_BN int32; 0 behind the prefix.
  """

  def body(position, carry):
    tokens_BN, token_B, cache = carry
    logits_BV, cache = step(token_B, cache, position)
    token_B = sample(logits_BV, jax.random.fold_in(key, position), sampling)
    tokens_BN = jax.lax.dynamic_update_slice_in_dim(tokens_BN, token_B[:, None], position, axis=1)
    return tokens_BN, token_B, cache

  tokens_BN = jnp.zeros((batch_size, max_tokens), jnp.int32)
  first_B = jnp.full(batch_size, bos, jnp.int32)
  return jax.lax.fori_loop(0, num_tokens, body, (tokens_BN, first_B, cache))[0]
