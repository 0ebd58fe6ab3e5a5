"""Pre-norm transformer, with optional cross-attention and a KV cache that is a value."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax.nn import attention
from oat_jax.nn import initializers
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.nn import stack
from oat_jax.nn.attention import KeysValues


class RMSNorm(nn.Module):
  """Root-mean-square normalisation with a learned scale (arXiv 1910.07467), computed in float32."""

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    scale_D = self.param("scale", initializers.ones(None), (x_BTD.shape[-1],))
    x32_BTD = x_BTD.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True) + 1e-6)
    return (x32_BTD * inverse * scale_D).astype(x_BTD.dtype)


class Block(nn.Module):
  """One layer; the residual stream's dropout follows every branch."""

  width: int  # D
  num_heads: int  # H
  mlp_width: int  # F
  cross: bool
  dropout: float

  def setup(self):
    D, F = self.width, self.mlp_width
    self.norm_self = RMSNorm()
    self.self_attention = attention.Attention(D, self.num_heads)
    if self.cross:
      self.norm_cross = RMSNorm()
      self.cross_attention = attention.Attention(D, self.num_heads)
    self.norm_mlp = RMSNorm()
    self.w_up_DF = self.param("w_up", initializers.fan_in("embed", "mlp"), (D, F))
    self.w_down_FD = self.param("w_down", initializers.fan_in("mlp", "embed"), (F, D))
    self.drop = nn.Dropout(self.dropout)

  def cross_keys_values(self, memory_BMD):
    return self.cross_attention.keys_values(memory_BMD)

  def __call__(self, x_BTD, mask_BTS, memory, cache, index, rows, deterministic):
    h_BTD = self.norm_self(x_BTD)
    keys_values = self.self_attention.keys_values(h_BTD)
    if cache is not None:
      keys_values = cache = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, index, axis=1),
        cache,
        keys_values,
      )
    if rows is not None:
      x_BTD, h_BTD, mask_BTS = x_BTD[:, -rows:], h_BTD[:, -rows:], mask_BTS[:, -rows:]
    drop = lambda y_BTD: self.drop(y_BTD, deterministic=deterministic)
    x_BTD = x_BTD + drop(self.self_attention.attend(h_BTD, keys_values, mask_BTS))
    if self.cross:
      x_BTD = x_BTD + drop(self.cross_attention.attend(self.norm_cross(x_BTD), memory, None))
    h_BTF = nn.gelu(linear.contract(self.norm_mlp(x_BTD), self.w_up_DF))
    h_BTF = partitioning.constrain(h_BTF, "batch", None, "mlp")
    x_BTD = x_BTD + drop(linear.contract(h_BTF, self.w_down_FD))
    return partitioning.constrain(x_BTD, "batch", None, None), cache


class Transformer(nn.Module):
  """A stack of blocks and a last normalisation.

  Without dropout, a first layer whose input has batch size 1 (learned queries) computes its
  self-attention once for the whole batch: the batch axis appears with the cross-attention. Scanned,
  all layers are alike, and the batch axis is there from the first one on.
  """

  num_layers: int  # L
  width: int  # D
  num_heads: int  # H
  mlp_width: int  # F
  cross: bool = False
  dropout: float = 0.0
  dtype: Any = jnp.float32
  scan: bool = False  # whether the stack is one scan; see `stack`
  remat: str = "none"

  def setup(self):
    if self.scan:
      x_11D = jnp.zeros((1, 1, self.width), self.dtype)
      cross = None
      if self.cross:
        one = jnp.zeros((1, 1, self.num_heads, self.width // self.num_heads), self.dtype)
        cross = KeysValues(one, one)
      args = (x_11D, jnp.ones((1, 1, 1), bool), cross, None, 0, None, True)
      self.layers = self.param(
        "layers", stack.init(self._block(parent=None), self.num_layers, *args)
      )
    else:
      self.blocks = [self._block() for _ in range(self.num_layers)]
    self.norm_out = RMSNorm()

  def _block(self, **where):
    parts = (self.width, self.num_heads, self.mlp_width, self.cross, self.dropout)
    return Block(*parts, **where)

  def memory(self, memory_BMD: jax.Array) -> Any:
    """Returns every layer's cross-attention keys and values, computed once per observation.

    A list of `KeysValues`, or one whose arrays have a first axis of layers, where they are scanned.
    """
    if not self.scan:
      return [block.cross_keys_values(memory_BMD) for block in self.blocks]
    block = self._block(parent=None)

    def one(_, layer):
      return None, block.apply({"params": layer}, memory_BMD, method="cross_keys_values")

    return stack.scan(one, None, self.layers, self.remat)[1]

  def empty_cache(self, batch_size: int, length: int) -> Any:
    """Returns a cache without keys and values, in the form of `memory`'s."""
    shape = (batch_size, length, self.num_heads, self.width // self.num_heads)
    zeros = jnp.zeros((self.num_layers, *shape) if self.scan else shape, self.dtype)
    one = KeysValues(zeros, zeros)
    return one if self.scan else [one] * self.num_layers

  def __call__(
    self,
    x_BTD: jax.Array,
    mask_BTS: jax.Array,
    *,
    memory: Any = None,
    cache: Any = None,
    index: jax.Array | int = 0,
    rows: int | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, Any]:
    """Runs the stack.

    Args:
      x_BTD: embedded inputs.
      mask_BTS: true where row T may look at column S; S is T, or the cache's length.
      memory: `self.memory(...)`, for a stack with cross-attention; or the tokens (B, M, D) that it
        takes, of which each layer then makes its keys and values itself: in training, where nothing
        is looked at twice, those of all layers need not be kept.
      cache: keys and values of earlier rows; the rows of x are written from position `index` on.
      index: the first row's position in the cache.
      rows: where only the last `rows` positions of the output are wanted; spares the others the
        last layer, unless layers are scanned.
      deterministic: False draws dropout masks from the "dropout" stream.

    Returns:
      (B, T or rows, D) normalised outputs and the updated cache.
    """
    if self.scan:
      x_BTD, updated = self._scanned(x_BTD, mask_BTS, memory, cache, index, deterministic)
      return self.norm_out(x_BTD if rows is None else x_BTD[:, -rows:]), updated
    updated = []
    if isinstance(memory, jax.Array):
      memory = self.memory(memory)
    for i, block in enumerate(self.blocks):
      last = i == self.num_layers - 1
      x_BTD, kv = block(
        x_BTD,
        mask_BTS,
        None if memory is None else memory[i],
        None if cache is None else cache[i],
        index,
        rows if last else None,
        deterministic,
      )
      updated.append(kv)
    return self.norm_out(x_BTD), None if cache is None else updated

  def _scanned(self, x_BTD, mask_BTS, memory, cache, index, deterministic):
    tokens_BMD = memory if isinstance(memory, jax.Array) else None
    if memory is not None:
      B = memory.shape[0] if isinstance(memory, jax.Array) else memory.k_BSHK.shape[1]
      x_BTD = jnp.broadcast_to(x_BTD, (B, *x_BTD.shape[1:]))
    block, random = self._block(parent=None), self.dropout and not deterministic
    keys_L = jax.random.split(self.make_rng("dropout"), self.num_layers) if random else None

    def one(x_BTD, layer):
      params, memory, cache, key = layer
      if tokens_BMD is not None:
        memory = block.apply({"params": params}, tokens_BMD, method="cross_keys_values")
      rngs = {"dropout": key} if random else None
      return block.apply(
        {"params": params}, x_BTD, mask_BTS, memory, cache, index, None, deterministic, rngs=rngs
      )

    made = memory if tokens_BMD is None else None
    return stack.scan(one, x_BTD, (self.layers, made, cache, keys_L), self.remat)
