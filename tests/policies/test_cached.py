"""Tokens generated with a cache are those of one full forward pass, over every tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers
from oat_jax.perception import observation
from oat_jax.policies import autoregressive

SPEC = tiny.spec(num_datasets=1)
NAMES = {
  "oat": {"name": "oat"} | tiny.TOKENIZER,
  "unordered": {"name": "oat", "nested_dropout": "none"} | tiny.TOKENIZER,
  "quest": {"name": "quest", "num_tokens": 4, "encoder_layers": 1, "decoder_layers": 1}
  | tiny.MODEL
  | {"patch": 2},
  "vq": {"name": "vq", "codes": 64, "latent": 8, "width": 32, "layers": 1},
  "bin": {"name": "bin"},
  "fast": {"name": "fast", "vocab_size": 256, "max_tokens": 12, "scale": 4.0},
}
TIE = 1e-4  # of two logits


@pytest.fixture(scope="module", params=NAMES)
def case(request):
  """(tokenizer, policy, its parameters, the full forward pass)."""
  tokenizer = tokenizers.make(NAMES[request.param], SPEC, tiny.statistics(SPEC.action_dim))
  if tokenizer.fit is None:
    inner = jax.jit(tokenizer.init)(jax.random.key(0))
  else:
    made = batch_lib.fake(SPEC, 200)
    inner = tokenizer.fit(made["actions"], made["action_mask"], made["dataset"])
  policy = tiny.policy(SPEC, tokenizer, layers=2, refinement=False)
  params = tiny.init(policy, inner)
  params["network"]["to_logits"]["w"] *= 20  # so that tokens differ
  config = autoregressive.Config(
    **tiny.MODEL, layers=2, observation=observation.Config(**tiny.OBSERVATION), refinement=False
  )
  N, V = tokenizer.max_tokens, tokenizer.vocab_size
  network = autoregressive.Network(config, SPEC, V, (1,) * N)

  @jax.jit
  def forward(params, tokens_BN, made):
    fed_BN = jnp.concatenate([jnp.full_like(tokens_BN[:, :1], V), tokens_BN[:, :-1]], 1)
    seen = observation.inputs(params["statistics"], made, config.observation)
    return network.apply({"params": params["network"]}, seen, fed_BN)[0]

  return tokenizer, policy, params, forward


@pytest.mark.parametrize("rows", [1, 64])
def test_greedy_tokens_of_every_prefix_are_the_forward_pass_s(case, rows):
  tokenizer, policy, params, forward = case
  made, act, N = batch_lib.fake(SPEC, rows), jax.jit(policy.act), tokenizer.max_tokens
  ties = 0
  for K in range(1, N + 1):
    _, info = act(params, made, jax.random.key(0), K)
    tokens_BN = np.asarray(info["tokens_BN"])
    written_BN = np.arange(N) < np.broadcast_to(info["num_tokens"], rows)[:, None]
    if tokenizer.pad_id is None:
      assert written_BN[:, :K].all() and not written_BN[:, K:].any()
    logits_BNV = np.asarray(forward(params, tokens_BN, made))
    differ_BN = (logits_BNV.argmax(-1) != tokens_BN) & written_BN
    close_BN = np.diff(np.sort(logits_BNV, -1)[..., -2:])[..., 0] < TIE
    assert close_BN[differ_BN].all()
    ties += int(differ_BN.sum())
  assert ties <= 1 + rows * N * N // 1000, f"{ties} tokens differ at near ties"
  assert len(np.unique(tokens_BN[written_BN])) > min(rows, 2)
