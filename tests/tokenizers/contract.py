"""The tokenizers that the contract's tests go over, at tiny sizes, and what these share."""

import dataclasses
from typing import Any

import jax
import numpy as np
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers
from oat_jax.data import normalization

BOTH = np.array([0, 1], np.int32)  # datasets of two rows
SPEC = tiny.spec(num_datasets=2)
C, A = SPEC.action_horizon, SPEC.action_dim
STATISTICS = tiny.statistics(A, 2)
# As the configs ship it; tests/tokenizers/test_oat.py has the published kind.
SHIPPED = {"shortcut": 16, "prefixes": 2, "keep_all": 0.5, "nested_dropout": "power_law"}
SHIPPED |= {"cumulative_weight": 0.1, "cumulative_dims": (0, 1)}
OAT = {"name": "oat"} | tiny.TOKENIZER | SHIPPED
QUEST = {"name": "quest"} | tiny.MODEL
QUEST |= {"num_tokens": 4, "encoder_layers": 1, "decoder_layers": 1, "patch": 2, "shortcut": 16}
UNORDERED = OAT | {"nested_dropout": "none", "prefixes": 1}
CASES = {
  "oat": OAT,
  "oat_blocks": OAT | {"blocks": (1, 1, 2, 4), "shortcut": 0},
  "quest": QUEST,
  "vq": {"name": "vq", "codes": 16, "latent": 8, "width": 32, "layers": 1},
  "bin": {"name": "bin"},
  "fast": {"name": "fast"},
  "fast_strict": {"name": "fast", "decoding": "strict"},
  "example": {"name": "examples.linear_tokenizer"},
}


@dataclasses.dataclass
class Case:
  name: str
  tokenizer: tokenizers.Tokenizer
  params: Any
  # One entry for each time that `decode` was compiled.
  traces: list = dataclasses.field(default_factory=list)

  def __post_init__(self):
    def decode(params, tokens_BN, num_tokens, dataset_B):
      self.traces.append(num_tokens)
      return self.tokenizer.decode(params, tokens_BN, num_tokens, dataset_B)

    self.decode = jax.jit(decode)


def batch(B=16, seed=0):
  """A batch with padding and, in the last row, a dimension that its dataset does not have."""
  made = batch_lib.fake(SPEC, B, seed)
  made["action_dim_mask"][-1, 1] = False
  return made


def columns(made):
  return made["actions"], made["action_mask"], made["dataset"]


def program(f, *args):
  """What a function computes, operation by operation, and its constants."""
  made = jax.make_jaxpr(f)(*args)
  return str(made), tiny.to_bits(made.consts)


def make(values, **changes):
  return tokenizers.make(values | changes, SPEC, STATISTICS)


def make_params(tokenizer):
  """Parameters whose tokens depend on the actions, and whose chunks leave the training range."""
  if tokenizer.fit is not None:
    return tokenizer.fit(*columns(batch(64)))
  rng = np.random.default_rng(0)
  filled = lambda x: rng.normal(size=x.shape).astype(np.float32) / 2
  shapes = jax.eval_shape(tokenizer.init, jax.random.key(0))
  mode = tokenizer.config.get("normalization", "min_max")
  return jax.device_put({
    name: normalization.parameters(STATISTICS, mode, "") if name == "statistics"
    else jax.tree.map(filled, shapes[name]) for name in shapes
  })  # fmt: skip
