"""Training and freezing: what moves, what does not, and where dropout is."""

from contract import A
from contract import batch
from contract import BOTH
from contract import CASES
from contract import columns
from contract import make
from contract import OAT
from contract import program
from contract import QUEST
from contract import SPEC
from contract import UNORDERED
import jax
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers


def programs(tokenizer, params, made):
  """All that a frozen tokenizer runs."""
  tokens_BN = np.zeros((2, tokenizer.max_tokens), np.int32)
  return [
    program(tokenizer.encode, params, *columns(made)),
    program(tokenizer.decode, params, tokens_BN, 3, BOTH),
    program(tokenizer.evaluate, params, made),
    program(tiny.policy(SPEC, tokenizer, refinement=False).prepare, {"tokenizer": params}, made),
  ]


@pytest.mark.parametrize("values", [OAT, QUEST], ids=lambda values: values["name"])
def test_dropout_reaches_the_loss_only(values):
  made, key = batch(2), jax.random.key(0)
  plain, dropping = (make(values, dropout=dropout) for dropout in (0.0, 0.5))
  params = jax.eval_shape(plain.init, key)
  assert programs(plain, params, made) == programs(dropping, params, made)
  losses = [program(x.loss, params, made, key) for x in (plain, dropping)]
  assert losses[0] != losses[1]


def test_oat_without_ordering_differs_in_its_training_only():
  made, key = batch(2), jax.random.key(0)
  ordered, unordered = make(OAT), make(UNORDERED)
  params = jax.eval_shape(ordered.init, key)
  assert programs(ordered, params, made) == programs(unordered, params, made)
  assert ordered.prefix_decodable and not unordered.prefix_decodable
  losses = [program(x.loss, params, made, key) for x in (ordered, unordered)]
  assert losses[0] != losses[1]


@pytest.mark.parametrize(
  "values", [{"name": "bin", "spacing": "quantile"}, CASES["fast"]], ids=["bin", "fast"]
)
def test_fitting_is_deterministic_and_does_not_look_at_padding(values):
  tokenizer, made = make(values), batch(64)
  hidden = ~made["action_mask"][..., None]
  fit = lambda x_WCA: tokenizer.fit(x_WCA, made["action_mask"], made["dataset"])
  first = tiny.to_bits(fit(made["actions"]))
  assert tiny.to_bits(fit(made["actions"])) == first
  assert tiny.to_bits(fit(np.where(hidden, np.float32(1e6), made["actions"]))) == first
  assert tiny.to_bits(fit(batch(64, seed=1)["actions"])) != first


# OAT's first step. A change that is meant to change them renews them: pytest prints both sides.
GOLDEN = {"loss": 1.4243832, "grad_norm": 4.2259393}
MLP = "up/w up/b across/w across/b down/w down/b"
TRANSFORMER = "w_down w_up norm_self/scale norm_mlp/scale"
ATTENTION = "w_q w_k w_v w_o"
NAMES = {
  "": "embed_actions/w embed_actions/b encoder_positions registers to_latent/w to_latent/b",
  "to_registers/": MLP,
  "encoder/": "norm_out/scale",
  "encoder/blocks_0/": TRANSFORMER,
  "encoder/blocks_0/self_attention/": ATTENTION,
  "decoder/": "from_latent/w from_latent/b latent_positions masked_latent queries to_actions/w "
  "to_actions/b",
  "decoder/to_queries/": MLP,
  "decoder/transformer/": "norm_out/scale",
  "decoder/transformer/blocks_0/": TRANSFORMER + " norm_cross/scale",
  "decoder/transformer/blocks_0/self_attention/": ATTENTION,
  "decoder/transformer/blocks_0/cross_attention/": ATTENTION,
}
# All tokens are kept in its training.
UNTRAINED = {"quest": {"network/decoder/masked_latent"}}


@pytest.mark.parametrize("name", ["oat", "quest", "vq", "example"])
def test_training_moves_all_that_gradients_train_and_nothing_else(name):
  spec = tiny.spec()
  tokenizer = tokenizers.make(CASES[name], spec, tiny.statistics(A))
  # Without decay, only a gradient moves a parameter.
  run = tiny.trainer(tokenizer, (), tiny.optimizer_config(weight_decay=0.0))
  (before, _), (after, rows) = run([]), run([batch_lib.fake(spec, 16)] * 30)
  name_of = lambda path: path.replace("']['", "/").strip("[]'")
  before, after = (
    {name_of(path): bits for path, bits in tiny.to_bits(state.params).items()}
    for state in (before, after)
  )
  moved = {path for path, bits in before.items() if after[path] != bits}
  trained = {path for path in before if path.startswith("network/")}
  assert trained - moved == UNTRAINED.get(name, set())
  assert {path.partition("/")[0] for path in moved - trained} == (
    {"codebook"} if tokenizer.update else set()
  )
  assert np.mean([row["loss"] for row in rows[-5:]]) < 0.9 * rows[0]["loss"]
  if name == "oat":
    assert trained == {f"network/{where}{x}" for where in NAMES for x in NAMES[where].split()}
    assert {key: rows[0][key] for key in GOLDEN} == pytest.approx(GOLDEN, rel=1e-4)
