"""Frames of cameras -> what an image encoder sees: a crop and, in training, other colours.

Axis letters: Y, X rows and columns of pixels. What is drawn, is drawn once for an example: the
frames of one window move and change colour together.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

# RGB -> luminance and two axes of colour (YIQ, as NTSC television encodes it).
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def view(
  frames_BTYX3: jax.Array, crop: int = 0, jitter: float = 0.0, key: jax.Array | None = None
) -> jax.Array:
  """Returns float32 frames in 0..1, cropped to squares of `crop` pixels; 0 leaves them whole.

  Args:
    frames_BTYX3: uint8, no smaller than `crop`.
    crop: side of the square.
    jitter: strength of random colours, 0..1.
    key: of training: where the square lies and how colours change; None takes the centre, and
      colours as they are.
  """
  if key is None:
    return centre_crop(frames_BTYX3, crop).astype(jnp.float32) / 255
  where, colours = jax.random.split(key)
  frames_BTYX3 = random_crop(frames_BTYX3, crop, where).astype(jnp.float32) / 255
  return jitter_colours(frames_BTYX3, jitter, colours) if jitter else frames_BTYX3


def centre_crop(frames_BTYX3: jax.Array, size: int) -> jax.Array:
  if not size:
    return frames_BTYX3
  top, left = ((full - size) // 2 for full in frames_BTYX3.shape[2:4])
  return frames_BTYX3[:, :, top : top + size, left : left + size]


def random_crop(frames_BTYX3: jax.Array, size: int, key: jax.Array) -> jax.Array:
  """Every place of the square is as likely as another."""
  if not size:
    return frames_BTYX3
  B, T, Y, X, _ = frames_BTYX3.shape
  corners_B2 = jax.random.randint(key, (B, 2), 0, jnp.array([Y - size + 1, X - size + 1]))

  def one(frames_TYX3, corner_2):
    start = (0, corner_2[0], corner_2[1], 0)
    return jax.lax.dynamic_slice(frames_TYX3, start, (T, size, size, 3))

  return jax.vmap(one)(frames_BTYX3, corners_B2)


def jitter_colours(frames_BTYX3: jax.Array, strength: float, key: jax.Array) -> jax.Array:
  """Changes brightness, contrast, saturation and hue of frames in 0..1.

  The first three are multiplied by factors in 1 - strength .. 1 + strength, contrast around the
  window's mean luminance; hues turn by up to a quarter of `strength` of the whole circle.
  """
  draws_4B = jax.random.uniform(key, (4, len(frames_BTYX3)), minval=-strength, maxval=strength)
  brightness_B, contrast_B, saturation_B = 1 + draws_4B[:3]
  turn_B = draws_4B[3] * math.pi / 2
  # All but the offset is one matrix an example, applied to its pixels at once.
  grey_B = (frames_BTYX3.mean((1, 2, 3)) @ YIQ[0]) * brightness_B
  cos_B, sin_B = saturation_B * jnp.cos(turn_B), saturation_B * jnp.sin(turn_B)
  one_B, zero_B = jnp.ones_like(cos_B), jnp.zeros_like(cos_B)
  in_yiq_33B = jnp.array([[one_B, zero_B, zero_B], [zero_B, cos_B, -sin_B], [zero_B, sin_B, cos_B]])
  change_B33 = jnp.einsum("ij,jkB,kl->Bil", np.linalg.inv(YIQ), in_yiq_33B, YIQ)
  change_B33 *= (brightness_B * contrast_B)[:, None, None]
  changed_BTYX3 = jnp.einsum("BTYXc,Bdc->BTYXd", frames_BTYX3, change_B33)
  offset_B = (1 - contrast_B) * grey_B
  return jnp.clip(changed_BTYX3 + offset_B[:, None, None, None, None], 0, 1)
