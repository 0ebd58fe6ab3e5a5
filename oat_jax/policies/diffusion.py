"""Diffusion Policy with a transformer (Chi et al. 2023, arXiv 2303.04137): noise -> chunk.

A network of the token policy's size predicts the noise in a noisy chunk, with cross-attention to
the observation and the diffusion timestep. Acting encodes the observation once and denoises in a
few deterministic steps (DDIM, Song et al. 2021, arXiv 2010.02502).
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.data import normalization
from oat_jax.nn import initializers
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.nn import transformer
from oat_jax.perception import observation as observation_lib
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

# Timesteps at which held-out chunks are denoised: the middles of so many equal parts.
EVALUATED = 10


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 256  # D
  head_width: int = 64  # K
  layers: int = 4  # L
  mlp_ratio: int = 4
  dropout: float = 0.1
  normalization: str = "min_max"
  train_steps: int = 100  # of the noise schedule
  sampling_steps: int = 10  # of acting
  observation: observation_lib.Config = observation_lib.Config()
  dtype: str = "float32"
  scan: bool = False  # each stack of layers is one scan, compiled once; see `nn.stack`
  remat: str = "none"  # what of a scanned layer is computed again for its gradient: dots, or full

  def __post_init__(self):
    config_lib.check_transformer(self, "layers")
    for name in ("train_steps", "sampling_steps"):
      config_lib.at_least(getattr(self, name), 1, f"config.model.{name}")
    if self.train_steps % self.sampling_steps:
      raise ValueError(
        f"config.model.sampling_steps {self.sampling_steps} does not divide train_steps "
        f"{self.train_steps}: the timesteps are evenly spaced"
      )


def alpha_bars(train_steps: int) -> np.ndarray:
  """Returns the share of signal left at each timestep, float64 (train_steps,), falling.

  The squared-cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672), betas capped at 0.999.
  """
  f = np.cos((np.arange(train_steps + 1) / train_steps + 0.008) / 1.008 * np.pi / 2) ** 2
  betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
  return np.cumprod(1 - betas)


def timesteps(train_steps: int, sampling_steps: int) -> np.ndarray:
  """Returns the timesteps that sampling visits, int (sampling_steps,), falling to 0."""
  return np.arange(0, train_steps, train_steps // sampling_steps)[::-1]


def ddim(
  denoise: Callable[[jax.Array, Any], jax.Array],
  conditions: Any,
  noise_BCA: jax.Array,
  alpha_bars_I: np.ndarray,
  low: jax.Array | float,
  high: jax.Array | float,
) -> jax.Array:
  """Returns the sample (B, C, A) that deterministic DDIM (eta 0) makes of pure noise.

  Args:
    denoise: (x_BCA, condition) -> the noise in x, predicted.
    conditions: what `denoise` is given at each step: a tree of arrays with a leading axis I.
    noise_BCA: standard normal.
    alpha_bars_I: of the I timesteps visited, rising; behind the last step there is no noise left.
    low, high: the predicted sample is clipped to this range in every step. The direction keeps
      the noise as predicted, as in Diffusion Policy.
  """

  def step(x_BCA, given):
    alpha_bar, previous, condition = given
    predicted_BCA = denoise(x_BCA, condition)
    clean_BCA = (x_BCA - jnp.sqrt(1 - alpha_bar) * predicted_BCA) / jnp.sqrt(alpha_bar)
    clean_BCA = jnp.clip(clean_BCA, low, high)
    return jnp.sqrt(previous) * clean_BCA + jnp.sqrt(1 - previous) * predicted_BCA, None

  previous_I = np.append(alpha_bars_I[1:], 1)
  schedule = (jnp.float32(alpha_bars_I), jnp.float32(previous_I), conditions)
  return jax.lax.scan(step, noise_BCA, schedule)[0]


def sinusoids(timesteps_X: jax.Array, width: int) -> jax.Array:
  """Returns (X, width): sines and cosines of wavelengths from 2 pi to 20,000 pi."""
  frequencies = 10_000.0 ** -jnp.linspace(0, 1, width // 2)
  angles = timesteps_X[:, None] * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class Network(nn.Module):
  """Noisy chunk, observation and timestep -> the noise, all in normalised units."""

  config: Config
  spec: BatchSpec

  def setup(self):
    c, spec = self.config, self.spec
    D, F, dtype = c.width, c.mlp_ratio * c.width, jnp.dtype(c.dtype)
    self.observe = observation_lib.Encoder(c.observation, spec, D, dtype)
    self.time_in = linear.Linear(F, None, "mlp", dtype=dtype)
    self.time_out = linear.Linear(D, "mlp", "embed", dtype=dtype)
    self.embed_actions = linear.Linear(D, dtype=dtype)
    positions = initializers.normal(None, "embed", stddev=1.0)
    self.positions_CD = self.param("positions", positions, (spec.action_horizon, D))
    self.transformer = transformer.Transformer(
      c.layers,
      D,
      D // c.head_width,
      F,
      cross=True,
      dropout=c.dropout,
      dtype=dtype,
      scan=c.scan,
      remat=c.remat,
    )
    self.to_noise = linear.Linear(spec.action_dim, "embed", None, scale=0.1)

  def memory(self, seen, deterministic=True):
    """Returns the observation's keys and values: the cost of looking, paid once a chunk."""
    return self.transformer.memory(self.observe(seen, deterministic))

  def time_memory(self, timesteps_X):
    """Returns the keys and values (..., X, 1, H, K) of one token for each timestep."""
    h_XF = nn.gelu(self.time_in(sinusoids(timesteps_X, self.config.width)))
    return self.transformer.memory(self.time_out(h_XF)[:, None])

  def denoise(self, x_BCA, memory, time_memory, deterministic=True):
    """Returns the noise in x; `time_memory` of one timestep, for all rows, or of one a row."""
    B, C, _ = x_BCA.shape

    def join(seen_BMHK, time_XHK):
      # From the right: where layers are scanned, their axis comes first.
      *layers, M, H, K = time_XHK.shape[:-4] + time_XHK.shape[-3:]
      time_BMHK = jnp.broadcast_to(time_XHK, (*layers, B, M, H, K))
      return jnp.concatenate([seen_BMHK, time_BMHK], -3)

    x_BCD = self.embed_actions(x_BCA)
    x_BCD, _ = self.transformer(
      x_BCD + self.positions_CD.astype(x_BCD.dtype),
      jnp.ones((1, C, C), bool),
      memory=jax.tree.map(join, memory, time_memory),
      deterministic=deterministic,
    )
    return self.to_noise(x_BCD.astype(jnp.float32))

  def __call__(self, seen, x_BCA, timesteps_B, deterministic=True):
    memory, time_memory = self.memory(seen, deterministic), self.time_memory(timesteps_B)
    return self.denoise(x_BCA, memory, time_memory, deterministic)


def make(config: Config, spec: BatchSpec, statistics: Any, tokenizer: Tokenizer | None) -> Policy:
  """Returns the diffusion policy; it has no tokens: `num_tokens` is 1 or None."""
  if tokenizer is not None:
    raise ValueError("config.tokenizer is set, but the model 'diffusion' uses none")
  C, A = spec.action_horizon, spec.action_dim
  alpha_bars_X = alpha_bars(config.train_steps)
  visited_I = timesteps(config.train_steps, config.sampling_steps)
  network = Network(config, spec)
  sample = (observation_lib.sample(spec), jnp.zeros((1, C, A)), jnp.zeros(1, jnp.int32))

  def init(key):
    of = lambda name: None if statistics is None else statistics[name]
    mode = config.observation.normalization
    return {
      "network": partitioning.init(network, key, *sample),
      "statistics": normalization.parameters(of("state"), mode, "states"),
      "action_statistics": normalization.parameters(of("actions"), config.normalization, "actions"),
    }

  def axes():
    return {"network": partitioning.logical_axes(network, *sample)}

  def apply(params, *args, **kwargs) -> Any:
    return network.apply({"params": params["network"]}, *args, **kwargs)

  def observed(params, batch):
    return observation_lib.inputs(params["statistics"], batch, config.observation)

  def noisy(params, batch, noise_BCA, timesteps_B):
    """The batch's chunks after the forward process, in normalised units."""
    chunk_BCA = tokenizer_lib.normalize(
      params["action_statistics"], batch["actions"], batch["dataset"]
    )
    alpha_bar_B11 = jnp.float32(alpha_bars_X)[timesteps_B][:, None, None]
    x_BCA = jnp.sqrt(alpha_bar_B11) * chunk_BCA + jnp.sqrt(1 - alpha_bar_B11) * noise_BCA
    # Padded steps and dimensions are noise at every timestep: nothing is learned from them, and
    # what sampling happens to put into an unused dimension is ignored.
    return jnp.where(tokenizer_lib.valid(batch), x_BCA, noise_BCA)

  def loss(params, batch, key):
    """Masked mean squared error of the predicted noise, at one timestep a row."""
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    shape = batch["actions"].shape
    timesteps_B = jax.random.randint(time_key, shape[:1], 0, config.train_steps)
    noise_BCA = jax.random.normal(noise_key, shape)
    x_BCA = noisy(params, batch, noise_BCA, timesteps_B)
    predicted_BCA = apply(
      params, observed(params, batch), x_BCA, timesteps_B, False, rngs={"dropout": dropout_key}
    )
    return tokenizer_lib.masked_mse(predicted_BCA, noise_BCA, tokenizer_lib.valid(batch)), {}

  def evaluate(params, batch):
    """`chunk_mse` (B,) of a sample and `denoising_mse` (B,), the loss at evenly spread timesteps.

    Noise and timesteps are the same at every call. The error of a chunk is of normalised actions.
    """
    mask_BCA = tokenizer_lib.valid(batch)
    memory = apply(params, observed(params, batch), method="memory")
    key = jax.random.key(0)

    def denoising(timestep):
      noise_BCA = jax.random.normal(jax.random.fold_in(key, timestep), mask_BCA.shape)
      x_BCA = noisy(params, batch, noise_BCA, jnp.full(mask_BCA.shape[0], timestep))
      time_memory = apply(params, timestep[None], method="time_memory")
      predicted_BCA = apply(params, x_BCA, memory, time_memory, method="denoise")
      squares_BCA = jnp.square(predicted_BCA - noise_BCA) * mask_BCA
      return squares_BCA.sum((1, 2)) / mask_BCA.sum((1, 2))

    spread = (2 * np.arange(EVALUATED) + 1) * config.train_steps // (2 * EVALUATED)
    actions_BCA = act(params, batch, key)[0]
    return {
      "chunk_mse": tokenizer_lib.chunk_mse(params["action_statistics"], batch, actions_BCA),
      "denoising_mse": jax.lax.map(denoising, jnp.asarray(spread)).mean(0),
    }

  def act(params, batch, key, num_tokens=None, sampling=Sampling()):
    del sampling
    if num_tokens is not None:
      tokenizer_lib.check_num_tokens(num_tokens, 1)
    statistics, dataset_B = params["action_statistics"], batch["dataset"]
    memory = apply(params, observed(params, batch), method="memory")

    def denoise(x_BCA, time_memory):
      one = jax.tree.map(lambda x: jnp.expand_dims(x, -4), time_memory)
      return apply(params, x_BCA, memory, one, method="denoise")

    def limit(name):  # -1 and 1 under min_max, but for dimensions that it does not scale
      limit_B1A = statistics[name][dataset_B][:, None]
      return tokenizer_lib.normalize(statistics, limit_B1A, dataset_B)

    time_memory = apply(params, jnp.asarray(visited_I), method="time_memory")
    chunk_BCA = ddim(
      denoise,
      jax.tree.map(lambda x: jnp.moveaxis(x, -4, 0), time_memory),
      jax.random.normal(key, (dataset_B.shape[0], C, A)),
      alpha_bars_X[visited_I],
      limit("min"),
      limit("max"),
    )
    return tokenizer_lib.denormalize(statistics, chunk_BCA, dataset_B), {}

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
