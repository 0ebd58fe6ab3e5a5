"""Behaviour cloning by regression: one MLP from the observation to the whole chunk; the floor every
policy must beat.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from oat_jax.batch import BatchSpec
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
  layers: int = 2
  normalization: str = "min_max"
  observation: observation_lib.Config = observation_lib.Config()


class Network(nn.Module):
  """Normalised states and task -> normalised chunk."""

  config: Config
  spec: BatchSpec

  @nn.compact
  def __call__(self, state_BTS, observation_mask_BT, task_B, deterministic=True):
    c, spec = self.config, self.spec
    encoder = observation_lib.Encoder(c.observation, spec, c.hidden, name="observe")
    x_BTD = encoder(state_BTS, observation_mask_BT, task_B, deterministic)
    h_BF = x_BTD.reshape(x_BTD.shape[0], -1)
    for i in range(c.layers):
      h_BF = nn.gelu(linear.Linear(c.hidden, None, "mlp", name=f"mlp_{i}")(h_BF))
    out = linear.Linear(spec.action_horizon * spec.action_dim, "mlp", None, name="to_actions")
    return out(h_BF).reshape(-1, spec.action_horizon, spec.action_dim)


def make(config: Config, spec: BatchSpec, statistics: Any, tokenizer: Tokenizer | None) -> Policy:
  """Returns the regression policy; it has no tokens, so `num_tokens` and `sampling` change
  nothing.
  """
  del tokenizer
  network = Network(config, spec)
  T = spec.observation_steps
  sample_input = (
    jnp.zeros((1, T, spec.state_dim)),
    jnp.ones((1, T), bool),
    jnp.zeros((1,), jnp.int32),
  )

  def init(key):
    statistics_of = lambda name: None if statistics is None else statistics[name]
    return {
      "network": partitioning.init(network, key, *sample_input),
      "statistics": observation_lib.init_statistics(statistics_of("state"), config.observation),
      "action_statistics": tokenizer_lib.init_statistics(
        statistics_of("actions"), config.normalization
      ),
    }

  def axes():
    return {"network": partitioning.logical_axes(network, *sample_input)}

  def predict(params, batch, deterministic, key=None) -> Any:
    state_BTS = observation_lib.normalize(params["statistics"], batch, config.observation)
    inputs = (state_BTS, batch["observation_mask"], batch["observation"]["task"], deterministic)
    rngs = None if key is None else {"dropout": key}
    return network.apply({"params": params["network"]}, *inputs, rngs=rngs)

  def squared_error(params, batch, predicted_BCA):
    statistics = params["action_statistics"]
    target_BCA = tokenizer_lib.normalize(statistics, batch["actions"], batch["dataset"])
    mask_BCA = batch["action_mask"][..., None] & batch["action_dim_mask"][:, None]
    return jnp.square(predicted_BCA - target_BCA) * mask_BCA, mask_BCA

  def loss(params, batch, key):
    """Masked mean squared error of normalised actions."""
    error_BCA, mask_BCA = squared_error(params, batch, predict(params, batch, False, key))
    mse = jnp.sum(error_BCA) / jnp.sum(mask_BCA)
    return mse, {"mse": mse}

  def evaluate(params, batch):
    """`chunk_mse` (B,): squared error of normalised actions over valid steps."""
    error_BCA, mask_BCA = squared_error(params, batch, predict(params, batch, True))
    return {"chunk_mse": jnp.sum(error_BCA, (1, 2)) / jnp.sum(mask_BCA, (1, 2))}

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
