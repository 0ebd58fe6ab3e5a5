"""From quantised latents to a chunk of actions, in one pass."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax.nn import initializers
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.nn import transformer


class ChunkDecoder(nn.Module):
  """Learned queries, causal among themselves, look at the latents that are kept.

  As in OAT (arXiv 2602.04215) and QueST (arXiv 2407.15840). A latent that is not kept is replaced
  by a learned mask, its position included: the chunk does not depend on it.
  """

  horizon: int  # C
  action_dim: int  # A
  num_latents: int  # N
  width: int  # D
  num_heads: int  # H
  num_layers: int
  mlp_width: int  # F
  patch: int = 1  # steps that one query stands for
  dropout: float = 0.0
  dtype: Any = jnp.float32
  # Hidden width of an MLP from all latents to the queries, beside the attention; 0: none.
  shortcut: int = 0
  scan: bool = False
  remat: str = "none"

  def setup(self):
    D, P = self.width, self.horizon // self.patch
    # As large as what they are added to: latents whose positions the decoder cannot tell at first
    # learn to say the same, and the later ones stay unused.
    unit = initializers.normal(None, "embed", stddev=1.0)
    self.from_latent = linear.Linear(D, dtype=self.dtype)
    self.latent_positions_ND = self.param("latent_positions", unit, (self.num_latents, D))
    self.masked_1D = self.param("masked_latent", unit, (1, D))
    self.queries_PD = self.param("queries", unit, (P, D))
    self.transformer = transformer.Transformer(
      self.num_layers,
      D,
      self.num_heads,
      self.mlp_width,
      cross=True,
      dropout=self.dropout,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
    )
    if self.shortcut:
      self.to_queries = linear.MLP(self.shortcut, P * D, dtype=self.dtype)
    self.to_actions = linear.Linear(self.patch * self.action_dim, "embed", None)

  def __call__(
    self, latents_BNL: jax.Array, kept_BN: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Returns normalised actions (B, C, A) from the latents where `kept_BN` is true."""
    B, (P, D) = latents_BNL.shape[0], self.queries_PD.shape
    x_BND = self.from_latent(latents_BNL) + self.latent_positions_ND.astype(self.dtype)
    x_BND = jnp.where(kept_BN[..., None], x_BND, self.masked_1D.astype(x_BND.dtype))
    queries_BPD = self.queries_PD[None].astype(x_BND.dtype)
    if self.shortcut:
      queries_BPD += self.to_queries(x_BND.reshape(B, -1)).reshape(B, P, D)
    # Dropout masks differ by row, so the rows part here already.
    if self.dropout and not deterministic:
      queries_BPD = jnp.broadcast_to(queries_BPD, (B, P, D))
    causal_1PP = jnp.tril(jnp.ones((P, P), bool))[None]
    memory = self.transformer.memory(partitioning.constrain(x_BND, "batch", None, None))
    x_BPD, _ = self.transformer(queries_BPD, causal_1PP, memory=memory, deterministic=deterministic)
    return self.to_actions(x_BPD.astype(jnp.float32)).reshape(B, self.horizon, -1)
