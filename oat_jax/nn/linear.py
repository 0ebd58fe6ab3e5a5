"""Linear maps as single matrix products, a biased layer, an MLP, and a token table."""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax.nn import initializers
from oat_jax.nn import partitioning


def contract(x: jax.Array, w: jax.Array, in_axes: int = 1) -> jax.Array:
  """Contracts the last `in_axes` axes of x with the first ones of w.

  Both are flattened to matrices first: with several row axes, XLA's CPU backend takes twice the
  time for the product, its activation and the gradient of w.
  """
  rows, columns = x.shape[: x.ndim - in_axes], w.shape[in_axes:]
  inner = math.prod(w.shape[:in_axes])
  y = x.reshape(-1, inner) @ w.reshape(inner, -1).astype(x.dtype)
  return y.reshape(*rows, *columns)


class Linear(nn.Module):
  """y = x w + b, with logical axes for both ends of w."""

  features: int
  in_axis: str | None = None
  out_axis: str | None = "embed"
  scale: float = 1.0  # of the weights' variance
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = initializers.fan_in(self.in_axis, self.out_axis, scale=self.scale)
    w = self.param("w", init, (x.shape[-1], self.features))
    b = self.param("b", initializers.zeros(self.out_axis), (self.features,))
    return contract(x.astype(self.dtype), w) + b.astype(self.dtype)


class MLP(nn.Module):
  """Two hidden layers: y = gelu(gelu(x w_1 + b_1) w_2 + b_2) w_3 + b_3."""

  hidden: int  # F
  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h_BF = nn.gelu(Linear(self.hidden, None, "mlp", dtype=self.dtype, name="up")(x))
    h_BF = partitioning.constrain(h_BF, "batch", "mlp")
    h_BF = nn.gelu(Linear(self.hidden, "mlp", None, dtype=self.dtype, name="across")(h_BF))
    h_BF = partitioning.constrain(h_BF, "batch", "mlp")  # scattered as it is summed, not gathered
    return Linear(self.features, "mlp", "embed", dtype=self.dtype, name="down")(h_BF)


class Embed(nn.Module):
  """A table looked up by integer ids."""

  vocab_size: int  # V
  width: int  # D
  axis: str = "vocab"  # the logical axis of V
  width_axis: str | None = "embed"  # and of D
  stddev: float = 1.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    init = initializers.normal(self.axis, self.width_axis, stddev=self.stddev)
    table_VD = self.param("table", init, (self.vocab_size, self.width))
    # Gathered over fsdp before the lookup: XLA would otherwise exchange the looked-up rows one
    # batch row at a time.
    table_VD = partitioning.constrain(table_VD, self.axis, None)
    return jnp.asarray(table_VD, self.dtype)[ids]  # also of parameters on the host
