"""Bin: uniform bins by the formula, quantile bins by counting, and any dimension and tokens."""

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
import tiny

from oat_jax import tokenizers
from oat_jax.data import normalization

C, A, V = 8, 3, 16
N = C * A
SPEC = tiny.spec(num_datasets=2)
STATISTICS = tiny.statistics(A, datasets=2)
SPACINGS = ("uniform", "quantile")


def make(spec=SPEC, statistics=STATISTICS, **changes):
  return tokenizers.make({"name": "bin", "bins": V} | changes, spec, statistics)


def chunks(count, seed=0):
  """Chunks (count, C, A) of values that differ all, and numbers of datasets."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, C, A)).astype(np.float32), rng.integers(0, 2, count, np.int32)


def fit(tokenizer, x_WCA, dataset_W):
  return tokenizer.fit(x_WCA, np.ones(x_WCA.shape[:2], bool), dataset_W)


@pytest.fixture(scope="module", params=SPACINGS)
def made(request):
  """A tokenizer of either spacing and its parameters."""
  tokenizer = make(spacing=request.param)
  return tokenizer, fit(tokenizer, *chunks(200))


def rows(params, name, dataset_B):
  return np.asarray(params["statistics"][name])[dataset_B][:, None].astype(np.float64)


def test_uniform_bins_are_those_of_the_formula():
  tokenizer = make(bins=256)
  params = fit(tokenizer, *chunks(1))
  x_BCA, dataset_B = chunks(50, seed=1)
  low_BA, high_BA = (rows(params, name, dataset_B) for name in ("q01", "q99"))
  unit_BCA = 2 * (x_BCA - low_BA) / (high_BA - low_BA) - 1
  place_BCA = np.clip((unit_BCA + 1) / 2 * 256, 0, 255.999)
  tokens_BN = np.asarray(tokenizer.encode(params, x_BCA, None, dataset_B))
  assert tokens_BN.dtype == np.int32 and tokens_BN.shape == (50, N) == (50, tokenizer.max_tokens)
  nearest_BCA = np.clip(np.round(place_BCA), 1, 255)  # edge
  clear_BN = np.abs(place_BCA - nearest_BCA).reshape(50, N) > 1e-3
  np.testing.assert_array_equal(tokens_BN[clear_BN], place_BCA.astype(int).reshape(50, N)[clear_BN])
  assert clear_BN.mean() > 0.98 and {0, 255} <= set(tokens_BN.flatten())
  # Centres, and at most half a bin of error where nothing lies outside.
  centre_BCA = low_BA + (tokens_BN.reshape(50, C, A) + 0.5) / 256 * (high_BA - low_BA)
  decoded_BCA = np.asarray(tokenizer.decode(params, tokens_BN, N, dataset_B))
  np.testing.assert_allclose(decoded_BCA, centre_BCA, atol=1e-5)
  inside_BCA = np.abs(unit_BCA) <= 1
  error_BCA = np.abs(decoded_BCA - x_BCA) / (high_BA - low_BA) * 256
  assert inside_BCA.mean() > 0.5 and 0.49 < error_BCA[inside_BCA].max() < 0.5 + 1e-3
  assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.decodable) == (256, None, None)


def test_tokens_are_step_major():
  tokenizer = make(normalization="min_max")
  params = fit(tokenizer, *chunks(1))
  low_A, high_A = (params["statistics"][name][0] for name in ("min", "max"))
  x_BCA = np.tile(low_A, (1, C, 1))
  x_BCA[0, 1, 2] = high_A[2]
  tokens_BN = np.asarray(tokenizer.encode(params, x_BCA, None, np.zeros(1, int)))
  np.testing.assert_array_equal(np.flatnonzero(tokens_BN), [A + 2])
  assert tokens_BN[0, A + 2] == V - 1


def test_quantile_bins_hold_equally_many_values_each_with_their_mean():
  x_WCA, dataset_W = chunks(200)
  mask_WC = np.arange(C) < np.random.default_rng(0).integers(1, C + 1, (200, 1))
  chosen = [mask_WC & (dataset_W == d)[:, None] for d in (0, 1)]
  statistics = normalization.stack([normalization.compute(x_WCA[rows_WC]) for rows_WC in chosen])
  tokenizer = make(SPEC, statistics, spacing="quantile")
  wild_WCA = np.where(mask_WC[..., None], x_WCA, 1e9).astype(np.float32)
  params = tokenizer.fit(wild_WCA, mask_WC, dataset_W)
  tokens_WN = tokenizer.encode(params, x_WCA, None, dataset_W)
  decoded_WCA = np.asarray(tokenizer.decode(params, tokens_WN, N, dataset_W))
  tokens_WCA = np.asarray(tokens_WN).reshape(x_WCA.shape)
  for rows_WC in chosen:
    for a in range(A):
      bins_X, x_X, decoded_X = (x[..., a][rows_WC] for x in (tokens_WCA, x_WCA, decoded_WCA))
      counts_V = np.bincount(bins_X, minlength=V)
      assert np.ptp(counts_V) <= 1 and len(counts_V) == V
      assert (np.diff(bins_X[np.argsort(x_X)]) >= 0).all()
      means_V = np.array([x_X[bins_X == v].mean() for v in range(V)])
      np.testing.assert_allclose(decoded_X, means_V[bins_X], atol=1e-5)
  uniform = make(SPEC, statistics)
  of_uniform = fit(uniform, x_WCA, dataset_W)
  uniform_WCA = uniform.decode(
    of_uniform, uniform.encode(of_uniform, x_WCA, None, dataset_W), N, dataset_W
  )
  # Of normal values, where most lie.
  most_WCA = mask_WC[..., None] & (np.abs(x_WCA) < 1)
  error = lambda decoded_WCA: np.abs(decoded_WCA - x_WCA)[most_WCA].mean()
  assert error(decoded_WCA) < 0.8 * error(uniform_WCA)


def test_values_that_occur_often_and_constant_dimensions():
  """A gripper of two values, a constant, a nearly constant dimension and one that is left alone."""
  spec = tiny.spec(action_dim=5)
  rng = np.random.default_rng(0)
  shape = (100, C)
  x_WCA = np.stack(
    [
      rng.choice([-1.0, 1.0], shape, p=[0.9, 0.1]),
      np.full(shape, 0.3),
      7 + 1e-6 * rng.normal(size=shape),
      rng.choice([0.0, 100.0], shape),
      np.where(rng.random(shape) < 0.5, 0, rng.normal(size=shape)),
    ],
    -1,
  ).astype(np.float32)
  statistics = normalization.compute(x_WCA.reshape(-1, 5))
  statistics = statistics._replace(mask=np.array([True, True, True, False, True]))
  statistics = normalization.stack([statistics])
  bins = 64
  for spacing in SPACINGS:
    tokenizer = make(spec, statistics, spacing=spacing, bins=bins)
    params = fit(tokenizer, x_WCA, np.zeros(100, int))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    tokens_BN = tokenizer.encode(params, x_WCA)
    error_A = np.abs(np.asarray(tokenizer.decode(params, tokens_BN)) - x_WCA).max((0, 1))
    if spacing == "quantile":  # exact where there are fewer values than bins
      np.testing.assert_allclose(error_A[[0, 1, 3]], 0, atol=1e-5)
    else:
      np.testing.assert_array_less(error_A[[0, 1, 3]], np.array([1, 1e-6, 50]) / bins + 1e-5)
    assert error_A[2] <= np.ptp(x_WCA[..., 2])
    # Every bin, also those that hold no value, decodes into the range.
    every_BN = np.arange(bins)[:, None].repeat(C * 5, 1)
    decoded_BCA = np.asarray(tokenizer.decode(params, every_BN))
    known = params["statistics"]
    assert (decoded_BCA >= known["min"]).all() and (decoded_BCA <= known["max"]).all()
    assert (np.diff(decoded_BCA, axis=0) >= 0).all()  # in order


def test_extremes(made):
  tokenizer, params = made
  for value, expected in ((1e30, V - 1), (3e38, V - 1), (-1e30, 0), (-3e38, 0)):
    x_BCA = np.full((2, C, A), value, np.float32)
    tokens_BN = tokenizer.encode(params, x_BCA, None, np.array([0, 1]))
    assert (np.asarray(tokens_BN) == expected).all()
  plus, minus = (np.full((2, C, A), zero, np.float32) for zero in (0.0, -0.0))
  same = [tokenizer.encode(params, x, None, np.array([0, 1])) for x in (plus, minus)]
  np.testing.assert_array_equal(*same)


def test_what_no_token_of_the_prefix_says_is_the_training_mean(made):
  tokenizer, params = made
  x_BCA, dataset_B = chunks(4, seed=3)
  tokens_BN = np.asarray(tokenizer.encode(params, x_BCA, None, dataset_B))
  full_BN = np.asarray(tokenizer.decode(params, tokens_BN, N, dataset_B)).reshape(4, N)
  np.testing.assert_array_equal(
    tokenizer.decode(params, tokens_BN, dataset=dataset_B), full_BN.reshape(4, C, A)
  )
  mean_BN = np.tile(params["statistics"]["mean"][dataset_B], (1, C))
  traces = []

  @jax.jit
  def decode(params, tokens_BN, num_tokens, dataset_B):
    traces.append(num_tokens)
    return tokenizer.decode(params, tokens_BN, num_tokens, dataset_B)

  for K in (1, 4, N - 1, N):
    said_N = np.arange(N) < K
    expected_BN = np.where(said_N, full_BN, mean_BN)
    other_BN = np.where(said_N, tokens_BN, 2**31 - 1).astype(np.int32)
    for ids_BN in (tokens_BN, other_BN):
      for run in (decode, tokenizer.decode):
        got_BN = np.asarray(run(params, ids_BN, K, dataset_B)).reshape(4, N)
        np.testing.assert_allclose(got_BN, expected_BN, atol=1e-6)
  assert len(traces) == 1 and not tokenizer.prefix_decodable


@hypothesis.given(
  tokens=st.lists(st.integers(0, V - 1), min_size=N, max_size=N),
  K=st.integers(1, N),
  dataset=st.integers(0, 1),
)
@hypothesis.settings(
  max_examples=50, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_any_tokens_and_any_prefix_give_a_chunk_inside_the_training_range(made, tokens, K, dataset):
  tokenizer, params = made
  chunk_CA = np.asarray(tokenizer.decode(params, np.array([tokens]), K, np.array([dataset])))[0]
  known = params["statistics"]
  assert chunk_CA.shape == (C, A) and chunk_CA.dtype == np.float32 and np.isfinite(chunk_CA).all()
  assert (chunk_CA >= known["min"][dataset]).all() and (chunk_CA <= known["max"][dataset]).all()


def test_decode_is_total_even_where_the_boundary_cannot_look(made):
  tokenizer, params = made
  tokens_BN = np.tile(np.array([-(2**31), -1, V, 2**31 - 1], np.int32), (2, N // 4))
  decode = jax.jit(tokenizer.decode)
  for K in (-3, 0, 1, N + 1, 2**31 - 1):
    assert np.isfinite(decode(params, tokens_BN, K, np.array([0, 1]))).all()


def test_hidden_steps_are_encoded_as_the_mean_whatever_they_hold(made):
  tokenizer, params = made
  x_BCA, dataset_B = chunks(20, seed=4)
  mask_BC = np.arange(C) < np.random.default_rng(0).integers(1, C + 1, (20, 1))
  mean_BCA = np.where(mask_BC[..., None], x_BCA, params["statistics"]["mean"][dataset_B][:, None])
  expected_BN = tokenizer.encode(params, mean_BCA, None, dataset_B)
  for rubbish in (np.nan, 1e9):
    wild_BCA = np.where(mask_BC[..., None], x_BCA, np.float32(rubbish))
    got_BN = tokenizer.encode(params, wild_BCA, mask_BC, dataset_B)
    np.testing.assert_array_equal(got_BN, expected_BN)
  for b in range(0, 20, 7):  # nor does a chunk's neighbourhood matter
    alone = tokenizer.encode(params, *(x[b : b + 1] for x in (x_BCA, mask_BC, dataset_B)))
    np.testing.assert_array_equal(alone[0], expected_BN[b])


def test_each_dataset_has_its_own_bins():
  x_WCA, dataset_W = chunks(200)
  x_WCA[dataset_W == 1] *= 0.1  # beside the statistics, which are not those of these chunks
  for spacing in SPACINGS:
    tokenizer = make(spacing=spacing)
    params = fit(tokenizer, x_WCA, dataset_W)
    tokens = [np.asarray(tokenizer.encode(params, x_WCA, None, 0 * dataset_W + d)) for d in (0, 1)]
    assert not np.array_equal(*tokens)
    own_BN = np.where(dataset_W[:, None] == 0, *tokens)
    np.testing.assert_array_equal(tokenizer.encode(params, x_WCA, None, dataset_W), own_BN)
    decoded_BCA = np.asarray(tokenizer.decode(params, own_BN, N, dataset_W))
    alone_BCA = tokenizer.decode(params, own_BN[dataset_W == 1], N, dataset_W[dataset_W == 1])
    np.testing.assert_allclose(decoded_BCA[dataset_W == 1], alone_BCA, atol=1e-6)
  # A single dataset need not be named.
  alone, zero_B = make(tiny.spec(), tiny.statistics(A)), 0 * dataset_W
  params = fit(alone, x_WCA, zero_B)
  tokens_BN = alone.encode(params, x_WCA, None, zero_B)
  np.testing.assert_array_equal(alone.encode(params, x_WCA), tokens_BN)
  named_BCA = alone.decode(params, tokens_BN, N, zero_B)
  np.testing.assert_array_equal(alone.decode(params, tokens_BN), named_BCA)


def test_parameters_are_arrays_and_the_fit_repeats(made):
  tokenizer, params = made
  assert {name: set(part) for name, part in params.items()}["fitted"] == {"edges", "values"}
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  assert tiny.to_bits(fit(tokenizer, *chunks(200))) == tiny.to_bits(params)
  shape = jax.eval_shape(tokenizer.encode, params, *chunks(5)[:1], None, np.zeros(5, int))
  assert shape.shape == (5, N) and shape.dtype == np.int32


def test_bad_configurations_are_errors():
  for changes, message in (
    ({"bins": 1}, "config.model.bins is 1; it must be at least 2"),
    ({"spacing": "log"}, "'log'; it must be one of: uniform, quantile"),
    ({"normalization": "mean_std"}, "'mean_std'; it must be one of: q01_q99, min_max"),
    ({"bin": 8}, "no key 'bin'; did you mean 'bins'"),
  ):
    with pytest.raises(ValueError, match=message):
      make(**changes)
  x_WCA, dataset_W = chunks(10)
  with pytest.raises(ValueError, match="statistics of the training actions"):
    fit(make(SPEC, None), x_WCA, dataset_W)
  with pytest.raises(ValueError, match="chunks of every dataset; 1 has none"):
    fit(make(spacing="quantile"), x_WCA, 0 * dataset_W)
