"""A tokenizer of anyone's, in one file: N linear features of a chunk, each rounded to a token."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax.data import normalization
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import tokenizer as tokenizer_lib

LEVELS = (64,)


@dataclasses.dataclass(frozen=True)
class Config:
  num_tokens: int = 4


class Network(nn.Module):
  num_tokens: int  # N
  shape: tuple[int, int]  # C, A

  def setup(self):
    self.to_latent = linear.Linear(self.num_tokens, None, None)
    self.to_actions = linear.Linear(self.shape[0] * self.shape[1], None, None)

  def encode(self, x_BCA, mask_BC):
    x_BX = jnp.where(mask_BC[..., None], x_BCA, 0).reshape(len(x_BCA), -1)
    return fsq.quantize(self.to_latent(x_BX)[..., None], LEVELS)

  def decode(self, codes_BN1, kept_BN):
    x_BX = self.to_actions(jnp.where(kept_BN, codes_BN1[..., 0], 0))
    return x_BX.reshape(len(x_BX), *self.shape)

  def __call__(self, x_BCA, mask_BC, kept_BN):
    return self.decode(self.encode(x_BCA, mask_BC), kept_BN)


def make(config, spec, statistics):
  N, shape = config.num_tokens, (spec.action_horizon, spec.action_dim)
  network = Network(N, shape)
  sample = jnp.zeros((1, *shape)), jnp.ones((1, shape[0]), bool), jnp.ones((1, N), bool)
  apply = lambda params, *args, **how: network.apply({"params": params["network"]}, *args, **how)

  def init(key):
    of_actions = normalization.parameters(statistics, "min_max", "actions")
    return {"network": partitioning.init(network, key, *sample), "statistics": of_actions}

  def encode(params, actions_BCA, mask_BC, dataset_B=None):
    x_BCA = tokenizer_lib.normalize(params["statistics"], actions_BCA, dataset_B)
    return fsq.ids(apply(params, x_BCA, mask_BC, method="encode"), LEVELS)

  def decode(params, tokens_BN, num_tokens, dataset_B=None):
    kept_BN = jnp.broadcast_to(jnp.arange(N) < num_tokens, tokens_BN.shape)
    x_BCA = apply(params, fsq.codes(tokens_BN, LEVELS), kept_BN, method="decode")
    return tokenizer_lib.denormalize(params["statistics"], x_BCA, dataset_B)

  def loss(params, batch, key):
    x_BCA = tokenizer_lib.normalize(params["statistics"], batch["actions"], batch["dataset"])
    kept_BN = jnp.arange(N) < jax.random.randint(key, (len(x_BCA), 1), 1, N + 1)
    decoded_BCA = apply(params, x_BCA, batch["action_mask"], kept_BN)
    return tokenizer_lib.masked_mse(decoded_BCA, x_BCA, tokenizer_lib.valid(batch)), {}

  axes = lambda: {"network": partitioning.logical_axes(network, *sample)}
  return tokenizer_lib.Tokenizer(
    encode, decode, spec, LEVELS[0], N, prefix_decodable=True, init=init, axes=axes, loss=loss
  )
