"""QueST: nothing leaks from the future, proven by gradients; missing tokens are masked."""

from typing import Any

import jax
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers
from oat_jax.nn import partitioning
from oat_jax.tokenizers import quest

N, V, C, A = 4, 1000, 8, 3
SPEC = tiny.spec()
VALUES: dict[str, Any] = tiny.MODEL | {
  "num_tokens": N,
  "encoder_layers": 1,
  "decoder_layers": 1,
  "patch": 2,
}


def make(spec=SPEC, **changes):
  statistics = tiny.statistics(spec.action_dim, spec.num_datasets)
  return tokenizers.make({"name": "quest"} | VALUES | changes, spec, statistics)


@pytest.fixture(scope="module")
def tokenizer():
  return make()


@pytest.fixture(scope="module")
def params(tokenizer):
  return tiny.init(tokenizer)


def chunk(B=2, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (B, C, A)).astype(np.float32)


@pytest.mark.parametrize("num_tokens", [2, 4])
def test_a_token_sees_the_steps_up_to_its_own_end_and_no_masked_one(num_tokens):
  net = quest.Network(quest.Config(**(VALUES | {"num_tokens": num_tokens})), SPEC)
  # Row c hides step c, the last row none.
  mask_BC = ~np.eye(C + 1, C, dtype=bool)
  x_BCA = chunk(1).repeat(C + 1, 0)
  like = jax.eval_shape(lambda: partitioning.init(net, jax.random.key(0), x_BCA, mask_BC))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 4, like)

  @jax.jit
  def encode(x_BCA, mask_BC):
    latents = lambda x_BCA: net.apply({"params": params}, x_BCA, mask_BC, method="encode")
    # No latent of another row: the gradient of a sum over rows is each row's own.
    return latents(x_BCA), jax.jacrev(lambda x_BCA: latents(x_BCA).sum((0, 2)))(x_BCA)

  latents_BNL, jacobian_NBCA = jax.tree.map(np.asarray, encode(x_BCA, mask_BC))
  sees_NC = np.arange(C) < (np.arange(num_tokens)[:, None] + 1) * (C // num_tokens)
  for c in range(C + 1):
    np.testing.assert_array_equal(jacobian_NBCA[:, c].any(-1), sees_NC & mask_BC[c])
  # Whether a step is hidden is seen by the same tokens: here, there is no gradient.
  changed_CN = (latents_BNL[:C] != latents_BNL[C]).any(-1)
  np.testing.assert_array_equal(changed_CN, sees_NC.T)
  rubbish_BCA = np.where(mask_BC[..., None], x_BCA, np.nan)
  np.testing.assert_array_equal(encode(rubbish_BCA, mask_BC)[0], latents_BNL)


@pytest.mark.parametrize("K", range(1, N + 1))
def test_a_prefix_ignores_what_lies_beyond_it_and_does_not_take_it_for_zeros(tokenizer, params, K):
  rng = np.random.default_rng(K)
  tokens_BN = rng.integers(0, V, (3, N))
  other_BN, zeros_BN = tokens_BN.copy(), tokens_BN.copy()
  other_BN[:, K:], zeros_BN[:, K:] = rng.integers(0, V, (3, N - K)), 0
  decode = lambda tokens, k: np.asarray(tokenizer.decode(params, tokens, k))
  np.testing.assert_array_equal(decode(tokens_BN, K), decode(other_BN, K))
  if K < N:
    assert not np.allclose(decode(tokens_BN, K), decode(zeros_BN, N))
  assert not tokenizer.prefix_decodable


def test_the_loss_equals_plain_numpy(tokenizer, params):
  made = batch_lib.fake(SPEC, 6)
  made["action_dim_mask"][-1, 1] = False
  net = quest.Network(quest.Config(**VALUES), SPEC)
  of = {name: np.asarray(rows)[0] for name, rows in params["statistics"].items()}
  target_BCA = (made["actions"] - (of["max"] + of["min"]) / 2) / ((of["max"] - of["min"]) / 2)
  inputs = target_BCA, made["action_mask"]
  predicted_BCA, _ = jax.jit(net.apply)({"params": params["network"]}, *inputs)
  mask_BCA = made["action_mask"][..., None] & made["action_dim_mask"][:, None]
  expected = np.square(np.asarray(predicted_BCA, np.float64) - target_BCA)[mask_BCA].mean()
  loss, aux = jax.jit(tokenizer.loss)(params, made, jax.random.key(0))
  np.testing.assert_allclose([loss, aux["mse"]], expected, rtol=1e-4)
  tokens_BN = tokenizer.encode(params, made["actions"], made["action_mask"])
  assert aux["codes_in_batch"] == len(np.unique(tokens_BN))


def test_padding_has_no_influence_on_loss_and_gradients(tokenizer, params):
  made = batch_lib.fake(SPEC, 4)
  made["action_mask"] = np.arange(C) < np.array([2, 3, 5, 8])[:, None]

  @jax.jit
  def gradients(actions_BCA):
    loss = lambda p, x_BCA: tokenizer.loss(p, made | {"actions": x_BCA}, jax.random.key(0))[0]
    return jax.value_and_grad(loss, argnums=(0, 1))(params, actions_BCA)

  value, (by_params, by_actions) = gradients(made["actions"])
  padded_BC = ~made["action_mask"]
  assert not np.asarray(by_actions)[padded_BC].any() and np.asarray(by_actions)[~padded_BC].any()
  rubbish_BCA = np.where(padded_BC[..., None], 1e6, made["actions"]).astype(np.float32)
  other = gradients(rubbish_BCA)
  assert tiny.to_bits((value, by_params)) == tiny.to_bits((other[0], other[1][0]))


def test_dropout_is_in_the_loss_alone(tokenizer, params):
  wet = make(dropout=0.5)
  tokens_BN = wet.encode(params, chunk(16))
  assert len(np.unique(tokens_BN)) > 10
  np.testing.assert_array_equal(tokens_BN, tokenizer.encode(params, chunk(16)))
  decode = lambda each: np.asarray(each.decode(params, tokens_BN, 3))
  np.testing.assert_array_equal(decode(wet), decode(tokenizer))
  loss = jax.jit(lambda key: wet.loss(params, batch_lib.fake(SPEC, 4), key)[0])
  assert loss(jax.random.key(0)) != loss(jax.random.key(1))


def test_bfloat16_tokens_stay_valid(params):
  tokenizer = make(dtype="bfloat16")
  tokens_BN = np.asarray(tokenizer.encode(params, chunk()))
  assert tokens_BN.dtype == np.int32 and tokens_BN.min() >= 0 and tokens_BN.max() < V
  x_BCA = tokenizer.decode(params, tokens_BN, 3)
  assert x_BCA.dtype == np.float32 and np.isfinite(x_BCA).all()


def test_bad_configurations_are_errors():
  for changes, message in (
    ({"num_tokens": 3}, "num_tokens 3 must divide the action horizon 8 into a power of two"),
    ({"num_tokens": 16}, "num_tokens 16 must divide the action horizon 8"),
    ({"patch": 3}, "patch 3 does not divide the action horizon 8"),
    ({"kernel": 1}, "kernel is 1; it must be at least 2"),
    ({"width": 40}, "width 40 is no multiple of head_width 16"),
    ({"levels": (8, 1)}, "every level must be at least 2"),
  ):
    with pytest.raises(ValueError, match=message):
      make(**changes)
  with pytest.raises(ValueError, match="num_tokens 2 must divide the action horizon 6"):
    make(tiny.spec(action_horizon=6), num_tokens=2)


BLOCK = "w_down w_up norm_self/scale norm_mlp/scale "
BLOCK += " ".join(f"self_attention/w_{name}" for name in "qkvo")
NAMES = {
  "": "convolutions_0/w convolutions_1/w norms_0/scale norms_1/scale encoder_positions to_latent/w "
  "to_latent/b",
  "encoder/": "norm_out/scale",
  "encoder/blocks_0/": BLOCK,
  "decoder/": "from_latent/w from_latent/b latent_positions masked_latent queries to_actions/w "
  "to_actions/b",
  "decoder/transformer/": "norm_out/scale",
  "decoder/transformer/blocks_0/": BLOCK + " norm_cross/scale",
  "decoder/transformer/blocks_0/cross_attention/": "w_q w_k w_v w_o",
}


def test_golden_first_step_and_falling_loss(tokenizer):
  # Where the model is meant to change, take the new values from the failure's message.
  made = batch_lib.fake(SPEC, 16)
  state, rows = tiny.train_steps(tokenizer, (), [made] * 30)
  first = {name: rows[0][name] for name in ("loss", "grad_norm")}
  assert first == pytest.approx({"loss": 0.8889231, "grad_norm": 2.3106182}, rel=1e-4)
  assert np.mean([row["loss"] for row in rows[-5:]]) < 0.8 * rows[0]["loss"]
  leaves = jax.tree_util.tree_leaves_with_path(state.params["network"])
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
  assert set(names) == {f"{where}{name}" for where in NAMES for name in NAMES[where].split()}
