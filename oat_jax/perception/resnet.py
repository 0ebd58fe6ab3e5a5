"""ResNet with group normalisation, and spatial softmax: images -> features.

ResNet-18 (arXiv 1512.03385), its batch normalisation replaced by groups of 16 channels (arXiv
1803.08494) as in Diffusion Policy (arXiv 2303.04137). Axis letters: Y, X rows and columns, I, O
channels, P = Y * X places of the last feature map.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax.nn import initializers
from oat_jax.nn import linear

GROUP = 16  # channels that are normalised together


class Convolution(nn.Module):
  """A square kernel without bias; the output is as large as the input / stride, rounded up."""

  features: int  # O
  kernel: int
  stride: int = 1

  @nn.compact
  def __call__(self, x_BYXI: jax.Array) -> jax.Array:
    # Variance 2 / fan-in: half of what it feeds is cut off by a rectifier (arXiv 1502.01852).
    init = initializers.fan_in(None, None, None, "embed", in_axis=(0, 1, 2), scale=2.0)
    w_YXIO = self.param("w", init, (self.kernel, self.kernel, x_BYXI.shape[-1], self.features))
    return jax.lax.conv_general_dilated(
      x_BYXI,
      w_YXIO.astype(x_BYXI.dtype),
      window_strides=(self.stride, self.stride),
      padding=[(self.kernel // 2, self.kernel // 2)] * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class GroupNorm(nn.Module):
  """Normalises every image's groups of channels over all places, in float32."""

  @nn.compact
  def __call__(self, x_BYXI: jax.Array) -> jax.Array:
    shape = x_BYXI.shape
    scale_I = self.param("scale", initializers.ones(None), shape[-1:])
    b_I = self.param("b", initializers.zeros(None), shape[-1:])
    x = x_BYXI.astype(jnp.float32).reshape(*shape[:3], -1, GROUP)
    mean = x.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(x - mean).mean((1, 2, 4), keepdims=True)
    x = ((x - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(shape)
    return (x * scale_I + b_I).astype(x_BYXI.dtype)


class Block(nn.Module):
  """Two convolutions beside a shortcut, which is a convolution where sizes change."""

  features: int
  stride: int

  @nn.compact
  def __call__(self, x_BYXI: jax.Array) -> jax.Array:
    h = Convolution(self.features, 3, self.stride, name="conv_1")(x_BYXI)
    h = nn.relu(GroupNorm(name="norm_1")(h))
    h = GroupNorm(name="norm_2")(Convolution(self.features, 3, name="conv_2")(h))
    if x_BYXI.shape != h.shape:
      x_BYXI = Convolution(self.features, 1, self.stride, name="conv_short")(x_BYXI)
      x_BYXI = GroupNorm(name="norm_short")(x_BYXI)
    return nn.relu(x_BYXI + h)


def spatial_softmax(logits_BYXK: jax.Array) -> jax.Array:
  """Returns (B, 2 K): the mean place (x, y) under the softmax of each map (arXiv 1504.00702).

  Places are in -1..1, from the left, upper edge to the right, lower one.
  """
  B, Y, X, K = logits_BYXK.shape
  weights_BPK = jax.nn.softmax(logits_BYXK.astype(jnp.float32).reshape(B, Y * X, K), axis=1)
  x_YX, y_YX = jnp.meshgrid(jnp.linspace(-1, 1, X), jnp.linspace(-1, 1, Y))
  places_P2 = jnp.stack([x_YX.ravel(), y_YX.ravel()], -1)
  return jnp.einsum("BPK,PL->BKL", weights_BPK, places_P2).reshape(B, -1)


class ResNet(nn.Module):
  """Images (B, Y, X, 3) in 0..1 -> features (B, 2 keypoints), or (B, P, channels[-1])."""

  channels: tuple[int, ...]  # of the stages, two blocks each; the first stage's are the stem's
  keypoints: int
  pooled: bool  # by spatial softmax; otherwise the places of the feature map
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images_BYX3: jax.Array) -> jax.Array:
    x = (2 * images_BYX3 - 1).astype(self.dtype)
    x = nn.relu(GroupNorm(name="norm_in")(Convolution(self.channels[0], 7, 2, name="conv_in")(x)))
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    for i, features in enumerate(self.channels):
      x = Block(features, 2 if i else 1, name=f"stage_{i}_block_0")(x)
      x = Block(features, 1, name=f"stage_{i}_block_1")(x)
    if not self.pooled:
      return x.reshape(len(x), -1, x.shape[-1])
    return spatial_softmax(linear.Linear(self.keypoints, "embed", None, name="keypoints")(x))
