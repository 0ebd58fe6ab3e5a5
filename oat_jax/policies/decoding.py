"""Prefix decoding: one step a block of tokens, stopping behind the prefix; the cache is a value.

A sequence of N tokens is generated in blocks; usually each is one token. What is fed at a position
is a token of the block before its own: where all blocks are single tokens, the token before it.
"""

from collections.abc import Callable, Sequence
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oat_jax.policies.policy import Sampling


def check(sampling: Sampling) -> None:
  """Raises ValueError for settings with which nothing can be drawn."""
  if sampling.temperature < 0 or sampling.top_k < 0:
    raise ValueError(f"{sampling}: temperature and top_k must not be negative")
  if sampling.top_k and not sampling.temperature:
    raise ValueError(f"{sampling}: top_k needs a temperature above 0; temperature 0 is greedy")


def sample(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
  """Draws one int32 token a row."""
  check(sampling)
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  if sampling.top_k:
    kth_B1 = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
    logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
  return jax.random.categorical(key, logits_BV / sampling.temperature).astype(jnp.int32)


class Blocks(NamedTuple):
  """How N positions are grouped; static numpy arrays.

  Attributes:
    sizes: of the blocks, in order.
    ends_N: the end of each position's block: position i looks at the positions before ends_N[i].
    source_N: the position whose token is fed at each position; -1 is BOS.
  """

  sizes: tuple[int, ...]
  ends_N: np.ndarray
  source_N: np.ndarray


def blocks(sizes: Sequence[int]) -> Blocks:
  """Groups sum(sizes) positions.

  A block is fed the tokens of the one before it, and BOS where it is longer than that; so each
  token is fed exactly once before it is looked at.

  Raises:
    ValueError: a block is shorter than the one before it, whose tokens it could not be fed.
  """
  sizes = tuple(int(size) for size in sizes)
  if min(sizes, default=0) < 1 or list(sizes) != sorted(sizes):
    raise ValueError(
      f"the blocks of tokens have sizes {sizes}; a policy that generates blocks needs sizes that "
      "never fall, e.g. (1, 1, 2, 4), or config.model.by_block=False"
    )
  ends = list(itertools.accumulate(sizes))
  source = []
  for size, before, end in zip(sizes, (0, *sizes), (0, *ends)):
    source += [end - before + j if j < before else -1 for j in range(size)]
  return Blocks(sizes, np.repeat(ends, sizes), np.asarray(source))


def fed(tokens_BN: jax.Array, source_N: np.ndarray, bos: int) -> jax.Array:
  """Returns what is fed at each position, (B, N)."""
  return jnp.where(source_N >= 0, tokens_BN[:, source_N], bos)


class Decoded(NamedTuple):
  """What was generated.

  Attributes:
    tokens_BN: int32; `fill` behind a row's last token.
    num_tokens_B: int32, how many were generated for a row, an end included.
    scores_BX: what `score` returned behind each of the X blocks; +inf where a row had none.
  """

  tokens_BN: jax.Array
  num_tokens_B: jax.Array
  scores_BX: jax.Array


def decode(
  step: Callable[..., tuple[jax.Array, Any, Any]],
  cache: Any,
  *,
  plan: Blocks,
  batch_size: int,
  bos: int,
  num_tokens: jax.Array | int,
  key: jax.Array,
  sampling: Sampling,
  end: int | None = None,
  score: Callable[[Any, jax.Array], jax.Array] | None = None,
  tolerance: jax.Array | float = -jnp.inf,
) -> Decoded:
  """Generates the first `num_tokens` tokens, at a cost that grows with it, in one program.

  Args:
    step: (fed_BM, cache, position) -> (logits_BMV, hidden, cache): feeds M positions from
      `position` on, returns the logits of their tokens and what `score` takes.
    cache: the state of `step` after prefill.
    plan: the blocks; one call of `step` for each.
    batch_size: B.
    bos: the id that is fed where there is no token.
    num_tokens: K, the end of a block; may be traced.
    key: split by position, so that a longer prefix begins with the shorter one's tokens.
    sampling: how a token is drawn.
    end: the id that ends a row; nothing is generated once all rows have ended.
    score: (hidden, tokens_BM) -> (B,), of a block; a row with at most `tolerance` ends behind it.
    tolerance: may be traced.
  """
  N = len(plan.source_N)
  fill = 0 if end is None else end
  rows = jnp.arange(batch_size)

  def block(size, carry):
    index, position, tokens_BN, running_B, count_B, scores_BX, cache = carry
    fed_BN = fed(tokens_BN, plan.source_N, bos)
    fed_BM = jax.lax.dynamic_slice_in_dim(fed_BN, position, size, axis=1)
    logits_BMV, hidden, cache = step(fed_BM, cache, position)
    drawn = [
      sample(logits_BMV[:, j], jax.random.fold_in(key, position + j), sampling) for j in range(size)
    ]
    tokens_BM = jnp.where(running_B[:, None], jnp.stack(drawn, 1), fill)
    count_B += size * running_B
    if score is not None:
      score_B = jnp.where(running_B, score(hidden, tokens_BM), jnp.inf)
      scores_BX = scores_BX.at[rows, index].set(score_B)
      running_B &= score_B > tolerance
    if end is not None:
      running_B &= ~(tokens_BM == end).any(1)
    tokens_BN = jax.lax.dynamic_update_slice_in_dim(tokens_BN, tokens_BM, position, axis=1)
    return index + 1, position + size, tokens_BN, running_B, count_B, scores_BX, cache

  carry = (
    jnp.int32(0),
    jnp.int32(0),
    jnp.full((batch_size, N), fill, jnp.int32),
    jnp.ones(batch_size, bool),
    jnp.zeros(batch_size, jnp.int32),
    jnp.full((batch_size, len(plan.sizes)), jnp.inf),
    cache,
  )
  # Blocks of one size share a loop, whose number of turns is decided as it runs.
  ended = 0
  for size, alike in itertools.groupby(plan.sizes):
    ended += size * len(list(alike))

    def wanted(carry, ended=ended):
      _, position, _, running_B, *_ = carry
      return (position < jnp.minimum(num_tokens, ended)) & running_B.any()

    carry = jax.lax.while_loop(wanted, lambda carry, size=size: block(size, carry), carry)
  _, _, tokens_BN, _, num_tokens_B, scores_BX, _ = carry
  return Decoded(tokens_BN, num_tokens_B, scores_BX)
