"""Multi-head attention whose keys and values go in and come out: a cache is plain data."""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax.nn import initializers
from oat_jax.nn import linear


class KeysValues(NamedTuple):
  """What queries attend to: `k_BSHK` and `v_BSHK`."""

  k_BSHK: jax.Array
  v_BSHK: jax.Array


class Attention(nn.Module):
  """Projections of one layer; `attend` serves self-, cross- and cached attention alike."""

  width: int  # D
  num_heads: int  # H

  def setup(self):
    D, H = self.width, self.num_heads
    K = D // H
    into = initializers.fan_in("embed", "heads", None)
    self.w_q_DHK = self.param("w_q", into, (D, H, K))
    self.w_k_DHK = self.param("w_k", into, (D, H, K))
    self.w_v_DHK = self.param("w_v", into, (D, H, K))
    out = initializers.fan_in("heads", None, "embed", in_axis=(0, 1))
    self.w_o_HKD = self.param("w_o", out, (H, K, D))

  def keys_values(self, x_BSD: jax.Array) -> KeysValues:
    return KeysValues(linear.contract(x_BSD, self.w_k_DHK), linear.contract(x_BSD, self.w_v_DHK))

  def attend(self, x_BTD: jax.Array, memory: KeysValues, mask_BTS: jax.Array | None) -> jax.Array:
    """Returns (B, T, D); `mask_BTS` is true where row T may look at column S; B may be 1 there."""
    q_BTHK = linear.contract(x_BTD, self.w_q_DHK)
    # Learned queries have batch size 1 until here, where they meet the batch's memory.
    q_BTHK = jnp.broadcast_to(q_BTHK, (memory.k_BSHK.shape[0], *q_BTHK.shape[1:]))
    mask_B1TS = None if mask_BTS is None else mask_BTS[:, None]
    a_BTHK = jax.nn.dot_product_attention(q_BTHK, memory.k_BSHK, memory.v_BSHK, mask=mask_B1TS)
    return linear.contract(a_BTHK, self.w_o_HKD, in_axes=2)
