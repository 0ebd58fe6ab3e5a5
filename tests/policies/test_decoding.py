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


def decode(num_tokens, key=0, temperature=0.0, calls=None, sizes=(1,) * N, rows=2, **settings):
  """A model whose logits depend on the token and position fed; `calls` notes what runs."""
  length = sum(sizes)
  table = jax.random.normal(jax.random.key(42), (length, V + 1, V))

  def step(fed_BM, cache, position):
    if calls is not None:
      jax.debug.callback(lambda p, t: calls.append((int(p), t.tolist())), position, fed_BM[0])
    M = fed_BM.shape[1]
    logits_BMV = table[position + jnp.arange(M), fed_BM] + 0.1 * cache
    return logits_BMV, fed_BM, cache + fed_BM.sum()

  return decoding.decode(
    step,
    jnp.zeros(()),
    plan=decoding.blocks(sizes),
    batch_size=rows,
    bos=BOS,
    num_tokens=num_tokens,
    key=jax.random.key(key),
    sampling=Sampling(temperature),
    **settings,
  )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_longer_prefix_begins_with_the_shorter_one_and_ends_in_zeros(temperature):
  full_BN = np.asarray(decode(N, temperature=temperature).tokens_BN)
  for K in range(1, N):
    out = decode(K, temperature=temperature)
    tokens_BN = np.asarray(out.tokens_BN)
    np.testing.assert_array_equal(tokens_BN[:, :K], full_BN[:, :K])
    assert not tokens_BN[:, K:].any() and (out.num_tokens_B == K).all()
  if temperature:
    assert not np.array_equal(full_BN, decode(N, key=1, temperature=temperature).tokens_BN)


@pytest.mark.parametrize("K", [1, 3, N])
def test_the_model_runs_once_a_token_from_bos_on(K):
  calls = []
  tokens_BN = np.asarray(jax.jit(lambda K: decode(K, calls=calls))(K).tokens_BN)
  jax.effects_barrier()
  assert calls == [(i, [BOS if i == 0 else tokens_BN[0, i - 1]]) for i in range(K)]


def test_blocks_say_who_looks_at_what_and_what_is_fed():
  plan = decoding.blocks((1, 1, 2, 4))
  assert plan.ends_N.tolist() == [1, 2, 4, 4, 8, 8, 8, 8]
  assert plan.source_N.tolist() == [-1, 0, 1, -1, 2, 3, -1, -1]
  single = decoding.blocks((1,) * 4)
  assert single.source_N.tolist() == [-1, 0, 1, 2] and single.ends_N.tolist() == [1, 2, 3, 4]
  tokens_BN = np.array([[3, 4, 5, 6]])
  assert np.asarray(decoding.fed(tokens_BN, single.source_N, 9)).tolist() == [[9, 3, 4, 5]]
  # Each token is fed once, before it is first looked at: in the block behind its own.
  for sizes in [(1, 1, 2, 4), (2, 3, 3), (5,), (1, 1, 1)]:
    plan = decoding.blocks(sizes)
    fed_at = {source: i for i, source in enumerate(plan.source_N) if source >= 0}
    block_N = np.repeat(np.arange(len(sizes)), sizes)
    assert sorted(fed_at) == list(range(sum(sizes[:-1])))
    assert all(block_N[i] == block_N[token] + 1 for token, i in fed_at.items())


@pytest.mark.parametrize("sizes", [(), (2, 1), (1, 0, 1), (1, 4, 2, 1)])
def test_blocks_that_cannot_be_fed_are_errors(sizes):
  with pytest.raises(ValueError, match="needs sizes that never fall"):
    decoding.blocks(sizes)


def test_the_model_runs_once_a_block():
  sizes, calls = (1, 1, 2, 4), []
  run = jax.jit(lambda K: decode(K, calls=calls, sizes=sizes))
  full_BN = np.asarray(run(8).tokens_BN)
  jax.effects_barrier()
  t = full_BN[0].tolist()
  whole = [(0, [BOS]), (1, t[:1]), (2, [t[1], BOS]), (4, [t[2], t[3], BOS, BOS])]
  assert calls == whole and len(set(t)) > 2
  for turns, K in enumerate((1, 2, 4, 8), 1):
    calls.clear()
    tokens_BN = np.asarray(run(K).tokens_BN)
    jax.effects_barrier()
    assert calls == whole[:turns]
    np.testing.assert_array_equal(tokens_BN[:, :K], full_BN[:, :K])
    assert not tokens_BN[:, K:].any()


def test_nothing_is_generated_once_all_rows_have_ended():
  rows, end = 6, 2
  calls = []
  free_BN = np.asarray(decode(N, key=1, temperature=2.0, rows=rows).tokens_BN)
  out = decode(N, key=1, temperature=2.0, rows=rows, end=end, calls=calls)
  jax.effects_barrier()
  tokens_BN = np.asarray(out.tokens_BN)
  lengths = [next((i + 1 for i, t in enumerate(row) if t == end), N) for row in tokens_BN.tolist()]
  assert np.asarray(out.num_tokens_B).tolist() == lengths and 1 < len(set(lengths))
  for row, length in zip(tokens_BN, lengths):
    assert (row[length:] == end).all()
  assert tokens_BN[0, 0] == free_BN[0, 0]  # the draws are the same
  ended = decode(N, rows=rows, end=int(np.argmax(TABLE_FIRST)), calls=(early := []))
  jax.effects_barrier()
  assert len(early) == 1 and (ended.num_tokens_B == 1).all()


TABLE_FIRST = np.asarray(jax.random.normal(jax.random.key(42), (N, V + 1, V)))[0, BOS]


def test_a_row_ends_where_its_score_reaches_the_tolerance():
  score = lambda hidden_BM, tokens_BM: 1.0 / (1 + jnp.arange(3.0)) - 0.1 * (tokens_BM[:, 0] == 1)
  settings = {"rows": 3, "score": score, "temperature": 2.0, "key": 5}
  free = decode(N, **settings)  # no tolerance: the score is told, and ends nothing
  assert (free.num_tokens_B == N).all() and np.isfinite(free.scores_BX).all()
  run = jax.jit(lambda tolerance: decode(N, tolerance=tolerance, **settings))
  for tolerance in (0.2, 0.3, 0.45, 0.9, 2.0):
    out = run(tolerance)
    below_BX = np.asarray(free.scores_BX) <= tolerance
    # The first row's tokens do not hang on the others; each ends behind its first small score.
    length = int(np.argmax(below_BX[0])) + 1 if below_BX[0].any() else N
    assert out.num_tokens_B[0] == length
    for tokens_N, scores_X, count in zip(
      *map(np.asarray, (out.tokens_BN, out.scores_BX, out.num_tokens_B))
    ):
      assert not tokens_N[count:].any() and np.isinf(scores_X[count:]).all()
      assert (scores_X[: count - 1] > tolerance).all()
      assert count == N or scores_X[count - 1] <= tolerance
