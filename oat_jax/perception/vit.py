"""Vision transformer (arXiv 2010.11929) of the two public families: SigLIP and DINOv2.

They differ in how pixels are normalised, in the activation, and in how patches become one feature:
SigLIP (arXiv 2303.15343) attends to them with a learned query, DINOv2 (arXiv 2304.07193) has a
token of its own for that, and a scale behind every branch. Axis letters: P patches, N tokens.
"""

import dataclasses
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax import config as config_lib
from oat_jax.nn import initializers
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.nn import stack


class Family(NamedTuple):
  """What differs: `mean` and `std` of RGB in 0..1, and how exactly gelu is computed."""

  mean: tuple[float, ...]
  std: tuple[float, ...]
  tanh_gelu: bool
  summary_token: bool  # and scaled branches


FAMILIES = {
  "siglip": Family((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), True, False),
  "dinov2": Family((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False, True),
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes as of SigLIP B/16; DINOv2 S/14 has patch 14, width 384, heads 6, mlp_width 1536."""

  family: str = "siglip"  # or dinov2
  patch: int = 16  # side in pixels
  width: int = 768  # D
  layers: int = 12
  heads: int = 12
  mlp_width: int = 3072
  scan: bool = False  # layers are one scan: see `nn.stack`
  remat: str = "none"

  def __post_init__(self):
    where = "config.model.observation.images.vit"
    config_lib.check_stack(self, where)
    config_lib.choose(self.family, tuple(FAMILIES), f"{where}.family")
    for name in ("patch", "width", "layers", "heads", "mlp_width"):
      config_lib.at_least(getattr(self, name), 1, f"{where}.{name}")
    if self.width % self.heads:
      raise ValueError(f"{where}.width {self.width} is no multiple of heads {self.heads}")


class LayerNorm(nn.Module):
  """Layer normalisation (arXiv 1607.06450), computed in float32."""

  @nn.compact
  def __call__(self, x_BND: jax.Array) -> jax.Array:
    scale_D = self.param("scale", initializers.ones(None), x_BND.shape[-1:])
    b_D = self.param("b", initializers.zeros(None), x_BND.shape[-1:])
    x = x_BND.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    return (x * scale_D + b_D).astype(x_BND.dtype)


class Attention(nn.Module):
  """Every row of x looks at every row of y; projections have biases."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x_BMD: jax.Array, y_BND: jax.Array) -> jax.Array:
    D = x_BMD.shape[-1]
    project = lambda name, x: linear.Linear(D, "embed", "heads", dtype=self.dtype, name=name)(x)
    split = lambda x: x.reshape(*x.shape[:2], self.heads, -1)
    q, k, v = (split(project(n, x)) for n, x in (("q", x_BMD), ("k", y_BND), ("v", y_BND)))
    a_BMD = jax.nn.dot_product_attention(q, k, v).reshape(x_BMD.shape)
    return linear.Linear(D, "heads", "embed", dtype=self.dtype, name="out")(a_BMD)


class MLP(nn.Module):
  config: Config
  dtype: Any

  @nn.compact
  def __call__(self, x_BND: jax.Array) -> jax.Array:
    c = self.config
    up = linear.Linear(c.mlp_width, "embed", "mlp", dtype=self.dtype, name="up")
    h_BNF = jax.nn.gelu(up(x_BND), approximate=FAMILIES[c.family].tanh_gelu)
    h_BNF = partitioning.constrain(h_BNF, "batch", None, "mlp")
    return linear.Linear(c.width, "mlp", "embed", dtype=self.dtype, name="down")(h_BNF)


class Block(nn.Module):
  config: Config
  dtype: Any

  @nn.compact
  def __call__(self, x_BND: jax.Array) -> jax.Array:
    c = self.config

    def branch(name, y_BND):
      if not FAMILIES[c.family].summary_token:
        return y_BND
      return y_BND * self.param(f"{name}_scale", initializers.ones(None), (c.width,)).astype(
        y_BND.dtype
      )

    h_BND = LayerNorm(name="norm_attention")(x_BND)
    attention = Attention(c.heads, self.dtype, name="attention")
    x_BND = x_BND + branch("attention", attention(h_BND, h_BND))
    x_BND = partitioning.constrain(x_BND, "batch", None, None)
    h_BND = LayerNorm(name="norm_mlp")(x_BND)
    x_BND = x_BND + branch("mlp", MLP(c, self.dtype, name="mlp")(h_BND))
    return partitioning.constrain(x_BND, "batch", None, None)


class Head(nn.Module):
  """SigLIP's feature: one learned query's look at all patches."""

  config: Config
  dtype: Any

  @nn.compact
  def __call__(self, x_BND: jax.Array) -> jax.Array:
    c = self.config
    query_1D = self.param("queries", initializers.normal(None, "embed"), (1, c.width))
    query_B1D = jnp.broadcast_to(query_1D.astype(self.dtype), (len(x_BND), 1, c.width))
    h_B1D = Attention(c.heads, self.dtype, name="attention")(query_B1D, x_BND)
    h_B1D += MLP(c, self.dtype, name="mlp")(LayerNorm(name="norm")(h_B1D))
    return h_B1D[:, 0]


class ViT(nn.Module):
  """Images (B, height, width, 3) in 0..1 -> features (B, D), or (B, P, D), patches row by row."""

  config: Config
  pooled: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images_BYX3: jax.Array) -> jax.Array:
    c, family = self.config, FAMILIES[self.config.family]
    B, height, width, _ = images_BYX3.shape
    rows, columns, p = height // c.patch, width // c.patch, c.patch
    x = ((images_BYX3 - jnp.array(family.mean)) / jnp.array(family.std)).astype(self.dtype)
    x = x.reshape(B, rows, p, columns, p, 3).swapaxes(2, 3).reshape(B, rows * columns, -1)
    x_BND = linear.Linear(c.width, None, "embed", dtype=self.dtype, name="embed")(x)
    if family.summary_token:
      first_1D = self.param("summary", initializers.normal(None, "embed"), (1, c.width))
      first_B1D = jnp.broadcast_to(first_1D.astype(x_BND.dtype), (B, 1, c.width))
      x_BND = jnp.concatenate([first_B1D, x_BND], 1)
    positions = initializers.normal(None, "embed")
    positions_ND = self.param("positions", positions, x_BND.shape[1:])
    x_BND = x_BND + positions_ND.astype(x_BND.dtype)
    x_BND = partitioning.constrain(x_BND, "batch", None, None)
    if c.scan:
      block = Block(c, self.dtype, parent=None)
      layers = self.param("layers", stack.init(block, c.layers, x_BND[:1]))
      one = lambda x_BND, layer: (block.apply({"params": layer}, x_BND), None)
      x_BND, _ = stack.scan(one, x_BND, layers, c.remat)
    else:
      for i in range(c.layers):
        x_BND = Block(c, self.dtype, name=f"blocks_{i}")(x_BND)
    x_BND = LayerNorm(name="norm_out")(x_BND)
    if family.summary_token:
      return x_BND[:, 0] if self.pooled else x_BND[:, 1:]
    return Head(c, self.dtype, name="head")(x_BND) if self.pooled else x_BND
