"""What is said about tokenizers, against plain numpy on cases that can be counted by hand."""

import time

import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.data import normalization
from oat_jax.tokenizers import analysis
from oat_jax.tokenizers.tokenizer import Tokenizer

SPEC = tiny.spec(num_datasets=2)
C, A = SPEC.action_horizon, SPEC.action_dim
PAD = 3
TOKENS_BN = np.array([[0, 1, 1, PAD], [2, 1, PAD, PAD], [2, 4, 0, 0]])


def digits(**changes):
  """A tokenizer whose tokens are the digits behind the point of a number, all of a chunk's."""

  def decode(params, tokens_BN, num_tokens=None, dataset_B=None):
    del params, dataset_B
    N = tokens_BN.shape[1]
    kept_N = np.arange(N) < (N if num_tokens is None else num_tokens)
    value_B = (tokens_BN * kept_N * 10.0 ** -np.arange(1, N + 1)).sum(1)
    return value_B[:, None, None] * np.ones((C, A))

  def encode(*args):
    raise AssertionError("tokens are given")

  fields = {"encode": encode, "decode": decode, "spec": SPEC, "vocab_size": 10, "max_tokens": 3}
  return Tokenizer(**(fields | changes))


def test_lengths_and_bits_count_no_padding():
  assert analysis.lengths(TOKENS_BN, PAD).tolist() == [3, 2, 4]
  assert analysis.lengths(TOKENS_BN).tolist() == [4, 4, 4]
  bits_N = analysis.bits_by_prefix(TOKENS_BN, 8, PAD)
  np.testing.assert_allclose(bits_N, [3, 6, 3 * 8 / 3, 3 * 3])
  np.testing.assert_allclose(analysis.bits_by_prefix(TOKENS_BN, 8), [3, 6, 9, 12])
  # Between two budgets no more tokens are decoded than up to the lower one.
  np.testing.assert_allclose(analysis.bits_by_prefix(TOKENS_BN, 8, None, (1, 4)), [3, 3, 3, 12])
  np.testing.assert_allclose(analysis.bits_by_prefix(TOKENS_BN, 8, PAD, (1, 2, 4)), [3, 6, 6, 9])


@pytest.mark.parametrize("N, wanted", [(1, [1]), (8, [1, 2, 4, 8]), (11, [1, 2, 4, 8, 11])])
def test_prefixes_that_stand_for_all(N, wanted):
  assert analysis.powers_of_two(N) == wanted


def test_code_usage_counts_codes_and_says_how_evenly_they_are_used():
  found = analysis.code_usage(TOKENS_BN, 6, PAD)
  # 0, 1, 2, 4 are used 3, 3, 2 and 1 times; 5 never; 3 is no code.
  p = np.array([3, 3, 2, 1]) / 9
  assert found["used"] == 4 and found["share"] == 4 / 5
  assert found["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
  assert found["used_by_position"] == [2, 2, 2, 1]
  uneven = np.exp(-(np.log(1 / 3) + 2 * np.log(2 / 3)) / 3)
  assert found["perplexity_by_position"] == pytest.approx([uneven, uneven, 2, 1])
  assert found["used_a_position"] == 7 / 4
  assert found["perplexity_a_position"] == pytest.approx((2 * uneven + 3) / 4)
  padded_BN = np.pad(TOKENS_BN, ((0, 0), (0, 2)), constant_values=PAD)  # nobody gets there
  assert analysis.code_usage(padded_BN, 6, PAD)["used_a_position"] == 7 / 4
  # Without a pad it is a code like the others; a position that nobody reaches has none.
  assert analysis.code_usage(TOKENS_BN, 6)["used"] == 5
  empty = analysis.code_usage(np.full((2, 1), PAD), 6, PAD)
  assert (empty["used"], empty["perplexity"], empty["perplexity_by_position"]) == (0, 0, [0])


@pytest.mark.parametrize("executed", [1, 3, C])
def test_errors_by_prefix_are_those_of_a_loop(executed):
  batch = batch_lib.fake(SPEC, 6)
  batch["action_dim_mask"][2:4, 1] = False
  tokenizer = digits()
  tokens_BN = np.random.default_rng(1).integers(0, 10, (6, 3))
  units = normalization.parameters(tiny.statistics(A, 2), "min_max", "actions")
  found = analysis.prefix_errors(tokenizer, executed)({}, units, batch, tokens_BN)
  scale_BA, offset_BA = (units[name][batch["dataset"]] for name in ("scale", "offset"))
  for b in range(6):
    valid_CA = batch["action_mask"][b][:, None] & batch["action_dim_mask"][b]
    np.testing.assert_array_equal(found["count_BA"][b], valid_CA.sum(0))
    target_CA = (batch["actions"][b] - offset_BA[b]) * scale_BA[b]
    for K in (1, 2, 3):
      chunk_CA = (np.asarray(tokenizer.decode({}, tokens_BN, K))[b] - offset_BA[b]) * scale_BA[b]
      error_CA = (chunk_CA - target_CA) * valid_CA
      close = lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
      close(found["squared_BNA"][b, K - 1], (error_CA**2).sum(0))
      close(found["cumulative_BNA"][b, K - 1], error_CA[:executed].sum(0))


def test_the_summary_is_a_mean_over_windows_and_the_worst_dimension_over_steps():
  squared_BNA = np.array([[[4.0, 2.0, 0.0]], [[1.0, 0.0, 0.0]]])
  cumulative_BNA = np.array([[[3.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]]])
  count_BA = np.array([[4, 4, 0], [1, 0, 0]])  # no window has the last dimension
  found = analysis.summarise(squared_BNA, cumulative_BNA, count_BA)
  np.testing.assert_allclose(found["mse_BN"], [[6 / 8], [1]])
  np.testing.assert_allclose(found["mse_N"], [7 / 8])
  np.testing.assert_allclose(found["worst_N"], [5 / 5])
  np.testing.assert_allclose(found["drift_N"], [np.sqrt(10 / 3)])


@pytest.mark.parametrize("pad", [None, 0, PAD, 9])
def test_random_and_corrupted_sequences_keep_their_lengths(pad):
  rng = np.random.default_rng(0)
  lengths_B = rng.integers(1, 6, 400)
  codes = np.delete(np.arange(10), [] if pad is None else pad)
  tokens_BN = codes[rng.integers(0, len(codes), (400, 5))]
  if pad is not None:
    tokens_BN[np.arange(5) >= lengths_B[:, None]] = pad
  for make in (analysis.random_tokens, analysis.corrupted_tokens):
    made_BN = make(tokens_BN, 10, pad, np.random.default_rng(1))
    assert made_BN.dtype == np.int32
    np.testing.assert_array_equal(made_BN == pad, tokens_BN == pad)
    assert set(np.unique(made_BN)) | {pad} == set(range(10)) | {pad}
    np.testing.assert_array_equal(made_BN, make(tokens_BN, 10, pad, np.random.default_rng(1)))
  changed_BN = analysis.corrupted_tokens(tokens_BN, 10, pad, rng) != tokens_BN
  assert (changed_BN.sum(1) == 1).all()
  assert changed_BN.any(0).all()
  share = np.mean(analysis.random_tokens(tokens_BN, 10, None, rng) == tokens_BN)
  assert 0.05 < share < 0.15  # as often as chance has it


def test_a_sequence_without_tokens_or_a_single_code_stays_as_it_is():
  rng = np.random.default_rng(0)
  empty_BN = np.full((2, 3), PAD)
  np.testing.assert_array_equal(analysis.corrupted_tokens(empty_BN, 5, PAD, rng), empty_BN)
  zeros_BN = np.zeros((2, 3), int)
  np.testing.assert_array_equal(analysis.corrupted_tokens(zeros_BN, 1, None, rng), zeros_BN)


def test_shares_of_sequences_that_decode_stay_finite_and_in_range():
  rows = {"min": np.array([[0.0] * A, [0.2] * A]), "max": np.array([[0.5] * A, [0.9] * A])}
  params, tokens_BN = {"statistics": rows}, np.array([[1, 0, 0], [6, 0, 0], [8, 0, 0], [0, 0, 0]])
  dataset_B = np.array([0, 1, 0, 1])  # 0.1 and 0.6 are inside, 0.8 and 0 are not
  found = analysis.decodable_share(digits(), params, tokens_BN, dataset_B)
  assert found == {"decodable": 1, "finite": 1, "in_range": 0.5}
  inner = digits()

  def broken(params, tokens_BN, num_tokens=None, dataset_B=None):
    chunks_BCA = inner.decode(params, tokens_BN, num_tokens, dataset_B)
    return np.where(tokens_BN[:, :1, None] == 6, np.nan, chunks_BCA)

  even = lambda params, tokens_BN, num_tokens=None: tokens_BN[:, 0] == 8
  tokenizer = digits(decode=broken, decodable=even)
  found = analysis.decodable_share(tokenizer, params, tokens_BN, dataset_B)
  assert found == {"decodable": 0.25, "finite": 0.75, "in_range": 0.25}


def test_cpu_time_counts_work_not_waiting():
  def work():
    begin = time.process_time()
    while time.process_time() - begin < 0.01:
      pass
    return np.zeros(1)

  assert analysis.cpu_microseconds(work, 5) >= 10_000
  assert analysis.cpu_microseconds(lambda: time.sleep(0.02), 5) < 10_000
