"""A tokenizer of anyone's, in one file: N linear features of a chunk, each rounded to a token."""

import dataclasses

import jax
import jax.numpy as jnp

from oat_jax.data import normalization
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import tokenizer as tokenizer_lib

LEVELS = (64,)


@dataclasses.dataclass(frozen=True)
class Config:
  num_tokens: int = 4


def make(config, spec, statistics):
  N, C, A = config.num_tokens, spec.action_horizon, spec.action_dim

  def init(key):
    known = normalization.parameters(statistics, "min_max", "actions")
    w_encode, w_decode = jax.random.normal(key, (2, C * A, N)) / (C * A) ** 0.5
    return {"network": {"w_encode": w_encode, "w_decode": w_decode.T}, "statistics": known}

  def features(params, x_BCA, mask_BC):
    x_BX = jnp.where(mask_BC[..., None], x_BCA, 0).reshape(-1, C * A)
    return fsq.quantize((x_BX @ params["network"]["w_encode"])[..., None], LEVELS)

  def chunk(params, codes_BN1, kept_BN):
    return (codes_BN1[..., 0] * kept_BN @ params["network"]["w_decode"]).reshape(-1, C, A)

  def encode(params, actions_BCA, mask_BC, dataset_B=None):
    x_BCA = tokenizer_lib.normalize(params["statistics"], actions_BCA, dataset_B)
    return fsq.ids(features(params, x_BCA, mask_BC), LEVELS)

  def decode(params, tokens_BN, num_tokens, dataset_B=None):
    x_BCA = chunk(params, fsq.codes(tokens_BN, LEVELS), jnp.arange(N) < num_tokens)
    return tokenizer_lib.denormalize(params["statistics"], x_BCA, dataset_B)

  def loss(params, batch, key):
    x_BCA = tokenizer_lib.normalize(params["statistics"], batch["actions"], batch["dataset"])
    kept_BN = jnp.arange(N) < jax.random.randint(key, (len(x_BCA), 1), 1, N + 1)
    decoded_BCA = chunk(params, features(params, x_BCA, batch["action_mask"]), kept_BN)
    return tokenizer_lib.masked_mse(decoded_BCA, x_BCA, tokenizer_lib.valid(batch)), {}

  axes = lambda: {"network": {"w_encode": (None, None), "w_decode": (None, None)}}
  return tokenizer_lib.Tokenizer(
    encode, decode, spec, LEVELS[0], N, prefix_decodable=True, init=init, axes=axes, loss=loss
  )
