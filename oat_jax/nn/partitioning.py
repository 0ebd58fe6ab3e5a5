"""Logical axes: recorded with a parameter, handed out as tuples, used as constraints.

Boxes that carry the names never leave this module's functions: parameters are plain arrays
everywhere else.
"""

from collections.abc import Iterator
import contextlib
import contextvars
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


_active: contextvars.ContextVar[tuple[dict[str, Any], jax.sharding.Mesh] | None]
_active = contextvars.ContextVar("_active", default=None)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Pins an activation's sharding by logical names; does nothing outside `rules`.

  An axis of size 1, which stands for all rows, is left whole. ValueError for a name without a rule.
  """
  active = _active.get()
  if active is None:
    return x
  table, mesh = active
  unknown = [name for name in names if name is not None and name not in table]
  if unknown:
    raise ValueError(f"no sharding rule for activation axis '{unknown[0]}'; rules: {sorted(table)}")
  if mesh.size == 1:
    return x
  entries = [
    None if name is None or size == 1 else table[name]
    for name, size in zip(names, x.shape, strict=True)
  ]
  return jax.lax.with_sharding_constraint(x, jax.NamedSharding(mesh, jax.P(*entries)))


@contextlib.contextmanager
def rules(table: tuple[tuple[str, Any], ...], mesh: jax.sharding.Mesh) -> Iterator[None]:
  """The context, while a step is traced, under which `constrain` maps names to axes of `mesh`."""
  token = _active.set((dict(table), mesh))
  try:
    yield
  finally:
    _active.reset(token)
