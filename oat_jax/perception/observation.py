"""Observation encoder: state history and task -> observation tokens.

Every observation step becomes one token, made from its normalised state and the task's embedding;
steps before the episode's start are marked, not hidden, so that a policy can tell "just started"
from "standing still".
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.nn import initializers
from oat_jax.nn import linear


@dataclasses.dataclass(frozen=True)
class Config:
  hidden: int = 512  # width of the per-step MLP
  task_width: int = 32
  normalization: str = "mean_std"
  clip: float = 5.0  # of normalised states: an unseen one must not blow up the policy
  # Standard deviation of the noise added to normalised states in training.
  noise: float = 0.0

  def __post_init__(self):
    where = "config.model.observation"
    for name in ("hidden", "task_width"):
      config_lib.at_least(getattr(self, name), 1, f"{where}.{name}")
    config_lib.at_least(self.noise, 0, f"{where}.noise")
    config_lib.above(self.clip, 0, f"{where}.clip")


def inputs(
  statistics: Mapping[str, jax.Array], batch: Mapping[str, Any], config: Config
) -> dict[str, jax.Array]:
  """Returns what `Encoder` takes of a batch.

  `state` (B, T, S) is normalised by its dataset's statistics and clipped; `mask` (B, T) and `task`
  (B,) are as in the batch.
  """
  row = lambda name: statistics[name][batch["dataset"]][:, None]
  state_BTS = (batch["observation"]["state"] - row("offset")) * row("scale")
  return {
    "state": jnp.clip(state_BTS, -config.clip, config.clip),
    "mask": batch["observation_mask"],
    "task": batch["observation"]["task"],
  }


def sample(spec: BatchSpec) -> dict[str, jax.Array]:
  """Returns inputs of one row, to initialise an encoder with."""
  T = spec.observation_steps
  return {
    "state": jnp.zeros((1, T, spec.state_dim)),
    "mask": jnp.ones((1, T), bool),
    "task": jnp.zeros((1,), jnp.int32),
  }


class Encoder(nn.Module):
  """`inputs` -> observation tokens (B, M, D), M the same for every batch of a spec."""

  config: Config
  spec: BatchSpec
  width: int  # D
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, seen: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
    c, state_BTS = self.config, seen["state"]
    B, T, _ = state_BTS.shape
    if c.noise and not deterministic:
      noise_BTS = jax.random.normal(self.make_rng("dropout"), state_BTS.shape)
      state_BTS = state_BTS + c.noise * noise_BTS
    task_BX = linear.Embed(self.spec.num_tasks, c.task_width, "task", name="task")(seen["task"])
    task_BTX = jnp.broadcast_to(task_BX[:, None], (B, T, c.task_width))
    present_BT1 = seen["mask"][..., None].astype(state_BTS.dtype)
    h_BTF = jnp.concatenate([state_BTS, present_BT1, task_BTX], -1)
    h_BTF = nn.gelu(linear.Linear(c.hidden, None, "mlp", dtype=self.dtype, name="mlp_in")(h_BTF))
    h_BTF = nn.gelu(linear.Linear(c.hidden, "mlp", None, dtype=self.dtype, name="mlp_mid")(h_BTF))
    x_BTD = linear.Linear(self.width, None, "embed", dtype=self.dtype, name="mlp_out")(h_BTF)
    positions_TD = self.param("positions", initializers.normal(None, "embed"), (T, self.width))
    return x_BTD + positions_TD
