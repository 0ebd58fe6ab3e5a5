"""OAT: causal masks, prefixes and totality, proven by gradients and by any tokens one likes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.nn import partitioning
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import oat
from oat_jax.tokenizers import tokenizer as tokenizer_lib

N, V = 8, 1000
SPEC = tiny.spec()


@pytest.fixture(scope="module")
def tokenizer():
  return tiny.tokenizer(SPEC)


@pytest.fixture(scope="module")
def params(tokenizer):
  return tiny.init(tokenizer)


def network(**changes):
  """The network and parameters whose biases and masks are not zero, so that nothing hides."""
  config = oat.Config(**(tiny.TOKENIZER | changes))
  C, A = SPEC.action_horizon, SPEC.action_dim
  net = oat.Network(config, SPEC)
  sample = jnp.zeros((1, C, A)), jnp.ones((1, C), bool), jnp.ones((1, 1, N), bool)
  init = jax.jit(lambda key: partitioning.init(net, key, *sample))
  rng = np.random.default_rng(0)
  noisy = lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
  return net, {"params": jax.tree.map(noisy, init(jax.random.key(0)))}


def chunk(B=2, seed=0):
  shape = (B, SPEC.action_horizon, SPEC.action_dim)
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def latents_BNL(B):
  return np.random.default_rng(3).uniform(-1, 1, (B, N, 4)).astype(np.float32)


def first(*num_tokens):
  """Which latents are kept where each row keeps its first few."""
  return np.arange(N) < np.array(num_tokens)[:, None]


def everything(B=2):
  return np.ones((B, SPEC.action_horizon), bool)


def test_register_i_sees_registers_up_to_i_only():
  net, variables = network(encoder_layers=2)

  def latents(registers_ND):
    inner = variables["params"] | {"registers": registers_ND}
    return net.apply({"params": inner}, chunk(), everything(), method="encode").sum((0, 2))

  jacobian_NND = jax.jit(jax.jacrev(latents))(variables["params"]["registers"])
  influence_NN = np.abs(jacobian_NND).max(-1)
  assert (influence_NN[np.triu_indices(N, 1)] == 0).all()
  assert (influence_NN[np.tril_indices(N)] > 0).all()


def test_actions_do_not_see_registers():
  mask_TT = oat.register_mask(4, range(1, N + 1))
  assert mask_TT[:4, :4].all() and not mask_TT[:4, 4:].any() and mask_TT[4:, :4].all()
  # Through the network: with two layers, register 0 would see later registers by way of actions.
  net, variables = network(encoder_layers=2)

  def first_latent(registers_ND):
    inner = variables["params"] | {"registers": registers_ND}
    return net.apply({"params": inner}, chunk(), everything(), method="encode")[:, 0].sum()

  gradient_ND = np.asarray(jax.jit(jax.grad(first_latent))(variables["params"]["registers"]))
  assert not gradient_ND[1:].any() and gradient_ND[0].any()


@pytest.mark.parametrize("patch", [1, 2])
def test_every_latent_sees_every_action_and_no_masked_step(patch):
  net, variables = network(patch=patch)
  mask_BC = everything()
  mask_BC[1, 3:] = False
  encode = jax.jit(lambda x_BCA: net.apply(variables, x_BCA, mask_BC, method="encode"))
  jacobian_BNBCA = jax.jit(jax.jacrev(lambda x_BCA: encode(x_BCA).sum(-1)))(chunk())
  influence_BNBC = np.abs(jacobian_BNBCA).max(-1)
  for b, valid in enumerate((8, 3)):
    assert (influence_BNBC[b, :, b, :valid] > 0).all()
    assert not influence_BNBC[b, :, b, valid:].any()
    assert not influence_BNBC[b, :, 1 - b].any()
  # Nor is a position looked at that holds hidden steps only.
  valid = -(-3 // patch)
  by_position = jax.jit(jax.grad(lambda x_PD: net.apply(
    {"params": variables["params"] | {"encoder_positions": x_PD}}, chunk(), mask_BC, method="encode"
  )[1].sum()))(variables["params"]["encoder_positions"])  # fmt: skip
  assert np.any(by_position[:valid], -1).all() and not np.any(by_position[valid:])
  rubbish = np.where(mask_BC[..., None], chunk(), np.nan)
  np.testing.assert_array_equal(encode(rubbish), encode(chunk()))


def test_the_decoder_is_causal_over_steps_and_sees_every_kept_code():
  net, variables = network(decoder_layers=2)
  P, K = SPEC.action_horizon // 2, 5
  codes_BNL = latents_BNL(2)

  def by_queries(queries_PD):
    decoder = variables["params"]["decoder"] | {"queries": queries_PD}
    inner = {"params": variables["params"] | {"decoder": decoder}}
    out_BCA = net.apply(inner, codes_BNL, first(K, K), method="decode")
    return out_BCA.reshape(2, P, -1).sum((0, 2))

  jacobian_PPD = jax.jit(jax.jacrev(by_queries))(variables["params"]["decoder"]["queries"])
  influence_PP = np.abs(jacobian_PPD).max(-1)
  assert (influence_PP[np.triu_indices(P, 1)] == 0).all()
  assert (influence_PP[np.tril_indices(P)] > 0).all()

  by_codes = lambda x: net.apply(variables, x, first(K, K), method="decode").sum((0, 2))
  influence_CN = np.abs(jax.jit(jax.jacrev(by_codes))(codes_BNL)).max((1, 3))
  assert (influence_CN[:, :K] > 0).all() and (influence_CN[:, K:] == 0).all()


@pytest.mark.parametrize("K", range(1, N + 1))
def test_a_prefix_ignores_what_lies_beyond_it(tokenizer, params, K):
  tokens_BN = np.random.default_rng(K).integers(0, V, (3, N))
  other_BN = tokens_BN.copy()
  other_BN[:, K:] = np.random.default_rng(9).integers(-5, 2**31 - 1, (3, N - K))
  decode = lambda tokens, k: np.asarray(tokenizer.decode(params, tokens, k))
  np.testing.assert_array_equal(decode(tokens_BN, K), decode(other_BN, K))
  if K < N:
    assert not np.array_equal(decode(tokens_BN, K), decode(tokens_BN, K + 1))


def test_tokens_behind_the_first_k_are_replaced_per_row(tokenizer, params):
  tokens_BN = np.random.default_rng(0).integers(0, V, (N, N))
  codes_BNL = fsq.codes(tokens_BN, (8, 5, 5, 5))
  net = oat.Network(oat.Config(**tiny.TOKENIZER), SPEC)
  variables = {"params": params["network"]}
  decode = jax.jit(lambda x_BNL, kept_BN: net.apply(variables, x_BNL, kept_BN, method="decode"))
  rows = decode(codes_BNL, first(*range(1, N + 1)))
  for b in range(N):
    alone = decode(codes_BNL[b : b + 1], first(b + 1))
    np.testing.assert_allclose(rows[b], alone[0], atol=1e-5)


def test_one_compiled_program_serves_every_prefix(tokenizer, params):
  traces = []

  @jax.jit
  def decode(params, tokens_BN, num_tokens):
    traces.append(num_tokens)
    return tokenizer.decode(params, tokens_BN, num_tokens)

  tokens_BN = np.random.default_rng(0).integers(0, V, (2, N))
  chunks = [np.asarray(decode(params, tokens_BN, K)) for K in range(1, N + 1)]
  assert len(traces) == 1
  # The same at the Python boundary, whose own jit must not take K for a constant.
  tokenizer.decode(params, tokens_BN, 1)
  with jax.no_tracing():
    for K in range(1, N + 1):
      np.testing.assert_allclose(tokenizer.decode(params, tokens_BN, K), chunks[K - 1], atol=1e-6)


def test_each_dataset_of_a_mixture_has_its_own_units():
  tokenizer = tiny.tokenizer(tiny.spec(num_datasets=2))
  params = tiny.init(tokenizer)
  rows = {name: np.asarray(params["statistics"][name])[:, None] for name in ("offset", "scale")}
  tokens_BN = np.random.default_rng(0).integers(0, V, (1, N)).repeat(2, 0)
  x_BCA = np.asarray(tokenizer.decode(params, tokens_BN, N, np.array([0, 1])))
  assert not np.allclose(x_BCA[0], x_BCA[1])
  normal_BCA = (x_BCA - rows["offset"]) * rows["scale"]
  free_CA = (np.abs(normal_BCA) < 0.999).all(0)  # where neither was clipped
  assert free_CA.any()
  np.testing.assert_allclose(normal_BCA[0][free_CA], normal_BCA[1][free_CA], atol=1e-4)
  # Chunks that are one chunk in their datasets' units have the same tokens.
  first_B = np.repeat([0, 1], 16)
  units_BCA = np.concatenate([chunk(16)] * 2) / 2
  same_BCA = rows["offset"][first_B] + units_BCA / rows["scale"][first_B]
  tokens_BN = np.asarray(tokenizer.encode(params, same_BCA, None, first_B))
  np.testing.assert_array_equal(tokens_BN[:16], tokens_BN[16:])
  alike_BN = np.asarray(tokenizer.encode(params, same_BCA, None, 0 * first_B))
  np.testing.assert_array_equal(tokens_BN[:16], alike_BN[:16])
  assert not np.array_equal(tokens_BN[16:], alike_BN[16:])


def test_dropout_never_reaches_encode():
  tokenizer = tiny.tokenizer(SPEC, dropout=0.5)
  params = tiny.init(tokenizer)
  tokens_BN = np.asarray(tokenizer.encode(params, chunk(16)))
  assert tokens_BN.shape == (16, N) and tokens_BN.dtype == np.int32
  assert tokens_BN.min() >= 0 and tokens_BN.max() < V and len(np.unique(tokens_BN)) > 20
  np.testing.assert_array_equal(tokens_BN, tokenizer.encode(params, chunk(16)))
  # Dropout has no parameters: the same ones must give the same tokens without it.
  np.testing.assert_array_equal(tokens_BN, tiny.tokenizer(SPEC).encode(params, chunk(16)))


def test_register_rows_alone_equal_the_full_computation():
  net, variables = network(encoder_layers=2)
  mask_BC = everything()
  mask_BC[1, 5:] = False

  def full(net, x_BCA, mask_BC):
    """Every layer computes every row; the registers are cut out at the end."""
    P = SPEC.action_horizon // 2
    steps_BCX = jnp.concatenate([x_BCA * mask_BC[..., None], mask_BC[..., None]], -1)
    x_BPD = net.embed_actions(steps_BCX.reshape(2, P, -1)) + net.encoder_positions_PD
    x_BTD = jnp.concatenate([x_BPD, jnp.stack([net.registers_ND] * 2)], 1)
    seen_BT = np.concatenate([mask_BC.reshape(2, P, 2).any(-1), np.ones((2, N), bool)], 1)
    x_BTD, _ = net.encoder(x_BTD, oat.register_mask(P, range(1, N + 1))[None] & seen_BT[:, None])
    return net.to_latent(x_BTD[:, P:])

  run = lambda method: jax.jit(lambda v: net.apply(v, chunk(), mask_BC, method=method))(variables)
  np.testing.assert_allclose(run("encode"), run(full), atol=1e-5)


def test_queries_of_batch_size_one_equal_queries_a_row():
  net, variables = network(decoder_layers=2)
  P = SPEC.action_horizon // 2

  def full(net, codes_BNL, kept_BN):
    """Every row of the batch computes its own queries."""
    part = net.decoder
    x_BND = part.from_latent(codes_BNL) + part.latent_positions_ND
    x_BND = jnp.where(kept_BN[..., None], x_BND, part.masked_1D)
    queries_BPD = jnp.stack([part.queries_PD] * 3)
    causal_1PP = np.tril(np.ones((1, P, P), bool))
    x_BPD, _ = part.transformer(queries_BPD, causal_1PP, memory=part.transformer.memory(x_BND))
    return part.to_actions(x_BPD).reshape(3, SPEC.action_horizon, -1)

  inputs = latents_BNL(3), first(1, 4, 8)
  run = lambda method: jax.jit(lambda v: net.apply(v, *inputs, method=method))(variables)
  np.testing.assert_allclose(run("decode"), run(full), atol=1e-5)


def test_bfloat16_tokens_stay_valid():
  tokenizer = tiny.tokenizer(SPEC, dtype="bfloat16")
  params = tiny.init(tokenizer)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  tokens_BN = tokenizer.encode(params, chunk())
  x_BCA = tokenizer.decode(params, tokens_BN, 3)
  assert x_BCA.dtype == np.float32 and np.isfinite(x_BCA).all()


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_bfloat16_reaches_all_layers(what):
  net, variables = network(dtype="bfloat16", shortcut=16)
  inputs = (chunk(), everything()) if what == "encode" else (latents_BNL(2), first(3, 3))
  run = lambda *arrays: net.apply(variables, *arrays, method=what)
  text = str(jax.make_jaxpr(run)(*inputs))
  # Of two axes: attention adds up its logits in float32.
  products = re.findall(r":(\w+)\[\d+,\d+\] = dot_general", text)
  assert products.count("bf16") >= 8
  assert products.count("f32") == 1  # the last one: to latents, or to actions


@pytest.mark.parametrize(
  ("N", "C", "A", "patch"), [(1, 1, 1, 1), (3, 5, 1, 1), (16, 8, 7, 4), (5, 7, 2, 7)]
)
def test_any_numbers_of_tokens_steps_and_dimensions(N, C, A, patch):
  spec = tiny.spec(action_horizon=C, action_dim=A)
  tokenizer = tiny.tokenizer(spec, num_tokens=N, patch=patch, shortcut=16)
  params, rng = tiny.init(tokenizer), np.random.default_rng(0)
  low, high = (np.asarray(params["statistics"][name])[0] for name in ("min", "max"))
  x_BCA = rng.uniform(low, high, (4, C, A)).astype(np.float32)
  tokens_BN = np.asarray(tokenizer.encode(params, x_BCA))
  assert tokens_BN.shape == (4, N) and len(np.unique(tokens_BN, axis=0)) > 1
  decoded = [tokenizer.decode(params, rng.integers(0, V, (4, N)), K) for K in range(1, N + 1)]
  for y_BCA in map(np.asarray, decoded):
    assert y_BCA.shape == (4, C, A) and ((y_BCA >= low) & (y_BCA <= high)).all()


def test_registers_of_a_block_do_not_see_each_other():
  net, variables = network(encoder_layers=2, blocks=(1, 1, 2, 4))

  def latents(registers_ND):
    inner = variables["params"] | {"registers": registers_ND}
    return net.apply({"params": inner}, chunk(), everything(), method="encode").sum((0, 2))

  jacobian_NND = jax.jit(jax.jacrev(latents))(variables["params"]["registers"])
  influence_NN = np.abs(jacobian_NND).max(-1) > 0
  block_N = np.array([0, 1, 2, 2, 3, 3, 3, 3])
  np.testing.assert_array_equal(
    influence_NN, (block_N[None] < block_N[:, None]) | np.eye(N, dtype=bool)
  )


def test_prefixes_of_blocks_end_with_a_block(params):
  tokenizer = tiny.tokenizer(SPEC, blocks=(1, 1, 2, 4))
  assert tokenizer.budgets == (1, 2, 4, 8)
  tokens_BN = np.random.default_rng(0).integers(0, V, (2, N))
  chunks = [np.asarray(tokenizer.decode(params, tokens_BN, K)) for K in range(1, N + 1)]
  for K, counts_as in enumerate((1, 2, 2, 4, 4, 4, 4, 8), 1):
    np.testing.assert_array_equal(chunks[K - 1], chunks[counts_as - 1])
  assert len({x.tobytes() for x in chunks}) == 4


SHARES = {
  "uniform": [1 / 8] * 8,
  "powers_of_two": [1 / 4, 1 / 4, 0, 1 / 4, 0, 0, 0, 1 / 4],
  "power_law": 1 / np.arange(1, 9) / np.sum(1 / np.arange(1, 9)),
  "random_subsets": [1 / 8] * 8,
  "none": [0] * 7 + [1],
}


@pytest.mark.parametrize("mode", oat.NESTED_DROPOUT)
def test_as_many_latents_are_kept_as_often_as_the_mode_says(mode):
  config = oat.Config(nested_dropout=mode, keep_all=0.2)
  kept_BN = np.asarray(oat.draw_kept(config, jax.random.key(0), 20_000))[:, 0]
  wanted_K = 0.8 * np.asarray(SHARES[mode]) + 0.2 * (np.arange(1, N + 1) == N)
  counts_K = np.bincount(kept_BN.sum(1), minlength=N + 1)[1:] / len(kept_BN)
  np.testing.assert_allclose(counts_K, wanted_K, atol=0.015)
  few_BN = kept_BN[kept_BN.sum(1) < N]
  if mode == "random_subsets":  # each latent as often as any other
    np.testing.assert_allclose(few_BN.mean(0), few_BN.mean(), atol=0.015)
  else:
    assert (np.diff(few_BN.astype(int), axis=1) <= 0).all()


def test_several_prefixes_of_an_example_come_from_all_parts_of_the_distribution():
  config = oat.Config(prefixes=4)
  kept_BMN = np.asarray(oat.draw_kept(config, jax.random.key(0), 1000))
  assert kept_BMN.shape == (1000, 4, N)
  for m in range(4):
    assert set(kept_BMN[:, m].sum(-1)) == {2 * m + 1, 2 * m + 2}


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_several_prefixes_count_by_their_relative_errors(weight):
  """The loss is their mean, its gradient that of their geometric mean, times loss over it."""
  cumulative = {"cumulative_weight": weight, "cumulative_dims": (0, 2)}
  tokenizer = tiny.tokenizer(SPEC, num_tokens=2, prefixes=2, **cumulative)
  params, made = tiny.init(tokenizer), batch_lib.fake(SPEC, 3)
  net = oat.Network(oat.Config(**tiny.TOKENIZER, num_tokens=2), SPEC)
  target_BCA = tokenizer_lib.normalize(params["statistics"], made["actions"], made["dataset"])
  mask_BCA = np.broadcast_to(tokenizer_lib.valid(made), target_BCA.shape)
  kept_BMN = np.broadcast_to(np.tri(2, dtype=bool), (3, 2, 2))  # the stratified draw of M = N

  def errors(network):
    x_BMCA, _ = net.apply({"params": network}, target_BCA, made["action_mask"], kept_BMN)
    parts = [
      tokenizer_lib.reconstruction_loss(x_BMCA[:, m], target_BCA, mask_BCA, *cumulative.values())
      for m in range(2)
    ]
    mean = {name: (parts[0][1][name] + parts[1][1][name]) / 2 for name in parts[0][1]}
    return jnp.stack([total for total, _ in parts]), mean

  def geometric(network):
    each, mean = errors(network)
    return jnp.exp(jnp.mean(jnp.log(each))), (jnp.mean(each), mean)

  loss = lambda network: tokenizer.loss(params | {"network": network}, made, jax.random.key(0))
  plainly = lambda network: jnp.mean(errors(network)[0])
  network = params["network"]
  (value, aux), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(network)
  (mean, (plain, parts)), wanted = jax.jit(jax.value_and_grad(geometric, has_aux=True))(network)
  unwanted = jax.jit(jax.grad(plainly))(network)
  np.testing.assert_allclose(value, plain, rtol=1e-5)
  assert set(parts) == ({"mse", "cumulative_mse"} if weight else {"mse"})
  for name, part in parts.items():
    np.testing.assert_allclose(aux[name], part, rtol=1e-5)
  flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  np.testing.assert_allclose(flat(found), flat(wanted) * value / mean, atol=1e-5)
  assert np.abs(flat(found) - flat(unwanted)).max() > 1e-3


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"blocks": (1, 1, 2)}, r"\(1, 1, 2\) must be positive sizes that add up to num_tokens 8"),
    ({"blocks": (0, 8)}, r"\(0, 8\) must be positive"),
    ({"blocks": (2, 2, 4)}, "the first of them 1"),
    ({"blocks": (1, 2, 5), "nested_dropout": "powers_of_two"}, None),
    ({"num_tokens": 6, "nested_dropout": "powers_of_two"}, "never keeps all 6 tokens"),
    ({"prefixes": 0}, "config.model.prefixes is 0"),
  ],
)
def test_blocks_and_prefixes_that_do_not_fit_are_errors(changes, message):
  if message is None:
    assert tiny.tokenizer(SPEC, **changes).budgets == (1, 3, 8)
    return
  with pytest.raises(ValueError, match=message):
    tiny.tokenizer(SPEC, **changes)
