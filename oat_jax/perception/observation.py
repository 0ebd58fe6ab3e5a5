"""Observation encoder: state history, task, instruction and images -> observation tokens.

Every observation step becomes one token, made from its normalised state, the task's embedding, the
instruction's and, where they are pooled, the features of its images; patches of images are further
tokens. Steps before the episode's start are marked, not hidden, so that a policy can tell "just
started" from "standing still".

An instruction's embedding is what the batch holds as `language`, or the row of its task in a frozen
table, which holds those of the training data.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.nn import initializers
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.perception import augment
from oat_jax.perception import images as images_lib

LANGUAGE = "frozen_language/table"  # a parameter below the encoder, (tasks, E)


@dataclasses.dataclass(frozen=True)
class Config:
  hidden: int = 512  # width of the per-step MLP
  # Of a learned vector for each task. 0: none, so that only the instruction says what to do, and an
  # unseen one may.
  task_width: int = 32
  language_width: int = 32  # of the instruction's embedding, projected; where the data have one
  normalization: str = "mean_std"
  clip: float = 5.0  # of normalised states: an unseen one must not blow up the policy
  # Standard deviation of the noise added to normalised states in training.
  noise: float = 0.0
  # Probability with which, in training, an example lacks its states, its task, its instruction, or
  # all frames of a camera: a learned value stands for each of them.
  modality_dropout: float = 0.0
  images: images_lib.Config = images_lib.Config()  # has no effect without cameras

  def __post_init__(self):
    where = "config.model.observation"
    for name in ("hidden", "language_width"):
      config_lib.at_least(getattr(self, name), 1, f"{where}.{name}")
    config_lib.at_least(self.task_width, 0, f"{where}.task_width")
    config_lib.at_least(self.noise, 0, f"{where}.noise")
    config_lib.above(self.clip, 0, f"{where}.clip")
    config_lib.between(self.modality_dropout, 0, 0.99, f"{where}.modality_dropout")


def inputs(
  statistics: Mapping[str, jax.Array], batch: Mapping[str, Any], config: Config
) -> dict[str, jax.Array]:
  """Returns what `Encoder` takes of a batch.

  `state` (B, T, S) is normalised by its dataset's statistics and clipped; `mask` (B, T), `task`
  (B,), every `image_<camera>` and, if there, `language` (B, E) are as in the batch.
  """
  row = lambda name: statistics[name][batch["dataset"]][:, None]
  observation = batch["observation"]
  state_BTS = (observation["state"] - row("offset")) * row("scale")
  return {
    "state": jnp.clip(state_BTS, -config.clip, config.clip),
    "mask": batch["observation_mask"],
    "task": observation["task"],
    **{
      name: x for name, x in observation.items() if name.startswith("image_") or name == "language"
    },
  }


def sample(spec: BatchSpec) -> dict[str, jax.Array]:
  """Returns inputs of one row, to initialise an encoder with."""
  T = spec.observation_steps
  return {
    "state": jnp.zeros((1, T, spec.state_dim)),
    "mask": jnp.ones((1, T), bool),
    "task": jnp.zeros((1,), jnp.int32),
    **{f"image_{name}": jnp.zeros((1, T, h, w, 3), jnp.uint8) for name, h, w in spec.cameras},
  }


def pretrained(config: Config, spec: BatchSpec) -> dict[str, np.ndarray]:
  """Returns {path below the encoder: array} of the parameters that come from files.

  Raises FileNotFoundError or ValueError, with the file's name, where they do not fit.
  """
  return images_lib.pretrained(config.images, spec)


class Encoder(nn.Module):
  """`inputs` -> observation tokens (B, M, D), M the same for every batch of a spec.

  First come the steps' tokens; then, of every camera whose patches are tokens, those of all steps.
  Randomness of training is drawn from the "dropout" stream.
  """

  config: Config
  spec: BatchSpec
  width: int  # D
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, seen: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
    c, state_BTS = self.config, seen["state"]
    B, T, _ = state_BTS.shape

    def or_missing(name, x):
      if not c.modality_dropout:
        return x
      return OrMissing(c.modality_dropout, name=f"missing_{name}")(x, deterministic)

    if c.noise and not deterministic:
      noise_BTS = jax.random.normal(self.make_rng("dropout"), state_BTS.shape)
      state_BTS = state_BTS + c.noise * noise_BTS
    told = []
    if c.task_width:
      table = linear.Embed(self.spec.num_tasks, c.task_width, "task", None, name="task")
      told.append(or_missing("task", table(seen["task"])))
    if self.spec.language_dim:
      told.append(or_missing("language", self._language(seen)))
    told_BTX = [jnp.broadcast_to(x[:, None], (B, T, x.shape[-1])) for x in told]
    present_BT1 = seen["mask"][..., None].astype(state_BTS.dtype)
    features = {
      camera: or_missing(f"image_{camera}", x)
      for camera, x in self._look(seen, deterministic).items()
    }
    pooled = list(features.values()) if c.images.tokens == "pooled" else []
    state_BTS = or_missing("state", state_BTS)
    h_BTF = jnp.concatenate([state_BTS, present_BT1, *told_BTX, *pooled], -1)
    h_BTF = nn.gelu(linear.Linear(c.hidden, None, "mlp", dtype=self.dtype, name="mlp_in")(h_BTF))
    # Whole between the first two: left to itself, XLA's partitioner for CPUs makes wrong gradients
    # of them on meshes that cut along all three axes.
    h_BTF = partitioning.constrain(h_BTF, "batch", None, None)
    h_BTF = nn.gelu(
      linear.Linear(c.hidden, "embed", "mlp", dtype=self.dtype, name="mlp_mid")(h_BTF)
    )
    h_BTF = partitioning.constrain(h_BTF, "batch", None, "mlp")
    x_BTD = linear.Linear(self.width, "mlp", "embed", dtype=self.dtype, name="mlp_out")(h_BTF)
    positions_TD = self.param("positions", initializers.normal(None, "embed"), (T, self.width))
    x_BTD = x_BTD + positions_TD.astype(x_BTD.dtype)
    x_BTD = partitioning.constrain(x_BTD, "batch", None, None)
    if pooled or not features:
      return x_BTD
    patches = [
      PatchTokens(self.width, self.dtype, name=f"patches_{camera}")(x, present_BT1)
      for camera, x in features.items()
    ]
    return jnp.concatenate([x_BTD, *patches], 1)

  def _language(self, seen: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the projected instruction (B, language_width)."""
    spec, width = self.spec, self.config.language_width
    if "language" in seen:
      x_BE = seen["language"]
    else:
      table = linear.Embed(spec.num_tasks, spec.language_dim, "task", None, name="frozen_language")
      x_BE = table(seen["task"])
    # Encoders differ in length, some give unit vectors: as large as the states that it joins.
    x_BE = x_BE * jax.lax.rsqrt(jnp.square(x_BE).mean(-1, keepdims=True) + 1e-12)
    return linear.Linear(width, None, None, dtype=self.dtype, name="language")(x_BE)

  def _look(self, seen: Mapping[str, jax.Array], deterministic: bool) -> dict[str, jax.Array]:
    """Returns every camera's features: (B, T, F), or (B, T, P, F) of P patches."""
    c, found = self.config.images, {}
    names = images_lib.names(c, self.spec)
    encoders = {
      name: images_lib.make(c, self.dtype, name) for name in dict.fromkeys(names.values())
    }
    for camera, name in names.items():
      random = (c.crop or c.jitter) and not deterministic
      key = self.make_rng("dropout") if random else None
      frames_BTYX3 = augment.view(seen[f"image_{camera}"], c.crop, c.jitter, key)
      B, T = frames_BTYX3.shape[:2]
      images = partitioning.constrain(
        frames_BTYX3.reshape(B * T, *frames_BTYX3.shape[2:]), "batch", None, None, None
      )
      features = encoders[name](images)
      features = jax.lax.stop_gradient(features) if c.frozen else features
      found[camera] = features.reshape(B, T, *features.shape[1:])
    return found


class OrMissing(nn.Module):
  """A modality (B, ..., F), or in training, for some examples, a learned value in its place."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    missing_F = self.param("missing", initializers.normal(None), x.shape[-1:])
    if deterministic:
      return x
    shape = (len(x), *[1] * (x.ndim - 1))
    drop = jax.random.bernoulli(self.make_rng("dropout"), self.rate, shape)
    return jnp.where(drop, missing_F.astype(x.dtype), x)


class PatchTokens(nn.Module):
  """Features of a camera's patches (B, T, P, F) -> tokens (B, T * P, D).

  Every camera has its own, so that a token's positions, in time and in the image, also say whose it
  is.
  """

  width: int  # D
  dtype: Any

  @nn.compact
  def __call__(self, x_BTPF: jax.Array, present_BT1: jax.Array) -> jax.Array:
    B, T, P, _ = x_BTPF.shape
    present_BTP1 = jnp.broadcast_to(present_BT1[:, :, None], (B, T, P, 1))
    x_BTPF = jnp.concatenate([x_BTPF, present_BTP1], -1)
    x_BTPD = linear.Linear(self.width, None, "embed", dtype=self.dtype, name="project")(x_BTPF)
    # As large as what they are added to: attention tells tokens apart by nothing else.
    unit = initializers.normal(None, "embed", stddev=1.0)
    steps_TD = self.param("step_positions", unit, (T, self.width))
    patches_PD = self.param("patch_positions", unit, (P, self.width))
    where_TPD = (steps_TD[:, None] + patches_PD).astype(x_BTPD.dtype)
    x_BND = (x_BTPD + where_TPD).reshape(B, T * P, self.width)
    return partitioning.constrain(x_BND, "batch", None, None)
