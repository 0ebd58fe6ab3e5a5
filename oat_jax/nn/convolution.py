"""Convolution over time that never looks ahead."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax.nn import initializers


class CausalConvolution(nn.Module):
  """Windows of `kernel` steps, padded with zeros on the left only, to `features` numbers each.

  A window ends with the last of its `stride` steps: output i sees inputs up to (i + 1) * stride - 1
  and every step is seen by some output. (Windows that begin a stride, as with a left padding of
  kernel - 1, would leave the last stride - 1 steps out.)
  """

  features: int  # D
  kernel: int  # K, at least the stride
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTI: jax.Array) -> jax.Array:
    """Maps (B, T, I) to (B, T / stride, D); the stride divides T."""
    init = initializers.fan_in(None, None, "embed", in_axis=(0, 1))
    w_KID = self.param("w", init, (self.kernel, x_BTI.shape[-1], self.features))
    return jax.lax.conv_general_dilated(
      x_BTI.astype(self.dtype),
      w_KID.astype(self.dtype),
      window_strides=(self.stride,),
      padding=[(self.kernel - self.stride, 0)],
      dimension_numbers=("NWC", "WIO", "NWC"),
    )
