"""A stack of equal layers as one scan: their parameters lie in one array each, layers first.

A stack of many layers is compiled once, not layer by layer. What the backward pass keeps of the
forward one is said by `remat`.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax

# By `config.REMAT`.
_POLICIES = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def init(layer: nn.Module, num_layers: int, *args: Any) -> Callable[[jax.Array], Any]:
  """Returns an initializer of the stacked parameters of a layer that is called with `args`.

  Logical axes are those of the layer, "layers" before them.
  """

  def stacked(key):
    plain = lambda key: nn.unbox(layer.init(key, *args)["params"])
    boxes = jax.eval_shape(lambda: layer.init(key, *args)["params"])
    values = jax.vmap(plain)(jax.random.split(key, num_layers))
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
    name = lambda box, value: nn.LogicallyPartitioned(value, ("layers", *box.names))
    return jax.tree.map(name, boxes, values, is_leaf=is_box)

  return stacked


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, remat: str) -> Any:
  """Returns (carry, ys) of `jax.lax.scan(body, carry, xs)`, rematerialised by that policy."""
  if remat != "none":
    # Inside a scan nothing is merged across layers anyway.
    body = jax.checkpoint(body, prevent_cse=False, policy=_POLICIES[remat])
  return jax.lax.scan(body, carry, xs)
