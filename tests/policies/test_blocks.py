"""The token policy over a tokenizer whose tokens come in blocks: a block is generated at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.perception import observation
from oat_jax.policies import autoregressive
from oat_jax.policies import Sampling

N, V, BLOCKS = 8, 1000, (1, 1, 2, 4)
# What is fed, and up to which position each looks, written out.
SOURCE = [None, 0, 1, None, 2, 3, None, None]
ENDS = [1, 2, 4, 4, 8, 8, 8, 8]
SPEC = tiny.spec()


@pytest.fixture(scope="module")
def tokenizer():
  return tiny.tokenizer(SPEC, blocks=BLOCKS)


@pytest.fixture(scope="module")
def policy(tokenizer):
  return tiny.policy(SPEC, tokenizer, layers=2)


@pytest.fixture(scope="module")
def params(policy, tokenizer):
  params = tiny.init(policy, tiny.init(tokenizer))
  params["network"]["to_logits"]["w"] *= 20
  return params


@pytest.fixture(scope="module")
def forward(params):
  """(fed_BN, batch, params) -> logits_BNV by one full forward pass."""
  config = autoregressive.Config(
    **tiny.MODEL, layers=2, observation=observation.Config(**tiny.OBSERVATION)
  )
  network = autoregressive.Network(config, SPEC, V, BLOCKS, True)

  def forward(fed_BN, made, params=params):
    seen = observation.inputs(params["statistics"], made, config.observation)
    return network.apply({"params": params["network"]}, seen, fed_BN)[0]

  return forward


def fed(tokens_BN):
  columns = [np.full(len(tokens_BN), V) if i is None else tokens_BN[:, i] for i in SOURCE]
  return np.stack(columns, 1)


@pytest.mark.parametrize("rows", [1, 64])
def test_generating_by_blocks_equals_the_full_forward_pass(policy, params, forward, rows):
  made, act = batch_lib.fake(SPEC, rows), jax.jit(policy.act)
  full = jax.jit(forward)
  for K in (1, 2, 4, 8):
    tokens_BN = np.asarray(act(params, made, jax.random.key(0), K)[1]["tokens_BN"])
    logits_BNV = np.asarray(full(fed(tokens_BN), made))
    best_BN, close_BN = logits_BNV.argmax(-1), np.diff(np.sort(logits_BNV, -1)[..., -2:])[..., 0]
    differ_BN = (best_BN != tokens_BN)[:, :K]
    assert (close_BN[:, :K][differ_BN] < 1e-4).all() and differ_BN.sum() <= 1
  assert len(np.unique(tokens_BN)) >= N


def test_a_token_depends_on_the_blocks_before_its_own(params, forward):
  made = batch_lib.fake(SPEC, 1)
  fed_1N = fed(np.arange(N)[None])

  def by_embedding(rows_ND):
    table_VD = params["network"]["embed_tokens"]["table"]
    # BOS stands at several positions, so each gets an id of its own.
    ids_N = jnp.arange(N) + V + 1
    network = params["network"] | {"embed_tokens": {"table": table_VD.at[ids_N].set(rows_ND)}}
    return forward(ids_N[None], made, params | {"network": network})[0, :, :16].sum(-1)

  rows_ND = params["network"]["embed_tokens"]["table"][fed_1N[0]]
  influence_NN = np.abs(jax.jit(jax.jacrev(by_embedding))(rows_ND)).max(-1)
  for i in range(N):
    assert (influence_NN[i, : ENDS[i]] > 0).all() and (influence_NN[i, ENDS[i] :] == 0).all()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 10)])
def test_a_longer_prefix_begins_with_the_shorter_one(policy, params, sampling):
  act = jax.jit(policy.act, static_argnames="sampling")
  made, key = batch_lib.fake(SPEC, 3), jax.random.key(1)
  whole_BN = np.asarray(act(params, made, key, N, sampling=sampling)[1]["tokens_BN"])
  for K in (1, 2, 4):
    tokens_BN = np.asarray(act(params, made, key, K, sampling=sampling)[1]["tokens_BN"])
    np.testing.assert_array_equal(tokens_BN[:, :K], whole_BN[:, :K])


def test_one_by_one_a_token_depends_on_all_before_it(tokenizer, params):
  policy = tiny.policy(SPEC, tokenizer, layers=2, by_block=False)
  made = batch_lib.fake(SPEC, 3)
  single, block = (
    np.asarray(jax.jit(p.act)(params, made, jax.random.key(0))[1]["tokens_BN"])
    for p in (policy, tiny.policy(SPEC, tokenizer, layers=2))
  )
  np.testing.assert_array_equal(single[:, :3], block[:, :3])  # fed alike so far
  assert not np.array_equal(single, block)
  assert policy.budgets == (1, 2, 4, 8)  # prefixes still end where the tokenizer's do
  assert not policy.refines  # a change is known behind those only


def test_blocks_that_shrink_are_refused(tokenizer):
  shrinking = tiny.tokenizer(SPEC, blocks=(1, 4, 2, 1))
  with pytest.raises(ValueError, match=r"\(1, 4, 2, 1\).*needs sizes that never fall"):
    tiny.policy(SPEC, shrinking)
  tiny.policy(SPEC, shrinking, by_block=False)


def test_the_loss_falls(policy, tokenizer):
  made = batch_lib.fake(SPEC, 16)
  made["tokens"] = np.random.default_rng(0).integers(0, V, (16, N), np.int32)
  made |= {"prefix": np.full(16, 4, np.int32), "refinement": np.ones(16, np.float32)}
  _, rows = tiny.train_steps(policy, (tiny.init(tokenizer),), [made] * 30)
  assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
