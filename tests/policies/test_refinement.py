"""What tokens still to come would change: how it is prepared, learned, and ends a chunk."""

import jax
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib

N, V = 8, 1000
SPEC = tiny.spec(num_datasets=2)


@pytest.fixture(scope="module")
def tokenizer():
  return tiny.tokenizer(SPEC)


@pytest.fixture(scope="module")
def policy(tokenizer):
  return tiny.policy(SPEC, tokenizer)


@pytest.fixture(scope="module")
def params(policy, tokenizer):
  params = tiny.init(policy, tiny.init(tokenizer))
  params["network"]["to_logits"]["w"] *= 20
  # What is expected hangs on tokens and observations, not on positions.
  params["network"]["positions"] *= 0
  return params


@pytest.fixture(scope="module")
def made(policy, params):
  made = batch_lib.fake(SPEC, 20)
  return made | jax.device_get(jax.jit(policy.prepare)(params, made))


def test_the_change_behind_a_prefix_is_that_of_the_decoded_chunk(tokenizer, params, made):
  inner = params["tokenizer"]
  whole_BCA = np.asarray(tokenizer.decode(inner, made["tokens"], N, made["dataset"]))
  np.testing.assert_array_equal(made["prefix"], np.arange(20) % (N - 1) + 1)
  for b, prefix in enumerate(made["prefix"]):
    part_BCA = np.asarray(tokenizer.decode(inner, made["tokens"], int(prefix), made["dataset"]))
    scale_A = np.asarray(inner["statistics"]["scale"][made["dataset"][b]])
    change_CA = np.square((part_BCA[b] - whole_BCA[b]) * scale_A)[made["action_mask"][b]]
    np.testing.assert_allclose(made["refinement"][b], change_CA.mean(), rtol=1e-3, atol=1e-7)


def test_the_expected_change_is_learned_and_nothing_else_is_touched(policy, params, made):
  """A likelihood whose minimum is at the mean; its gradient stays in its own two layers."""
  of = lambda batch: jax.jit(jax.grad(lambda n: policy.loss(
      params | {"network": n}, batch, jax.random.key(0))[0]))(params["network"])  # fmt: skip
  one, other = of(made), of(made | {"refinement": made["refinement"] * 5 + 1})
  changed = {
    path for path in tiny.to_bits(one) if tiny.to_bits(one)[path] != tiny.to_bits(other)[path]
  }
  own = {path for path in tiny.to_bits(one) if "refine_" in path}
  assert len(own) == 4 and changed == own
  constant = made | {"refinement": np.full(20, 0.25, np.float32)}
  _, rows = tiny.train_steps(policy, (params["tokenizer"],), [constant] * 60)
  # The likelihood's minimum: that of an exponential distribution of this mean.
  assert 0 <= rows[-1]["refinement_nll"] - (1 + np.log(0.25)) < 0.05 < rows[0]["refinement_nll"]


def test_a_tolerance_ends_rows_early_and_each_is_its_own_prefix(policy, params, tokenizer, made):
  act = jax.jit(policy.act)
  key, inner = jax.random.key(0), params["tokenizer"]
  plain_BCA, plain = act(params, made, key, N)
  never_BCA, never = act(params, made, key, N, tolerance=0.0)
  np.testing.assert_array_equal(plain["tokens_BN"], never["tokens_BN"])
  np.testing.assert_allclose(plain_BCA, never_BCA, atol=1e-5)
  expected_BX = np.asarray(never["refinement_BX"])
  assert expected_BX.shape == (20, N) and (expected_BX > 0).all()
  counts = set()
  for tolerance in np.quantile(expected_BX, [0.1, 0.3]):
    chunk_BCA, info = act(params, made, key, 6, tolerance=np.float32(tolerance))
    count_B = np.asarray(info["num_tokens"])
    for b, count in enumerate(count_B):
      small_X = expected_BX[b, :6] <= tolerance
      assert count == (np.argmax(small_X) + 1 if small_X.any() else 6)
      tokens_BN = np.asarray(info["tokens_BN"])
      np.testing.assert_array_equal(tokens_BN[b, :count], np.asarray(plain["tokens_BN"])[b, :count])
      alone_BCA = tokenizer.decode(inner, tokens_BN, int(count), made["dataset"])
      np.testing.assert_allclose(chunk_BCA[b], alone_BCA[b], atol=1e-5)
    counts |= set(count_B.tolist())
  assert len(counts) > 2


def test_a_policy_without_ordered_tokens_refuses_a_tolerance(policy, params, made):
  seen, key = {name: made[name] for name in batch_lib.ACTING}, jax.random.key(0)
  unordered = tiny.policy(SPEC, tiny.tokenizer(SPEC, nested_dropout="none"))
  silent = tiny.policy(SPEC, tiny.tokenizer(SPEC), refinement=False)
  assert policy.refines and not unordered.refines and not silent.refines
  for each in (unordered, silent, tiny.policy(SPEC, name="regression")):
    with pytest.raises(ValueError, match="has not learned how much tokens refine"):
      each.act(params, seen, key, 1, tolerance=0.1)
