"""What tokenizers share whose network has N latents, each quantised by FSQ to one token."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax.data import normalization
from oat_jax.nn import partitioning
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import tokenizer as tokenizer_lib


class Functions(NamedTuple):
  """A tokenizer's functions of these names, and `apply`(params, ...), the network's own."""

  init: Callable[[jax.Array], Any]
  axes: Callable[[], Any]
  apply: Callable[..., Any]
  encode: Callable[..., jax.Array]
  decode: Callable[..., jax.Array]


def functions(
  network: nn.Module, config: Any, statistics: tokenizer_lib.Statistics | None, *sample: Any
) -> Functions:
  """Returns the functions of a tokenizer.

  Args:
    network: with methods `encode`, (actions_BCA, action_mask_BC) -> unquantised latents (B, N, L),
      and `decode`, (codes_BNL, kept_BN) -> actions_BCA, which ignores codes that are not kept; both
      in normalised units.
    config: has `levels`, `num_tokens` and `normalization`.
    statistics: of the training actions; None where parameters are loaded.
    sample: arguments to initialise the network with.
  """

  def init(key):
    return {
      "network": partitioning.init(network, key, *sample),
      "statistics": normalization.parameters(statistics, config.normalization, "actions"),
    }

  def axes():
    return {"network": partitioning.logical_axes(network, *sample)}

  def apply(params, *args, method: Any = None, **kwargs) -> Any:
    return network.apply({"params": params["network"]}, *args, method=method, **kwargs)

  def encode(params, actions_BCA, action_mask_BC, dataset_B=None):
    x_BCA = tokenizer_lib.normalize(params["statistics"], actions_BCA, dataset_B)
    latents_BNL = apply(params, x_BCA, action_mask_BC, method="encode")
    return fsq.ids(fsq.quantize(latents_BNL, config.levels), config.levels)

  def decode(params, tokens_BN, num_tokens, dataset_B=None):
    kept_BN = jnp.broadcast_to(jnp.arange(config.num_tokens) < num_tokens, tokens_BN.shape)
    x_BCA = apply(params, fsq.codes(tokens_BN, config.levels), kept_BN, method="decode")
    return tokenizer_lib.denormalize(params["statistics"], x_BCA, dataset_B)

  return Functions(init, axes, apply, encode, decode)
