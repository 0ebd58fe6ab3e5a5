"""QueST's tokenizer (arXiv 2407.15840): a causal encoder in time, FSQ, and OAT's decoder.

Causal convolutions shorten the chunk to N positions, a causal transformer looks over them, and each
is quantised to one token: token i says what the steps up to (i + 1) * C / N were, no more. The
decoder rebuilds the chunk from all of them at once. Nothing orders the tokens from coarse to fine:
it is the unordered baseline, whose missing tokens are masked, but which has never seen a mask.

Two faults of the public code are not repeated: it normalises over channels and time at once, which
shows every token the future, and its windows begin a stride, so that no token sees the last C / N -
1 steps.
"""

import dataclasses

from flax import linen as nn
import jax.numpy as jnp

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.nn import chunk_decoder
from oat_jax.nn import convolution
from oat_jax.nn import initializers
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.nn import transformer
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import latents
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Config:
  """The published sizes; configs/tokenizer_quest.py has those of a laptop."""

  num_tokens: int = 8  # N; the action horizon is N times a power of two
  levels: tuple[int, ...] = (8, 5, 5, 5)
  width: int = 256  # D
  head_width: int = 64  # K
  kernel: int = 5  # of the first convolution; later ones look at 3 positions
  encoder_layers: int = 2
  decoder_layers: int = 4
  mlp_ratio: int = 4
  dropout: float = 0.1
  patch: int = 1  # steps that one decoder query stands for
  # Width of the two hidden layers of an MLP from all latents to the decoder's queries.
  shortcut: int = 0
  normalization: str = "min_max"
  cumulative_weight: float = 0.0  # these two: see `tokenizer.reconstruction_loss`
  cumulative_dims: tuple[int, ...] = ()
  dtype: str = "float32"
  scan: bool = False  # each stack of layers is one scan, compiled once; see `nn.stack`
  remat: str = "none"  # what of a scanned layer is computed again for its gradient: dots, or full

  def __post_init__(self):
    config_lib.check_transformer(self, "encoder_layers", "decoder_layers")
    fsq.check_levels(self.levels)
    for name in ("num_tokens", "patch"):
      config_lib.at_least(getattr(self, name), 1, f"config.model.{name}")
    config_lib.at_least(self.kernel, 2, "config.model.kernel")
    config_lib.at_least(self.shortcut, 0, "config.model.shortcut")


class Network(nn.Module):
  """Encoder to unquantised latents, decoder from quantised ones; everything in normalised units."""

  config: Config
  spec: BatchSpec

  def setup(self):
    c = self.config
    D, C, A, N = c.width, self.spec.action_horizon, self.spec.action_dim, c.num_tokens
    heads, dtype = D // c.head_width, jnp.dtype(c.dtype)
    halvings = (C // N).bit_length() - 1
    self.convolutions = [
      convolution.CausalConvolution(D, 3 if i else c.kernel, 2 if i < halvings else 1, dtype)
      for i in range(halvings + 1)
    ]
    # Of one position at a time.
    self.norms = [transformer.RMSNorm() for _ in self.convolutions]
    unit = initializers.normal(None, "embed", stddev=1.0)
    self.encoder_positions_ND = self.param("encoder_positions", unit, (N, D))
    self.encoder = transformer.Transformer(
      c.encoder_layers,
      D,
      heads,
      c.mlp_ratio * D,
      dropout=c.dropout,
      dtype=dtype,
      scan=c.scan,
      remat=c.remat,
    )
    self.to_latent = linear.Linear(len(c.levels), "embed", None)
    self.decoder = chunk_decoder.ChunkDecoder(
      horizon=C,
      action_dim=A,
      num_latents=N,
      width=D,
      num_heads=heads,
      num_layers=c.decoder_layers,
      mlp_width=c.mlp_ratio * D,
      patch=c.patch,
      shortcut=c.shortcut,
      dropout=c.dropout,
      dtype=dtype,
      scan=c.scan,
      remat=c.remat,
    )

  def encode(self, actions_BCA, action_mask_BC, deterministic=True):
    """Returns unquantised latents (B, N, D_l). Steps that the mask hides have no influence."""
    visible_BC1 = action_mask_BC[..., None]
    x_BTD = jnp.concatenate([jnp.where(visible_BC1, actions_BCA, 0), visible_BC1], -1)
    for convolve, norm in zip(self.convolutions, self.norms):
      x_BTD = partitioning.constrain(nn.gelu(norm(convolve(x_BTD))), "batch", None, None)
    x_BND = x_BTD + self.encoder_positions_ND.astype(x_BTD.dtype)
    causal_1NN = jnp.tril(jnp.ones((x_BND.shape[1],) * 2, bool))[None]
    x_BND, _ = self.encoder(x_BND, causal_1NN, deterministic=deterministic)
    return self.to_latent(x_BND.astype(jnp.float32))

  def decode(self, codes_BNL, kept_BN, deterministic=True):
    """Returns normalised actions (B, C, A) from the codes where `kept_BN` is true."""
    return self.decoder(codes_BNL, kept_BN, deterministic)

  def __call__(self, actions_BCA, action_mask_BC, deterministic=True):
    """Returns (reconstruction_BCA, codes_BNL) in normalised units."""
    codes_BNL = fsq.quantize(
      self.encode(actions_BCA, action_mask_BC, deterministic), self.config.levels
    )
    kept_BN = jnp.ones(codes_BNL.shape[:2], bool)
    return self.decode(codes_BNL, kept_BN, deterministic), codes_BNL


def make(config: Config, spec: BatchSpec, statistics: tokenizer_lib.Statistics | None) -> Tokenizer:
  """Returns QueST for chunks of `spec.action_horizon` steps; see `tokenizer.Tokenizer`."""
  N, C = config.num_tokens, spec.action_horizon
  if C % N or (C // N) & (C // N - 1):
    raise ValueError(
      f"config.model.num_tokens {N} must divide the action horizon {C} into a power of two steps "
      "a token"
    )
  if C % config.patch:
    raise ValueError(f"config.model.patch {config.patch} does not divide the action horizon {C}")
  tokenizer_lib.check_cumulative(config.cumulative_weight, config.cumulative_dims, spec.action_dim)
  of = latents.functions(
    Network(config, spec),
    config,
    statistics,
    jnp.zeros((1, C, spec.action_dim)),
    jnp.ones((1, C), bool),
  )

  def loss(params, batch, key):
    """Masked mean squared error of normalised actions, from all tokens."""
    target_BCA = tokenizer_lib.normalize(params["statistics"], batch["actions"], batch["dataset"])
    predicted_BCA, codes_BNL = of.apply(
      params,
      target_BCA,
      batch["action_mask"],
      deterministic=config.dropout == 0,
      rngs={"dropout": key},
    )
    total, aux = tokenizer_lib.reconstruction_loss(
      predicted_BCA,
      target_BCA,
      tokenizer_lib.valid(batch),
      config.cumulative_weight,
      config.cumulative_dims,
    )
    return total, aux | {"codes_in_batch": fsq.count_used(codes_BNL, config.levels)}

  return Tokenizer(
    init=of.init,
    axes=of.axes,
    encode=of.encode,
    decode=of.decode,
    loss=loss,
    spec=spec,
    vocab_size=fsq.codebook_size(config.levels),
    coordinates=fsq.coordinates(config.levels),
    max_tokens=N,
  )
