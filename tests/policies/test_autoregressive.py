"""The token policy: cached decoding is the full forward pass, causality, prefixes, its loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.perception import observation
from oat_jax.policies import autoregressive
from oat_jax.policies import Sampling

N, V = 8, 1000
SPEC = tiny.spec()


@pytest.fixture(scope="module")
def tokenizer():
  return tiny.tokenizer(SPEC)


@pytest.fixture(scope="module")
def policy(tokenizer):
  return tiny.policy(SPEC, tokenizer, layers=2, refinement=False)


@pytest.fixture(scope="module")
def params(policy, tokenizer):
  params = tiny.init(policy, tiny.init(tokenizer))
  params["network"]["to_logits"]["w"] *= 20  # far from uniform, so that tokens matter
  return params


@pytest.fixture(scope="module")
def act(policy):
  return jax.jit(policy.act, static_argnames="sampling")


@pytest.fixture(scope="module")
def teacher_forced(params):
  """(tokens_BN that begin with BOS, batch, params) -> logits_BNV by one full forward pass."""
  config = autoregressive.Config(
    **tiny.MODEL, layers=2, observation=observation.Config(**tiny.OBSERVATION)
  )
  network = autoregressive.Network(config, SPEC, V, (1,) * N)

  def forward(shifted_BN, made, params=params):
    seen = observation.inputs(params["statistics"], made, config.observation)
    return network.apply({"params": params["network"]}, seen, shifted_BN)[0]

  forward.network = network
  return forward


def seen(B=3):
  made = batch_lib.fake(SPEC, B)
  return {name: made[name] for name in ("observation", "observation_mask", "dataset")}


def shifted(tokens_BN):
  tokens_BN = np.asarray(tokens_BN)
  return np.concatenate([np.full_like(tokens_BN[:, :1], V), tokens_BN[:, :-1]], 1)


def test_greedy_decoding_with_the_cache_equals_the_full_forward_pass(act, params, teacher_forced):
  tokens_BN = np.asarray(act(params, seen(), jax.random.key(0))[1]["tokens_BN"])
  assert len(np.unique(tokens_BN)) >= N  # a policy that repeats itself would prove little
  logits_BNV = jax.jit(teacher_forced)(shifted(tokens_BN), seen())
  np.testing.assert_array_equal(tokens_BN, np.argmax(logits_BNV, -1))


def test_cached_logits_equal_the_full_forward_pass_for_every_prefix(params, teacher_forced):
  net, variables = teacher_forced.network, {"params": params["network"]}
  made, rng = seen(), np.random.default_rng(0)
  fed_BN = shifted(rng.integers(0, V, (3, N)))
  full_BNV = jax.jit(teacher_forced)(fed_BN, made)

  @jax.jit
  def one_by_one(fed_BN):
    config = net.config.observation
    inputs = observation.inputs(params["statistics"], made, config)
    memory = net.apply(variables, inputs, method="memory")
    cache = net.apply(variables, 3, method="empty_cache")
    logits = []
    for i in range(N):
      row_B1 = fed_BN[:, i : i + 1]
      row_B1V, _, cache = net.apply(variables, row_B1, memory, cache, i, method="logits")
      logits.append(row_B1V[:, 0])
    return jnp.stack(logits, 1)

  cached_BNV = one_by_one(fed_BN)
  np.testing.assert_allclose(cached_BNV, full_BNV, atol=2e-4)
  assert cached_BNV.shape == (3, N, V)  # neither BOS nor padding has a logit


def test_logits_depend_on_earlier_tokens_only(params, teacher_forced):
  made, fed_BN = seen(1), shifted(np.arange(N)[None])

  def by_embedding(rows_ND):
    """The table's row of each token fed is an argument, so that it has a gradient."""
    table_VD = params["network"]["embed_tokens"]["table"].at[fed_BN[0]].set(rows_ND)
    network = params["network"] | {"embed_tokens": {"table": table_VD}}
    return teacher_forced(fed_BN, made, params | {"network": network})[0, :, :16].sum(-1)

  rows_ND = params["network"]["embed_tokens"]["table"][fed_BN[0]]
  influence_NN = np.abs(jax.jit(jax.jacrev(by_embedding))(rows_ND)).max(-1)
  assert (influence_NN[np.triu_indices(N, 1)] == 0).all()
  assert (influence_NN[np.tril_indices(N)] > 0).all()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 10), Sampling(2.0)])
def test_a_longer_prefix_begins_with_the_shorter_one_s_tokens(act, params, sampling):
  key = jax.random.key(3)
  full_BN = np.asarray(act(params, seen(), key, N, sampling=sampling)[1]["tokens_BN"])
  assert full_BN.min() >= 0 and full_BN.max() < V
  for K in range(1, N):
    tokens_BN = np.asarray(act(params, seen(), key, K, sampling=sampling)[1]["tokens_BN"])
    np.testing.assert_array_equal(tokens_BN[:, :K], full_BN[:, :K])
    assert not tokens_BN[:, K:].any()
  again = act(params, seen(), key, N, sampling=sampling)[1]["tokens_BN"]
  np.testing.assert_array_equal(full_BN, again)
  other = act(params, seen(), jax.random.key(4), N, sampling=sampling)[1]["tokens_BN"]
  assert np.array_equal(full_BN, other) == (sampling.temperature == 0)


def test_one_compiled_program_serves_every_prefix(policy, params):
  traces = []

  @jax.jit
  def act(params, batch, key, num_tokens):
    traces.append(num_tokens)
    return policy.act(params, batch, key, num_tokens)

  chunks = [np.asarray(act(params, seen(), jax.random.key(0), K)[0]) for K in range(1, N + 1)]
  assert len(traces) == 1
  assert len({chunk.tobytes() for chunk in chunks}) == N  # and K is no dead letter


def test_the_chunk_is_the_decoded_prefix(act, params, tokenizer):
  for K in range(1, N + 1):
    chunk_BCA, info = act(params, seen(), jax.random.key(0), K)
    decoded_BCA = tokenizer.decode(params["tokenizer"], info["tokens_BN"], K, seen()["dataset"])
    np.testing.assert_allclose(chunk_BCA, decoded_BCA, atol=1e-5)
  np.testing.assert_array_equal(act(params, seen(), jax.random.key(0))[0], chunk_BCA)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1e6, 0)])
def test_bos_and_padding_are_never_sampled(policy, tokenizer, sampling):
  params = tiny.init(policy, tiny.init(tokenizer))
  output = params["network"]["to_logits"]
  assert output["b"].shape == (1024,)
  # The network would like nothing better than BOS and the padded ids.
  loud = params["network"] | {"to_logits": output | {"b": output["b"].at[V:].set(1e4)}}
  act = jax.jit(policy.act, static_argnames="sampling")
  made = batch_lib.fake(SPEC, 64)
  _, info = act(params | {"network": loud}, made, jax.random.key(0), sampling=sampling)
  tokens_BN = np.asarray(info["tokens_BN"])
  assert tokens_BN.min() >= 0 and tokens_BN.max() < V
  if sampling.temperature > 1:
    assert tokens_BN.max() > 0.9 * V  # all of the vocabulary itself can be drawn


@pytest.mark.parametrize("num_tokens", [0, 9, -1])
def test_an_impossible_prefix_is_an_error(policy, params, num_tokens):
  with pytest.raises(ValueError, match=f"num_tokens is {num_tokens}; it must be in 1..8"):
    policy.act(params, seen(), jax.random.key(0), num_tokens)


def test_the_loss_equals_plain_numpy(tokenizer, policy, params, teacher_forced):
  made = batch_lib.fake(SPEC, 5)
  tokens_BN = np.asarray(
    tokenizer.encode(params["tokenizer"], made["actions"], made["action_mask"], made["dataset"])
  )
  logits_BNV = np.asarray(jax.jit(teacher_forced)(shifted(tokens_BN), made), np.float64)
  log_p_BNV = logits_BNV - np.log(np.exp(logits_BNV).sum(-1, keepdims=True))
  terms = [-log_p_BNV[b, n, tokens_BN[b, n]] for b, n in np.ndindex(tokens_BN.shape)]
  loss, aux = jax.jit(policy.loss)(params, made, jax.random.key(0))
  np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-4)
  right_BN = logits_BNV.argmax(-1) == tokens_BN
  np.testing.assert_allclose(aux["token_accuracy"], right_BN.mean(), rtol=1e-6)
  np.testing.assert_allclose(aux["first_token_accuracy"], right_BN[:, 0].mean(), rtol=1e-6)


def test_tokens_computed_once_equal_tokens_computed_in_the_step(policy, params):
  made = batch_lib.fake(SPEC, 5)
  once = jax.jit(policy.prepare)(params, made)
  loss = jax.jit(policy.loss)
  in_step, prepared = (loss(params, x, jax.random.key(0))[0] for x in (made, made | once))
  np.testing.assert_allclose(in_step, prepared, rtol=1e-6)
  other = loss(params, made | {"tokens": (once["tokens"] + 1) % V}, jax.random.key(0))[0]
  assert abs(other - in_step) > 1e-3


def test_no_gradient_reaches_the_tokenizer(policy, params):
  made = batch_lib.fake(SPEC, 5)
  grads = jax.jit(jax.grad(lambda p: policy.loss(p, made, jax.random.key(0))[0]))(params)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(grads["tokenizer"]))
  assert any(np.asarray(x).any() for x in jax.tree.leaves(grads["network"]))


def test_evaluate_tells_the_error_of_greedy_chunks(policy, params, act):
  made = batch_lib.fake(SPEC, 5)
  values = jax.jit(policy.evaluate)(params, made)
  mask_BCA = np.broadcast_to(made["action_mask"][..., None], made["actions"].shape)
  for K in (1, 5, 8):
    chunk_BCA = act(params, made, jax.random.key(0), K)[0]
    scale_A = params["tokenizer"]["statistics"]["scale"][0]
    error_BCA = np.square((chunk_BCA - made["actions"]) * scale_A)
    expected_B = [error_BCA[b][mask_BCA[b]].mean() for b in range(5)]
    np.testing.assert_allclose(values["chunk_mse"][:, K - 1], expected_B, rtol=1e-3)
  np.testing.assert_allclose(
    values["cross_entropy"].mean(), policy.loss(params, made, jax.random.key(0))[0], rtol=1e-4
  )


def test_dropout_is_for_training_only(tokenizer, params):
  policy = tiny.policy(SPEC, tokenizer, layers=2, dropout=0.5, refinement=False)
  made, loss = batch_lib.fake(SPEC, 5), jax.jit(policy.loss)
  assert loss(params, made, jax.random.key(0))[0] != loss(params, made, jax.random.key(1))[0]
  act = jax.jit(policy.act)
  one, other = (np.asarray(act(params, made, jax.random.key(i))[0]) for i in (0, 1))
  np.testing.assert_array_equal(one, other)


def test_golden_first_step_and_falling_loss(tokenizer):
  tokens_BN = np.random.default_rng(0).integers(0, V, (16, N), np.int32)
  made = batch_lib.fake(SPEC, 16) | {"tokens": tokens_BN}
  policy = tiny.policy(SPEC, tokenizer, refinement=False)
  _, rows = tiny.train_steps(policy, (tiny.init(tokenizer),), [made] * 30)
  first = {name: rows[0][name] for name in ("loss", "grad_norm")}
  assert first == pytest.approx({"loss": 6.9784298, "grad_norm": 0.53412676}, rel=1e-4)
  assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


@pytest.mark.parametrize("field, value", [("action_dim", 5), ("action_horizon", 16)])
def test_a_tokenizer_of_other_chunks_is_refused(field, value):
  other = tiny.tokenizer(dataclasses.replace(SPEC, **{field: value}))
  with pytest.raises(
    ValueError, match=rf"{field} is {getattr(SPEC, field)}, its tokenizer's {value}"
  ):
    tiny.policy(SPEC, other)
