"""Ordered action tokenization (arXiv 2602.04215): registers, FSQ, nested dropout.

An encoder reads the chunk and writes it into N registers; register i sees all actions and the
registers up to i. Each is quantised to one token. A decoder rebuilds the chunk from the first K
tokens, the others replaced by a learned mask; because K is drawn anew for every training example,
the first token learns the coarse motion and later ones refine it.
"""

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
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

NESTED_DROPOUT = ("uniform", "powers_of_two")


@dataclasses.dataclass(frozen=True)
class Config:
  """The published recipe is configs/tokenizer_oat.py:published."""

  num_tokens: int = 8  # N
  levels: tuple[int, ...] = (8, 5, 5, 5)
  width: int = 256  # D
  head_width: int = 64  # K
  encoder_layers: int = 2
  decoder_layers: int = 4
  mlp_ratio: int = 4
  dropout: float = 0.1
  # This many steps make one encoder token and one decoder query: shorter sequences, same chunk.
  patch: int = 1
  normalization: str = "min_max"
  # K is uniform over 1..N, or over the powers of two up to N, as published.
  nested_dropout: str = "uniform"
  # This share of the examples keeps all tokens: the last ones, which only the longest prefixes
  # train, hardly come into use otherwise.
  keep_all: float = 0.0
  # Weight of the squared error of running sums, per dimension that is a displacement: there
  # correlated errors add up to a position error, which the plain loss does not see.
  cumulative_weight: float = 0.0
  cumulative_dims: tuple[int, ...] = ()
  dtype: str = "float32"

  def __post_init__(self):
    config_lib.choose(self.nested_dropout, NESTED_DROPOUT, "config.model.nested_dropout")
    config_lib.choose(self.dtype, ("float32", "bfloat16"), "config.model.dtype")
    counts = ("num_tokens", "width", "head_width", "encoder_layers", "decoder_layers")
    for name in (*counts, "mlp_ratio", "patch"):
      config_lib.at_least(getattr(self, name), 1, f"config.model.{name}")
    config_lib.between(self.dropout, 0, 0.99, "config.model.dropout")
    config_lib.between(self.keep_all, 0, 1, "config.model.keep_all")
    config_lib.at_least(self.cumulative_weight, 0, "config.model.cumulative_weight")
    if self.cumulative_weight and not self.cumulative_dims:
      raise ValueError(
        "config.model.cumulative_weight is set, but cumulative_dims names no dimension"
      )
    if self.width % self.head_width:
      raise ValueError(
        f"config.model.width {self.width} is no multiple of head_width {self.head_width}"
      )
    if min(self.levels, default=0) < 2:
      raise ValueError(f"config.model.levels is {self.levels}; every level must be at least 2")


class Network(nn.Module):
  """Encoder to unquantised latents, decoder from quantised ones; everything in normalised units."""

  config: Config
  spec: BatchSpec

  def setup(self):
    c = self.config
    D, N = c.width, c.num_tokens
    P = self.spec.action_horizon // c.patch  # positions
    heads, dtype = D // c.head_width, jnp.dtype(c.dtype)
    stack = lambda layers, cross: transformer.Transformer(
      layers, D, heads, c.mlp_ratio * D, cross=cross, dropout=c.dropout, dtype=dtype
    )
    # As large as what they are added to: latents whose positions the decoder cannot tell at first
    # learn to say the same, and the later ones stay unused.
    unit = initializers.normal(None, "embed", stddev=1.0)
    learned = lambda name, rows: self.param(name, unit, (rows, D))
    self.embed_actions = linear.Linear(D, dtype=dtype)
    self.encoder_positions_PD = learned("encoder_positions", P)
    self.registers_ND = learned("registers", N)
    self.encoder = stack(c.encoder_layers, cross=False)
    self.to_latent = linear.Linear(len(c.levels), "embed", None)
    self.from_latent = linear.Linear(D, dtype=dtype)
    self.latent_positions_ND = learned("latent_positions", N)
    self.masked_1D = learned("masked_latent", 1)
    self.queries_PD = learned("queries", P)
    self.decoder = stack(c.decoder_layers, cross=True)
    self.to_actions = linear.Linear(c.patch * self.spec.action_dim, "embed", None)

  def encode(self, actions_BCA, action_mask_BC, deterministic=True):
    """Returns unquantised latents (B, N, D_l). Steps that the mask hides have no influence."""
    c = self.config
    B, C, _ = actions_BCA.shape
    P, N = C // c.patch, c.num_tokens
    visible_BC1 = action_mask_BC[..., None].astype(actions_BCA.dtype)
    steps_BCX = jnp.concatenate(
      [jnp.where(action_mask_BC[..., None], actions_BCA, 0), visible_BC1], -1
    )
    x_BPD = self.embed_actions(steps_BCX.reshape(B, P, -1)) + self.encoder_positions_PD
    registers_BND = jnp.broadcast_to(self.registers_ND, (B, N, c.width)).astype(x_BPD.dtype)
    x_BTD = partitioning.constrain(jnp.concatenate([x_BPD, registers_BND], 1), "batch", None, None)
    visible_BP = action_mask_BC.reshape(B, P, c.patch).any(-1)
    columns_BT = jnp.concatenate([visible_BP, jnp.ones((B, N), bool)], 1)
    mask_BTT = jnp.asarray(register_mask(P, N))[None] & columns_BT[:, None]
    x_BND, _ = self.encoder(x_BTD, mask_BTT, rows=N, deterministic=deterministic)
    return self.to_latent(x_BND.astype(jnp.float32))

  def decode(self, codes_BNL, num_tokens_B, deterministic=True):
    """Returns normalised actions (B, C, A) from the first `num_tokens_B` codes of each row."""
    c = self.config
    B, N, _ = codes_BNL.shape
    P = self.queries_PD.shape[0]
    x_BND = self.from_latent(codes_BNL) + self.latent_positions_ND
    kept_BN1 = (jnp.arange(N) < num_tokens_B[:, None])[..., None]
    x_BND = jnp.where(kept_BN1, x_BND, self.masked_1D.astype(x_BND.dtype))
    queries_BPD = self.queries_PD[None].astype(x_BND.dtype)
    # Dropout masks differ by row, so the rows part here already.
    if c.dropout and not deterministic:
      queries_BPD = jnp.broadcast_to(queries_BPD, (B, P, c.width))
    causal_1PP = jnp.tril(jnp.ones((P, P), bool))[None]
    memory = self.decoder.memory(partitioning.constrain(x_BND, "batch", None, None))
    x_BPD, _ = self.decoder(queries_BPD, causal_1PP, memory=memory, deterministic=deterministic)
    return self.to_actions(x_BPD.astype(jnp.float32)).reshape(B, P * c.patch, -1)

  def __call__(self, actions_BCA, action_mask_BC, num_tokens_B, deterministic=True):
    """Returns (reconstruction_BCA, codes_BNL) in normalised units."""
    codes_BNL = fsq.quantize(
      self.encode(actions_BCA, action_mask_BC, deterministic), self.config.levels
    )
    return self.decode(codes_BNL, num_tokens_B, deterministic), codes_BNL


def register_mask(num_positions: int, num_registers: int) -> np.ndarray:
  """(T, T): actions see actions; register i sees all actions and registers up to i."""
  P, N = num_positions, num_registers
  mask_TT = np.zeros((P + N, P + N), bool)
  mask_TT[:, :P] = True
  mask_TT[P:, P:] = np.tril(np.ones((N, N), bool))
  return mask_TT


def make(config: Config, spec: BatchSpec, statistics: tokenizer_lib.Statistics | None) -> Tokenizer:
  """Returns OAT for chunks of `spec.action_horizon` steps; see `tokenizer.Tokenizer`."""
  N, C = config.num_tokens, spec.action_horizon
  if C % config.patch:
    raise ValueError(f"config.model.patch {config.patch} does not divide the action horizon {C}")
  if any(not 0 <= dim < spec.action_dim for dim in config.cumulative_dims):
    raise ValueError(
      f"config.model.cumulative_dims {config.cumulative_dims} leaves 0..{spec.action_dim - 1}, "
      "the action's dimensions"
    )
  network = Network(config, spec)
  budgets = list(range(1, N + 1))
  if config.nested_dropout == "powers_of_two":
    budgets = [K for K in budgets if K & (K - 1) == 0]
  sample = (
    jnp.zeros((1, C, spec.action_dim)),
    jnp.ones((1, C), bool),
    jnp.full((1,), N, jnp.int32),
  )

  def init(key):
    return {
      "network": partitioning.init(network, key, *sample),
      "statistics": normalization.parameters(statistics, config.normalization, "actions"),
    }

  def axes():
    return {"network": partitioning.logical_axes(network, *sample)}

  def apply(params, *args, method: Any = None, **kwargs) -> Any:
    return network.apply({"params": params["network"]}, *args, method=method, **kwargs)

  def encode(params, actions_BCA, action_mask_BC=None, dataset_B=None):
    actions_BCA = jnp.asarray(actions_BCA, jnp.float32)
    if action_mask_BC is None:
      action_mask_BC = jnp.ones(actions_BCA.shape[:2], bool)
    x_BCA = tokenizer_lib.normalize(params["statistics"], actions_BCA, dataset_B)
    codes_BNL = fsq.quantize(apply(params, x_BCA, action_mask_BC, method="encode"), config.levels)
    return fsq.ids(codes_BNL, config.levels)

  def decode(params, tokens_BN, num_tokens, dataset_B=None):
    codes_BNL = fsq.codes(
      jnp.clip(tokens_BN, 0, fsq.codebook_size(config.levels) - 1), config.levels
    )
    num_tokens_B = jnp.broadcast_to(jnp.clip(num_tokens, 1, N), tokens_BN.shape[:1])
    x_BCA = apply(params, codes_BNL, num_tokens_B, method="decode")
    return tokenizer_lib.denormalize(params["statistics"], x_BCA, dataset_B)

  def loss(params, batch, key):
    """Masked mean squared error of normalised actions; one K an example."""
    key_budget, key_dropout = jax.random.split(key)
    target_BCA = tokenizer_lib.normalize(params["statistics"], batch["actions"], batch["dataset"])
    num_tokens_B = jax.random.choice(key_budget, jnp.asarray(budgets), target_BCA.shape[:1])
    if config.keep_all:
      key_all = jax.random.fold_in(key_budget, 1)
      all_B = jax.random.bernoulli(key_all, config.keep_all, num_tokens_B.shape)
      num_tokens_B = jnp.where(all_B, N, num_tokens_B)
    predicted_BCA, codes_BNL = apply(
      params,
      target_BCA,
      batch["action_mask"],
      num_tokens_B,
      deterministic=config.dropout == 0,
      rngs={"dropout": key_dropout},
    )
    mask_BCA = tokenizer_lib.valid(batch)
    error_BCA = jnp.where(mask_BCA, predicted_BCA - target_BCA, 0)
    mse = jnp.sum(jnp.square(error_BCA)) / jnp.sum(mask_BCA)
    aux = {"mse": mse}
    total = mse
    if config.cumulative_weight:
      dims = np.asarray(config.cumulative_dims)
      drift_BCA = jnp.where(mask_BCA[..., dims], jnp.cumsum(error_BCA[..., dims], axis=1), 0)
      aux["cumulative_mse"] = jnp.sum(jnp.square(drift_BCA)) / jnp.sum(mask_BCA[..., dims])
      total = mse + config.cumulative_weight * aux["cumulative_mse"]
    ids_BN = fsq.ids(codes_BNL, config.levels)
    used_V = jnp.zeros(fsq.codebook_size(config.levels), bool).at[ids_BN.reshape(-1)].set(True)
    return total, aux | {"codes_in_batch": jnp.sum(used_V)}

  def evaluate(params, batch):
    """`mse` (B, N) of normalised actions decoded from the first 1..N tokens; `tokens` (B, N)."""
    target_BCA = tokenizer_lib.normalize(params["statistics"], batch["actions"], batch["dataset"])
    codes_BNL = fsq.quantize(
      apply(params, target_BCA, batch["action_mask"], method="encode"), config.levels
    )

    def error(num_tokens):
      num_tokens_B = jnp.full(codes_BNL.shape[:1], num_tokens)
      x_BCA = apply(params, codes_BNL, num_tokens_B, method="decode")
      actions_BCA = tokenizer_lib.denormalize(params["statistics"], x_BCA, batch["dataset"])
      return tokenizer_lib.chunk_mse(params["statistics"], batch, actions_BCA)

    return {
      "mse": jax.lax.map(error, jnp.arange(1, N + 1)).T,
      "tokens": fsq.ids(codes_BNL, config.levels),
    }

  return Tokenizer(
    init=init,
    axes=axes,
    encode=encode,
    decode=decode,
    loss=loss,
    evaluate=evaluate,
    spec=spec,
    vocab_size=fsq.codebook_size(config.levels),
    max_tokens=N,
    prefix_decodable=True,
  )
