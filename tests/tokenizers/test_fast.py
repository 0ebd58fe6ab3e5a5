"""FAST's fit and its encoding, against an oracle and by definition; encoding is host code."""

import os
import subprocess
import sys

from fast_oracle import A
from fast_oracle import bpe_of
from fast_oracle import C
from fast_oracle import chunks
from fast_oracle import fit
from fast_oracle import in_units
from fast_oracle import make
from fast_oracle import N
from fast_oracle import normalized
from fast_oracle import Oracle
from fast_oracle import padded
from fast_oracle import row
from fast_oracle import said
from fast_oracle import SPEC
from fast_oracle import STATISTICS
from fast_oracle import V
import jax
import numpy as np
import pytest
import scipy.fft
import tiny

from oat_jax.tokenizers import fast


@pytest.fixture(scope="module")
def tokenizer():
  return make()


@pytest.fixture(scope="module")
def params(tokenizer):
  return fit(tokenizer, *chunks(400))


@pytest.fixture(scope="module")
def oracle(params):
  return Oracle(normalized(params, *chunks(400)))


def test_the_vocabulary_and_every_token_equal_the_oracle_s(tokenizer, params, oracle):
  fitted = params["fitted"]
  assert fitted["bpe_json"].tobytes().decode() == oracle.bpe._tokenizer.to_str()
  assert (fitted["min_token"], fitted["max_token"]) == (oracle.low, oracle.high)
  x_BCA, dataset_B = chunks(400)
  tokens_BN = np.asarray(tokenizer.encode(params, x_BCA, None, dataset_B))
  assert tokens_BN.dtype == np.int32 and tokens_BN.shape == (400, N)
  expected = [oracle.encode(x_CA) for x_CA in normalized(params, x_BCA, dataset_B)]
  np.testing.assert_array_equal(tokens_BN, padded(expected))
  lengths = np.array([len(ids) for ids in expected])
  assert lengths.mean() < 0.8 * N and len(np.unique(lengths)) > 3  # it does compress
  # Few chunks, whose pairs of tokens do not occur often enough to fill the vocabulary.
  few = fit(tokenizer, x_BCA[:20], dataset_B[:20])["fitted"]
  of_few = Oracle(normalized(params, x_BCA[:20], dataset_B[:20])).bpe
  assert few["bpe_json"].tobytes().decode() == of_few._tokenizer.to_str()
  assert of_few.get_vocab_size() < V and not few["lengths_V"][of_few.get_vocab_size() :].any()
  # Chunks that it was not fitted on, some of them far outside: where the oracle can spell all.
  x_BCA, dataset_B = chunks(400, seed=1, noise=0.3)
  x_BCA[::4] *= 3
  tokens_BN = np.asarray(tokenizer.encode(params, x_BCA, None, dataset_B))
  x_BCA = normalized(params, x_BCA, dataset_B)
  same = 0
  for tokens_N, x_CA in zip(tokens_BN, x_BCA):
    ids = oracle.encode(x_CA)
    if len(oracle.characters(ids)) == N:
      same += 1
      np.testing.assert_array_equal(tokens_N, padded([ids])[0])
  assert same > 200
  assert (np.abs(oracle.coefficients(x_BCA[0])) > max(oracle.high, -oracle.low)).any()


def test_normalisation_maps_the_quantiles_to_one_and_clips_nothing():
  tokenizer = make(SPEC, STATISTICS, vocab_size=1024)
  x_WCA, dataset_W = chunks(50)
  for name, value in (("q99", 1), ("q01", -1)):
    x_WCA[0], dataset_W[0] = STATISTICS[name][1], 1
    # A constant has one frequency; half as much again behind the quantile counts half as much more.
    x_WCA[1], dataset_W[1] = x_WCA[0] + 0.25 * (STATISTICS["q99"] - STATISTICS["q01"])[1] * value, 1
    params = fit(tokenizer, x_WCA, dataset_W)
    tokens_BN = tokenizer.encode(params, x_WCA[:2], None, dataset_W[:2])
    bpe = bpe_of(params)
    for tokens_N, factor in zip(np.asarray(tokens_BN), (1, 1.5)):
      got = [ord(c) + params["fitted"]["min_token"] for c in bpe.decode(said(tokens_N, 1024))]
      expected = round(10 * np.sqrt(C) * factor) * value
      np.testing.assert_array_equal(got, [expected] * A + [0] * (N - A))


def test_coefficients_equal_the_definition_of_the_transform():
  x_BCA = chunks(50)[0].astype(np.float64)
  c, f = np.arange(C), np.arange(C)[:, None]
  scale_F = np.where(np.arange(C), np.sqrt(2 / C), np.sqrt(1 / C))
  basis_FC = scale_F[:, None] * np.cos(np.pi * (c + 0.5) * f / C)
  exact_BN = (10 * np.einsum("fc,bca->bfa", basis_FC, x_BCA)).reshape(50, -1)
  got_BN = fast.coefficients(x_BCA, 10)
  clear_BN = np.abs(exact_BN % 1 - 0.5) > 1e-4
  np.testing.assert_array_equal(got_BN[clear_BN], np.round(exact_BN)[clear_BN])
  assert clear_BN.mean() > 0.99


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_float32_edge_cases(steps):
  """Constants, and coefficients of all frequencies, that lie on a half or next to it; extremes."""
  values = np.arange(-200, 200, dtype=np.float32) / 80
  values = np.concatenate([values, np.float32([-0.0, 1e-30, 1e6, -1e6, 1e30])])
  constant_BCA = np.tile(values[:, None, None], (1, steps, 2))
  halves_BCA = np.random.default_rng(0).integers(-20, 20, (200, steps, 2)).astype(np.float32) / 20
  halves_BCA = scipy.fft.idct(halves_BCA, axis=1, norm="ortho").astype(np.float32)
  x_BCA = np.concatenate([constant_BCA, halves_BCA])
  scaled = [scipy.fft.dct(x_CA, axis=0, norm="ortho") * np.float32(10) for x_CA in x_BCA]
  scaled_BN = np.reshape(scaled, (len(x_BCA), -1))
  got_BN = fast.coefficients(x_BCA, 10)
  assert scaled_BN.dtype == np.float32
  tie_BN = np.abs(scaled_BN) % 1 == 0.5
  assert tie_BN.sum() > 50 and (got_BN[tie_BN] % 2 == 0).all()
  np.testing.assert_array_less(np.abs(got_BN - scaled_BN)[~tie_BN], 0.5)
  # Nor do other rows matter to a row.
  alone_BN = [fast.coefficients(x_BCA[b : b + 1], 10)[0] for b in range(len(x_BCA))]
  np.testing.assert_array_equal(got_BN, alone_BN)


def test_tokens_of_float32_edge_cases_are_the_oracles():
  """In units that normalisation leaves as they are, so that both see the same ties."""
  spec = tiny.spec(action_horizon=C, action_dim=A)
  ends = {name: np.ones((1, A)) for name in ("max", "q99", "std")}
  ends |= {name: -np.ones((1, A)) for name in ("min", "q01")} | {"mean": np.zeros((1, A))}
  tokenizer = make(spec, tiny.statistics(A) | ends)
  values = np.concatenate([np.arange(-80, 81, dtype=np.float32) / 80, np.float32([-0.0, 1e-30])])
  constant_BCA = np.tile(values[:, None, None], (1, C, A))
  halves_BCA = np.random.default_rng(0).integers(-9, 10, (200, C, A)).astype(np.float32) / 20
  halves_BCA = scipy.fft.idct(halves_BCA, axis=1, norm="ortho").astype(np.float32)
  x_BCA = np.concatenate([constant_BCA, halves_BCA])
  scaled_BCA = scipy.fft.dct(x_BCA, axis=1, norm="ortho") * np.float32(10)
  assert (np.abs(scaled_BCA) % 1 == 0.5).sum() > 50
  params = fit(tokenizer, x_BCA, np.zeros(len(x_BCA), np.int32))
  oracle = Oracle(x_BCA)
  found_BN = np.asarray(tokenizer.encode(params, x_BCA))
  np.testing.assert_array_equal(found_BN, padded([oracle.encode(x_CA) for x_CA in x_BCA]))


@pytest.mark.parametrize("value", [-1e30, 3e38])
def test_huge_outliers_take_the_ends_of_the_range(tokenizer, params, value):
  x_BCA, dataset_B = chunks(2)
  x_BCA[0] = value
  x_BCA[1, ::2] = value  # all frequencies
  tokens_BN = tokenizer.encode(params, x_BCA, None, dataset_B)
  decoded_BCA = np.asarray(tokenizer.decode(params, tokens_BN, N, dataset_B))
  assert np.isfinite(decoded_BCA).all()
  if abs(value) < 1e38:  # where the sum of values does not overflow
    end_BCA = row(params, "max" if value > 0 else "min", dataset_B)
    np.testing.assert_allclose(decoded_BCA[0].mean(0), end_BCA[0, 0], rtol=0.2)


def test_the_error_of_every_chunk_is_at_most_the_quantisation_s(tokenizer, params):
  x_BCA, dataset_B = chunks(400)
  tokens_BN = tokenizer.encode(params, x_BCA, None, dataset_B)
  # In the units of the network, unclipped: from the coefficients that the tokens say.
  x_BCA = normalized(params, x_BCA, dataset_B)
  bpe = bpe_of(params)
  low = params["fitted"]["min_token"]
  for x_CA, tokens_N in zip(x_BCA, np.asarray(tokens_BN)):
    c_CA = np.reshape([ord(c) + low for c in bpe.decode(said(tokens_N))], (C, A)) / 10
    assert np.abs(scipy.fft.dct(x_CA, axis=0, norm="ortho") - c_CA).max() <= 0.05 + 1e-5
  # By orthonormality: a chunk and, for values inside the training range, what decode returns.
  inside_BCA = in_units(params, x_BCA, dataset_B)
  decoded_BCA = np.asarray(tokenizer.decode(params, tokens_BN, N, dataset_B))
  error_BCA = normalized(params, decoded_BCA, dataset_B) - normalized(params, inside_BCA, dataset_B)
  norm_B = np.sqrt(np.square(error_BCA).sum((1, 2)))
  assert norm_B.max() <= 0.05 * np.sqrt(N) + 1e-4
  assert np.sqrt(np.square(error_BCA).sum(1)).max() <= 0.05 * np.sqrt(C) + 1e-4
  assert norm_B.mean() > 0.3 * 0.05 * np.sqrt(N)  # and it does quantise


def test_encode_inside_compiled_programs_is_encode(tokenizer, params):
  x_BCA, dataset_B = chunks(40, seed=4)
  mask_BC = np.arange(C) < np.random.default_rng(0).integers(1, C + 1, (40, 1))
  expected_BN = np.asarray(tokenizer.encode(params, x_BCA, mask_BC, dataset_B))
  encode = jax.jit(tokenizer.encode)
  np.testing.assert_array_equal(encode(params, x_BCA, mask_BC, dataset_B), expected_BN)
  on_device = jax.device_put((params, x_BCA, mask_BC, dataset_B))
  np.testing.assert_array_equal(tokenizer.encode(*on_device), expected_BN)
  # Parameters that the program holds as constants.
  closed = jax.jit(lambda x_BCA: tokenizer.encode(params, x_BCA, mask_BC, dataset_B))
  np.testing.assert_array_equal(closed(x_BCA), expected_BN)
  for b in range(0, 40, 7):  # nor does a chunk's neighbourhood matter
    alone = tokenizer.encode(params, *(x[b : b + 1] for x in (x_BCA, mask_BC, dataset_B)))
    np.testing.assert_array_equal(alone[0], expected_BN[b])
  shape = jax.eval_shape(tokenizer.encode, params, x_BCA, mask_BC, dataset_B)
  assert shape.shape == (40, N) and shape.dtype == np.int32


ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, numpy as np, tiny
from oat_jax import tokenizers

spec = tiny.spec(action_horizon=32, action_dim=4)
tokenizer = tokenizers.make({"name": "fast"}, spec, tiny.statistics(4))
x_BCA = np.random.default_rng(0).normal(size=(1024, 32, 4)).astype(np.float32)
params = jax.device_put(tokenizer.fit(x_BCA, np.ones((1024, 32), bool), np.zeros(1024, int)))
assert params["fitted"]["bpe_json"].nbytes > 2**14
encode = jax.jit(lambda params, x_BCA, of: tokenizer.encode(params, x_BCA + 0 * of.sum()))
tokens_BN = np.zeros(1)
for _ in range(5):  # each waits for the one before it
  tokens_BN = encode(params, x_BCA, tokens_BN)
np.testing.assert_array_equal(tokens_BN, tokenizer.encode(params, x_BCA))
print("equal")
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs to give up cores")
def test_large_batches_are_encoded_inside_programs_even_on_one_core():
  """Where the CPU backend has one thread, a callback with large arguments would wait for ever."""
  command = [sys.executable, "-c", ONE_CORE]
  done = subprocess.run(command, env=tiny.environment(), timeout=60, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


def test_steps_that_the_mask_hides_hold_the_last_action(tokenizer, params):
  x_BCA, dataset_B = chunks(30, seed=6)
  count_B1 = np.random.default_rng(0).integers(1, C, (30, 1))
  mask_BC = np.arange(C) < count_B1
  held_BCA = np.take_along_axis(x_BCA, np.minimum(np.arange(C), count_B1 - 1)[..., None], 1)
  tokens_BN = tokenizer.encode(params, held_BCA, None, dataset_B)
  for rubbish in (np.nan, 1e9):
    wild_BCA = np.where(mask_BC[..., None], x_BCA, np.float32(rubbish))
    got_BN = tokenizer.encode(params, wild_BCA, mask_BC, dataset_B)
    np.testing.assert_array_equal(got_BN, tokens_BN)
    refit = tokenizer.fit(wild_BCA, mask_BC, dataset_B)
    expected = tokenizer.fit(held_BCA, np.ones_like(mask_BC), dataset_B)
    assert tiny.to_bits(refit) == tiny.to_bits(expected)
  # A hidden beginning holds the first real one; where all is hidden, there is one chunk for all.
  x_BCA[:, :2] = x_BCA[:, 2:3]
  mask_BC = np.tile(np.arange(C) >= 2, (30, 1))
  np.testing.assert_array_equal(
    tokenizer.encode(params, x_BCA, mask_BC, dataset_B),
    tokenizer.encode(params, x_BCA, None, dataset_B),
  )
  nothing_BN = np.asarray(tokenizer.encode(params, x_BCA, np.zeros_like(mask_BC), dataset_B))
  assert (nothing_BN == nothing_BN[0]).all()


def test_a_coefficient_that_the_vocabulary_cannot_spell_becomes_the_nearest_one():
  # Three coefficients were seen: 0, 100 and 200. Those of 33 .. 126 are spelled by ASCII tokens.
  spec = tiny.spec(action_horizon=1, action_dim=1)
  tokenizer = make(spec, tiny.statistics(1), normalization="none")
  x_WCA = np.tile(np.arange(0.0, 21.0, 10)[:, None, None], (2, 1, 1)).astype(np.float32)
  params = fit(tokenizer, x_WCA, np.zeros(6, int))
  bpe = bpe_of(params)
  read = lambda tokens_N: [ord(c) for c in bpe.decode(said(tokens_N))]
  encode = lambda x: np.asarray(tokenizer.encode(params, np.full((1, 1, 1), x)))[0]
  for value, expected in ((0.2, 0), (3.2, 33), (3.3, 33), (12.6, 126), (12.7, 126), (12.8, 126)):
    assert read(encode(value)) == [expected], value
  assert read(encode(20)) == [200] and read(encode(-5)) == [0] and read(encode(99)) == [200]
  assert bpe.encode(chr(20)).ids == []  # which is why


def test_a_stream_that_is_too_long_loses_its_end(params):
  short = make(max_tokens=5)
  x_BCA, dataset_B = chunks(20, seed=7)
  full_BN = np.asarray(make().encode(params, x_BCA, None, dataset_B))
  tokens_BN = short.encode(params, x_BCA, None, dataset_B)
  assert short.max_tokens == 5 and (full_BN[:, 5] != V).any()
  np.testing.assert_array_equal(tokens_BN, full_BN[:, :5])
  np.testing.assert_array_equal(
    short.decode(params, tokens_BN, 5, dataset_B), make().decode(params, full_BN, 5, dataset_B)
  )
  long = make(max_tokens=N + 7)
  tokens_BN = np.asarray(long.encode(params, x_BCA, None, dataset_B))
  np.testing.assert_array_equal(tokens_BN, np.pad(full_BN, ((0, 0), (0, 7)), constant_values=V))


def test_parameters_are_plain_arrays(tokenizer, params):
  assert set(params) == {"statistics", "fitted"}
  assert set(params["fitted"]) == {"bpe_json", "bytes_VX", "lengths_V", "min_token", "max_token"}
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
  assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.max_tokens) == (V + 1, V, N)
  assert params["fitted"]["bytes_VX"].shape[0] == V


def test_bad_configurations_are_errors():
  x_WCA, dataset_W = chunks(100)
  for changes, message in (
    ({"decoding": "lenient"}, "'lenient'; it must be one of: total, strict"),
    ({"vocab_size": 0}, "vocab_size is 0; it must be in 2..32768"),
    ({"vocab_size": 10**6}, "vocab_size is 1000000"),
    ({"scale": 0.0}, "scale is 0.0; it must be above 0"),
    ({"max_tokens": -1}, "max_tokens is -1"),
    ({"normalization": "q1"}, "normalization is 'q1'"),
    ({"vocab_sise": 5}, "no key 'vocab_sise'; did you mean 'vocab_size'"),
  ):
    with pytest.raises(ValueError, match=message):
      make(**changes)
  with pytest.raises(
    ValueError, match=r"lie in -\d+\.\.\d+.* at least \d+ tokens.*vocab_size is 20"
  ):
    fit(make(vocab_size=20), x_WCA, dataset_W)
  x_WCA[0] = 1e30
  with pytest.raises(ValueError, match=r"vocab_size is 300: raise it, or lower config.model.scale"):
    fit(make(), x_WCA, dataset_W)
  with pytest.raises(ValueError, match="statistics of the training actions"):
    fit(make(SPEC, None), x_WCA, dataset_W)


def test_the_alphabet_may_fill_the_vocabulary_but_not_leave_it():
  x_WCA, dataset_W = chunks(100)
  size = fit(make(vocab_size=1024), x_WCA, dataset_W)["fitted"]
  values = int(size["max_token"] - size["min_token"]) + 1
  with pytest.raises(ValueError, match=r"at least (\d+) tokens") as error:
    fit(make(vocab_size=values), x_WCA, dataset_W)
  needed = int(str(error.value).split("at least ")[1].split()[0])
  assert needed > values  # the bytes that spell the characters have tokens, too
  params = fit(make(vocab_size=needed), x_WCA, dataset_W)
  bpe = bpe_of(params)
  assert bpe.get_vocab_size() == needed
  with pytest.raises(ValueError, match="vocab_size"):
    fit(make(vocab_size=needed - 1), x_WCA, dataset_W)
