"""Sampling draws what it says, and prefix decoding is one program whatever the prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oat_jax.policies import decoding
from oat_jax.policies import Sampling

V, N, BOS = 7, 5, 7
LOGITS_V = jnp.array([0.1, 2.0, -1.0, 1.5, 1.0, -3.0, 0.5])


def draw(sampling, count=4000):
  keys_X = jax.random.split(jax.random.key(0), count)
  one = lambda key: decoding.sample(LOGITS_V[None], key, sampling)[0]
  return np.asarray(jax.jit(jax.vmap(one))(keys_X))


def softmax(logits_V):
  p_V = np.exp(np.asarray(logits_V, np.float64) - np.max(logits_V))
  return p_V / p_V.sum()


def assert_frequencies(tokens_X, p_V):
  frequencies_V = np.bincount(tokens_X, minlength=V) / len(tokens_X)
  assert (np.abs(frequencies_V - p_V) < 5 * np.sqrt(p_V * (1 - p_V) / len(tokens_X)) + 1e-9).all()


def test_temperature_zero_is_greedy():
  assert set(draw(Sampling())) == {1}
  with pytest.raises(ValueError, match="top_k needs a temperature above 0"):
    draw(Sampling(0.0, 3))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature):
  assert_frequencies(draw(Sampling(temperature)), softmax(LOGITS_V / temperature))


@pytest.mark.parametrize("top_k", [1, 2, 3, 6, 7, 50])
def test_top_k_draws_among_the_k_best_in_proportion(top_k):
  best_V = np.argsort(np.argsort(-LOGITS_V)) < top_k
  p_V = softmax(np.where(best_V, LOGITS_V, -np.inf))
  tokens_X = draw(Sampling(1.0, top_k))
  assert set(tokens_X) <= set(np.flatnonzero(best_V))
  assert_frequencies(tokens_X, p_V)


def test_rows_draw_independently():
  logits_BV = jnp.zeros((64, V))
  tokens_B = decoding.sample(logits_BV, jax.random.key(0), Sampling(1.0))
  assert len(np.unique(tokens_B)) == V and tokens_B.dtype == np.int32


@pytest.mark.parametrize("sampling", [Sampling(-1.0), Sampling(1.0, -2)])
def test_negative_settings_are_errors(sampling):
  with pytest.raises(ValueError, match="must not be negative"):
    decoding.sample(LOGITS_V[None], jax.random.key(0), sampling)


def decode(num_tokens, key=0, temperature=0.0, calls=None):
  """A model whose logits depend on the token and position fed; `calls` notes what runs."""
  table = jax.random.normal(jax.random.key(42), (N, V + 1, V))

  def step(token_B, cache, position):
    if calls is not None:
      jax.debug.callback(lambda p, t: calls.append((int(p), int(t[0]))), position, token_B)
    cache = cache.at[position].set(token_B[0])
    return table[position, token_B], cache

  return decoding.decode(
    step,
    jnp.full(N, -1),
    batch_size=2,
    max_tokens=N,
    bos=BOS,
    num_tokens=num_tokens,
    key=jax.random.key(key),
    sampling=Sampling(temperature),
  )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_longer_prefix_begins_with_the_shorter_one_and_ends_in_zeros(temperature):
  full_BN = np.asarray(decode(N, temperature=temperature))
  for K in range(1, N):
    tokens_BN = np.asarray(decode(K, temperature=temperature))
    np.testing.assert_array_equal(tokens_BN[:, :K], full_BN[:, :K])
    assert not tokens_BN[:, K:].any()
  if temperature:
    assert not np.array_equal(full_BN, decode(N, key=1, temperature=temperature))


@pytest.mark.parametrize("K", [1, 3, N])
def test_the_model_runs_once_a_token_from_bos_on(K):
  calls = []
  tokens_BN = np.asarray(jax.jit(lambda K: decode(K, calls=calls))(K))
  jax.effects_barrier()
  assert calls == [(i, BOS if i == 0 else tokens_BN[0, i - 1]) for i in range(K)]
