"""The token policy over sequences of varying length, and over prefixes that end at certain lengths.

Its network is silenced but for the last bias, so that what it says of every token is known.
"""

import jax
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers

SPEC = tiny.spec()
C, A, N, V = 8, 3, 12, 257  # V: the pad's id, the last one, included
PAD = V - 1


@pytest.fixture(scope="module")
def tokenizer():
  values = {"name": "fast", "vocab_size": V - 1, "max_tokens": N, "scale": 4.0}
  return tokenizers.make(values, SPEC, tiny.statistics(A))


@pytest.fixture(scope="module")
def fitted(tokenizer):
  made = batch_lib.fake(SPEC, 200)
  return tokenizer.fit(made["actions"], made["action_mask"], made["dataset"])


@pytest.fixture(scope="module")
def policy(tokenizer):
  return tiny.policy(SPEC, tokenizer)


@pytest.fixture(scope="module")
def params(policy, fitted):
  return tiny.init(policy, fitted)


def saying(params, bias_V):
  """Parameters whose logits are `bias_V`, whatever has been seen and said."""
  output = params["network"]["to_logits"]
  b = np.zeros(output["b"].shape, np.float32)
  b[: len(bias_V)] = bias_V
  silenced = {"w": np.zeros_like(output["w"]), "b": b}
  return params | {"network": params["network"] | {"to_logits": silenced}}


def given(lengths):
  """A batch with tokens of these lengths, and ids behind the first pad that no encoder writes."""
  rng = np.random.default_rng(0)
  tokens_BN = rng.integers(0, PAD, (len(lengths), N), np.int32)
  for tokens_N, length in zip(tokens_BN, lengths):
    tokens_N[length : length + 1] = PAD
  return batch_lib.fake(SPEC, len(lengths)) | {"tokens": tokens_BN}


def test_tokens_count_up_to_and_including_the_first_pad(policy, params):
  lengths = (0, 1, 5, N - 1, N)  # the last one has no pad
  made, bias_V = given(lengths), np.random.default_rng(1).normal(size=V)
  best = int(bias_V.argmax())
  made["tokens"][2, :2] = best  # some are right, one of them the first
  log_p_V = bias_V - np.log(np.exp(bias_V).sum())
  terms_B = [-log_p_V[tokens_N[: n + 1]] for tokens_N, n in zip(made["tokens"], lengths)]
  right_B = [tokens_N[: n + 1] == best for tokens_N, n in zip(made["tokens"], lengths)]
  counts = [len(terms) for terms in terms_B]
  assert counts == [1, 2, 6, N, N]
  said = saying(params, bias_V)
  loss, aux = jax.jit(policy.loss)(said, made, jax.random.key(0))
  np.testing.assert_allclose(loss, np.concatenate(terms_B).mean(), rtol=1e-5)
  np.testing.assert_allclose(aux["token_accuracy"], np.concatenate(right_B).mean(), rtol=1e-6)
  np.testing.assert_allclose(aux["first_token_accuracy"], 1 / 5, rtol=1e-6)
  values = jax.jit(policy.evaluate)(said, made)
  expected_BN = [np.pad(terms, (0, N - len(terms))) for terms in terms_B]
  np.testing.assert_allclose(values["cross_entropy"], expected_BN, rtol=1e-5)
  means_B = [right.mean() for right in right_B]
  np.testing.assert_allclose(values["token_accuracy"], means_B, rtol=1e-6)


def test_what_stands_behind_the_first_pad_trains_nothing(policy, params):
  made = given((0, 3, 8))
  behind_BN = np.cumsum(made["tokens"] == PAD, 1) - (made["tokens"] == PAD) > 0
  other_BN = np.where(behind_BN, (made["tokens"] + 1) % V, made["tokens"])
  front_BN = np.where(behind_BN, made["tokens"], (made["tokens"] + 1) % V)

  @jax.jit
  def gradients(tokens_BN):
    of = lambda network: policy.loss(
      params | {"network": network}, made | {"tokens": tokens_BN}, jax.random.key(0)
    )
    return jax.grad(lambda network: of(network)[0])(params["network"])

  one, other, changed = (gradients(tokens) for tokens in (made["tokens"], other_BN, front_BN))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), one, other)
  assert np.abs(changed["to_logits"]["b"] - one["to_logits"]["b"]).max() > 1e-3


def test_a_policy_may_end_the_sequence_early(policy, params, tokenizer, fitted):
  made = batch_lib.fake(SPEC, 3)
  act = jax.jit(policy.act)
  ended, info = act(saying(params, np.arange(V) == PAD), made, jax.random.key(0))
  assert (np.asarray(info["tokens_BN"]) == PAD).all()
  nothing_BN = np.full((3, N), PAD, np.int32)
  expected_BCA = tokenizer.decode(fitted, nothing_BN, N, made["dataset"])
  np.testing.assert_allclose(ended, expected_BCA, atol=1e-6)
  spoken, _ = act(saying(params, np.arange(V) == 7), made, jax.random.key(0))
  assert not np.allclose(ended, spoken)


def test_a_prefix_inside_a_block_rounds_down_and_the_policy_says_so():
  blocks = tiny.tokenizer(SPEC, blocks=(1, 1, 2, 4))
  policy = tiny.policy(SPEC, blocks)
  params = tiny.init(policy, tiny.init(blocks))
  made, act = batch_lib.fake(SPEC, 3), jax.jit(policy.act)
  assert blocks.budgets == (1, 2, 4, 8)
  for K, counted in zip(range(1, 9), (1, 2, 2, 4, 4, 4, 4, 8)):
    chunk_BCA, info = act(params, made, jax.random.key(0), K)
    assert (info["num_tokens"] == counted).all()
    tokens_BN = np.asarray(info["tokens_BN"])
    assert not tokens_BN[:, counted:].any() and tokens_BN[:, :counted].any()
    expected_BCA = act(params, made, jax.random.key(0), counted)[0]
    np.testing.assert_array_equal(chunk_BCA, expected_BCA)
    decoded_BCA = blocks.decode(params["tokenizer"], tokens_BN, K, made["dataset"])
    np.testing.assert_allclose(chunk_BCA, decoded_BCA, atol=1e-5)
