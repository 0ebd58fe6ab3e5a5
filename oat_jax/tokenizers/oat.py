"""Ordered action tokenization (arXiv 2602.04215): registers, FSQ, nested dropout.

An encoder reads the chunk and writes it into N registers; register i sees all actions and the
registers up to i. Each is quantised to one token. A decoder rebuilds the chunk from the first K
tokens, the others replaced by a learned mask; because K is drawn anew for every training example,
the first token learns the coarse motion and later ones refine it.
"""

from collections.abc import Sequence
import dataclasses
import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.nn import chunk_decoder
from oat_jax.nn import initializers
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.nn import transformer
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import latents
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

# How the latents that an example keeps in training are drawn: a prefix of uniform length, of a
# power of two (as published), or of a length K with probability ~ 1 / K. Two ablations have no
# order: random latents, as many as `uniform` keeps, and all of them.
NESTED_DROPOUT = ("uniform", "powers_of_two", "power_law", "random_subsets", "none")


@dataclasses.dataclass(frozen=True)
class Config:
  """The published recipe is configs/tokenizer_oat.py:published."""

  num_tokens: int = 8  # N
  levels: tuple[int, ...] = (8, 5, 5, 5)
  # Sizes of blocks of registers that do not see each other inside a block, so that a policy can
  # generate a block at once (arXiv 2607.21670), e.g. (1, 1, 2, 4); () is one register a block.
  # Prefixes end at the ends of blocks.
  blocks: tuple[int, ...] = ()
  width: int = 256  # D
  head_width: int = 64  # K
  encoder_layers: int = 2
  decoder_layers: int = 4
  mlp_ratio: int = 4
  dropout: float = 0.1
  # Width of the two hidden layers of two MLPs beside the attention: from the whole chunk to the
  # registers' first values, and from all latents to the decoder's queries. Registers that begin
  # alike, as published (0), learn slowly to say different things: attention hardly tells chunks
  # apart at first.
  shortcut: int = 0
  # This many steps make one encoder token and one decoder query: shorter sequences, same chunk.
  patch: int = 1
  normalization: str = "min_max"
  nested_dropout: str = "uniform"
  # This share of the examples keeps all tokens: the last ones, which only the longest prefixes
  # train, hardly come into use otherwise.
  keep_all: float = 0.0
  # Prefixes drawn for each example, one from each M-th of the distribution; they share the encoder.
  # Each M-th's error counts relative to its size, see `loss`.
  prefixes: int = 1  # M
  cumulative_weight: float = 0.0  # these two: see `reconstruction_loss`
  cumulative_dims: tuple[int, ...] = ()
  dtype: str = "float32"
  scan: bool = False  # each stack of layers is one scan, compiled once; see `nn.stack`
  remat: str = "none"  # what of a scanned layer is computed again for its gradient: dots, or full

  def __post_init__(self):
    config_lib.choose(self.nested_dropout, NESTED_DROPOUT, "config.model.nested_dropout")
    config_lib.check_transformer(self, "encoder_layers", "decoder_layers")
    fsq.check_levels(self.levels)
    for name in ("num_tokens", "patch", "prefixes"):
      config_lib.at_least(getattr(self, name), 1, f"config.model.{name}")
    config_lib.at_least(self.shortcut, 0, "config.model.shortcut")
    config_lib.between(self.keep_all, 0, 1, "config.model.keep_all")
    wrong = self.blocks and (min(self.blocks) < 1 or sum(self.blocks) != self.num_tokens)
    if wrong or self.blocks[:1] not in ((), (1,)):
      raise ValueError(
        f"config.model.blocks {self.blocks} must be positive sizes that add up to num_tokens "
        f"{self.num_tokens}, the first of them 1"
      )
    budget_shares(self)

  @property
  def budgets(self) -> tuple[int, ...]:
    """The prefix lengths: ends of blocks."""
    return tuple(itertools.accumulate(self.blocks or (1,) * self.num_tokens))


class Network(nn.Module):
  """Encoder to unquantised latents, decoder from quantised ones; everything in normalised units."""

  config: Config
  spec: BatchSpec

  def setup(self):
    c = self.config
    D, C, A = c.width, self.spec.action_horizon, self.spec.action_dim
    heads, dtype = D // c.head_width, jnp.dtype(c.dtype)
    # As large as what they are added to; see `ChunkDecoder`.
    unit = initializers.normal(None, "embed", stddev=1.0)
    learned = lambda name, rows: self.param(name, unit, (rows, D))
    self.embed_actions = linear.Linear(D, dtype=dtype)
    self.encoder_positions_PD = learned("encoder_positions", C // c.patch)
    self.registers_ND = learned("registers", c.num_tokens)
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
    if c.shortcut:
      self.to_registers = linear.MLP(c.shortcut, c.num_tokens * D, dtype)
    self.to_latent = linear.Linear(len(c.levels), "embed", None)
    self.decoder = chunk_decoder.ChunkDecoder(
      horizon=C,
      action_dim=A,
      num_latents=c.num_tokens,
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
    c = self.config
    B, C, _ = actions_BCA.shape
    P, N = C // c.patch, c.num_tokens
    visible_BC1 = action_mask_BC[..., None].astype(actions_BCA.dtype)
    steps_BCX = jnp.concatenate(
      [jnp.where(action_mask_BC[..., None], actions_BCA, 0), visible_BC1], -1
    )
    x_BPD = self.embed_actions(steps_BCX.reshape(B, P, -1))
    x_BPD += self.encoder_positions_PD.astype(x_BPD.dtype)
    registers_BND = jnp.broadcast_to(self.registers_ND, (B, N, c.width)).astype(x_BPD.dtype)
    if c.shortcut:
      registers_BND += self.to_registers(steps_BCX.reshape(B, -1)).reshape(B, N, c.width)
    x_BTD = partitioning.constrain(jnp.concatenate([x_BPD, registers_BND], 1), "batch", None, None)
    visible_BP = action_mask_BC.reshape(B, P, c.patch).any(-1)
    columns_BT = jnp.concatenate([visible_BP, jnp.ones((B, N), bool)], 1)
    mask_BTT = jnp.asarray(register_mask(P, c.budgets))[None] & columns_BT[:, None]
    x_BND, _ = self.encoder(x_BTD, mask_BTT, rows=N, deterministic=deterministic)
    return self.to_latent(x_BND.astype(jnp.float32))

  def decode(self, codes_BNL, kept_BN, deterministic=True):
    """Returns normalised actions (B, C, A) from the codes where `kept_BN` is true."""
    return self.decoder(codes_BNL, kept_BN, deterministic)

  def __call__(self, actions_BCA, action_mask_BC, kept_BMN, deterministic=True):
    """Returns (reconstructions_BMCA, codes_BNL) in normalised units, M for each chunk."""
    codes_BNL = fsq.quantize(
      self.encode(actions_BCA, action_mask_BC, deterministic), self.config.levels
    )
    B, M, N = kept_BMN.shape
    many_BMNL = jnp.broadcast_to(codes_BNL[:, None], (B, M, *codes_BNL.shape[1:]))
    x_XCA = self.decode(many_BMNL.reshape(B * M, N, -1), kept_BMN.reshape(B * M, N), deterministic)
    return x_XCA.reshape(B, M, *x_XCA.shape[1:]), codes_BNL


def register_mask(num_positions: int, budgets: Sequence[int]) -> np.ndarray:
  """(T, T): actions see actions; a register sees all actions, the blocks before its own and itself.

  Args:
    num_positions: P, actions (or patches of them) before the registers.
    budgets: ends of the blocks of registers, ascending.
  """
  P, N = num_positions, budgets[-1]
  block_N = np.searchsorted(budgets, np.arange(N), side="right")
  mask_TT = np.zeros((P + N, P + N), bool)
  mask_TT[:, :P] = True
  mask_TT[P:, P:] = (block_N[None] < block_N[:, None]) | np.eye(N, dtype=bool)
  return mask_TT


def budget_shares(config: Config) -> np.ndarray:
  """Returns the probability with which training keeps each of `config.budgets`.

  Raises ValueError where that of all tokens is 0.
  """
  budgets = np.asarray(config.budgets)
  shares = {
    "uniform": np.ones(len(budgets)),
    "random_subsets": np.ones(len(budgets)),
    "powers_of_two": (budgets & (budgets - 1) == 0).astype(float),
    "power_law": 1 / budgets,
    "none": (budgets == config.num_tokens).astype(float),
  }[config.nested_dropout]
  shares = (1 - config.keep_all) * shares / shares.sum()
  shares[-1] += config.keep_all
  if not shares[-1]:
    raise ValueError(
      f"config.model.nested_dropout '{config.nested_dropout}' never keeps all "
      f"{config.num_tokens} tokens: choose a power of two, or set config.model.keep_all"
    )
  return shares


def draw_kept(config: Config, key: jax.Array, batch_size: int) -> jax.Array:
  """Draws which latents each example keeps: bool (B, M, N)."""
  M, N = config.prefixes, config.num_tokens
  key_budget, key_subset = jax.random.split(key)
  # Stratified: the m-th prefix of an example comes from the m-th part of the distribution.
  u_BM = (jnp.arange(M) + jax.random.uniform(key_budget, (batch_size, M))) / M
  ends = np.cumsum(budget_shares(config))[:-1]
  num_tokens_BM = jnp.asarray(config.budgets)[jnp.sum(u_BM[..., None] >= ends, -1)]
  if config.nested_dropout == "random_subsets":
    order_BMN = jnp.argsort(jax.random.uniform(key_subset, (batch_size, M, N)), -1)
  else:
    order_BMN = jnp.arange(N)
  return order_BMN < num_tokens_BM[..., None]


def make(config: Config, spec: BatchSpec, statistics: tokenizer_lib.Statistics | None) -> Tokenizer:
  """Returns OAT for chunks of `spec.action_horizon` steps; see `tokenizer.Tokenizer`."""
  N, C = config.num_tokens, spec.action_horizon
  if C % config.patch:
    raise ValueError(f"config.model.patch {config.patch} does not divide the action horizon {C}")
  tokenizer_lib.check_cumulative(config.cumulative_weight, config.cumulative_dims, spec.action_dim)
  of = latents.functions(
    Network(config, spec),
    config,
    statistics,
    jnp.zeros((1, C, spec.action_dim)),
    jnp.ones((1, C), bool),
    jnp.ones((1, 1, N), bool),
  )

  def loss(params, batch, key):
    """Masked mean squared error of normalised actions, over M prefixes of each example.

    The gradient is that of the M errors' geometric mean, times a number: the errors of coarse
    prefixes are several times those of long ones, which would hardly be heard beside them.
    """
    key_kept, key_dropout = jax.random.split(key)
    target_BCA = tokenizer_lib.normalize(params["statistics"], batch["actions"], batch["dataset"])
    predicted_BMCA, codes_BNL = of.apply(
      params,
      target_BCA,
      batch["action_mask"],
      draw_kept(config, key_kept, target_BCA.shape[0]),
      deterministic=config.dropout == 0,
      rngs={"dropout": key_dropout},
    )
    mask_BCA = tokenizer_lib.valid(batch)
    of_prefix = lambda predicted_BCA: tokenizer_lib.reconstruction_loss(
      predicted_BCA, target_BCA, mask_BCA, config.cumulative_weight, config.cumulative_dims
    )
    total_M, aux_M = jax.vmap(of_prefix, in_axes=1)(predicted_BMCA)
    scale_M = jax.lax.stop_gradient(jnp.mean(total_M) / jnp.maximum(total_M, 1e-12))
    total, aux = jnp.mean(scale_M * total_M), jax.tree.map(jnp.mean, aux_M)
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
    prefix_decodable=config.nested_dropout not in ("random_subsets", "none")
    and config.keep_all < 1,
    budgets=config.budgets,
  )
