"""Logical axes: recorded with a parameter, handed out as tuples, used as constraints.

Boxes that carry the names never leave this module's functions: parameters are plain arrays
everywhere else.
"""

import contextlib
from typing import Any

from flax import linen as nn
import jax


def init(module: nn.Module, key: jax.Array, *args: Any, method: str | None = None) -> Any:
  """Returns the module's parameters as a plain dict of arrays."""
  return nn.unbox(module.init(key, *args, method=method)["params"])


def logical_axes(module: nn.Module, *args: Any, method: str | None = None) -> Any:
  """Returns the parameters' tree with a tuple of logical axis names in each array's place.

  Raises ValueError for a parameter that was declared without names: it would silently be
  replicated.
  """
  boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, method=method)["params"])

  def names(path, leaf):
    if not isinstance(leaf, nn.LogicallyPartitioned):
      raise ValueError(f"parameter {jax.tree_util.keystr(path)} was declared without logical axes")
    return tuple(leaf.names)

  return jax.tree_util.tree_map_with_path(
    names, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Pins an activation's sharding by logical names; does nothing outside `rules`."""
  return nn.with_logical_constraint(x, names)  # pyright: ignore[reportPrivateImportUsage]


def rules(table: tuple[tuple[str, Any], ...]) -> contextlib.AbstractContextManager[None]:
  """The context under which `constrain` maps logical names to mesh axes."""
  return nn.logical_axis_rules(table)
