"""Regression of the chunk by an MLP: the floor that every policy must beat."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.data import normalization
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.perception import observation as observation_lib
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Config:
  hidden: int = 512
  layers: int = 2  # after the observation encoder's own
  normalization: str = "min_max"
  observation: observation_lib.Config = observation_lib.Config()

  def __post_init__(self):
    config_lib.at_least(self.hidden, 1, "config.model.hidden")
    config_lib.at_least(self.layers, 0, "config.model.layers")


class Network(nn.Module):
  """Observation tokens, side by side -> normalised chunk."""

  config: Config
  spec: BatchSpec

  @nn.compact
  def __call__(self, seen, deterministic=True):
    c, spec = self.config, self.spec
    encoder = observation_lib.Encoder(c.observation, spec, c.hidden, name="observe")
    x_BMD = encoder(seen, deterministic)
    h_BF = x_BMD.reshape(x_BMD.shape[0], -1)
    for i in range(c.layers):
      h_BF = nn.gelu(linear.Linear(c.hidden, None, "mlp", name=f"mlp_{i}")(h_BF))
    out = linear.Linear(spec.action_horizon * spec.action_dim, "mlp", None, name="to_actions")
    return out(h_BF).reshape(-1, spec.action_horizon, spec.action_dim)


def make(config: Config, spec: BatchSpec, statistics: Any, tokenizer: Tokenizer | None) -> Policy:
  """Returns the regression policy; it has no tokens: `num_tokens` is 1 or None."""
  if tokenizer is not None:
    raise ValueError("config.tokenizer is set, but the model 'regression' uses none")
  network = Network(config, spec)
  sample = observation_lib.sample(spec)

  def init(key):
    of = lambda name: None if statistics is None else statistics[name]
    mode = config.observation.normalization
    return {
      "network": partitioning.init(network, key, sample),
      "statistics": normalization.parameters(of("state"), mode, "states"),
      "action_statistics": normalization.parameters(of("actions"), config.normalization, "actions"),
    }

  def axes():
    return {"network": partitioning.logical_axes(network, sample)}

  def predict(params, batch, deterministic, key=None) -> Any:
    seen = observation_lib.inputs(params["statistics"], batch, config.observation)
    rngs = None if key is None else {"dropout": key}
    return network.apply({"params": params["network"]}, seen, deterministic, rngs=rngs)

  def loss(params, batch, key):
    """Masked mean squared error of normalised actions."""
    statistics = params["action_statistics"]
    target_BCA = tokenizer_lib.normalize(statistics, batch["actions"], batch["dataset"])
    mask_BCA = tokenizer_lib.valid(batch)
    error_BCA = predict(params, batch, False, key) - target_BCA
    mse = jnp.sum(jnp.square(error_BCA) * mask_BCA) / jnp.sum(mask_BCA)
    return mse, {"mse": mse}

  def evaluate(params, batch):
    """`chunk_mse` (B,): squared error of normalised actions over valid steps."""
    actions_BCA = act(params, batch, None)[0]
    return {"chunk_mse": tokenizer_lib.chunk_mse(params["action_statistics"], batch, actions_BCA)}

  def act(params, batch, key, num_tokens=None, sampling=Sampling()):
    del key, sampling
    if num_tokens is not None:
      tokenizer_lib.check_num_tokens(num_tokens, 1)
    chunk_BCA = predict(params, batch, True)
    statistics = params["action_statistics"]
    return tokenizer_lib.denormalize(statistics, chunk_BCA, batch["dataset"]), {}

  return Policy(
    init=init,
    axes=axes,
    loss=loss,
    evaluate=evaluate,
    act=act,
    prepare=None,
    spec=spec,
    max_tokens=1,
  )
