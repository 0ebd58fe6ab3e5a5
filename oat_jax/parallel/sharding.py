"""Sharding is a table: logical axis names of parameters and activations -> mesh axes."""

from typing import Any

import jax

from oat_jax.parallel import mesh as mesh_lib

RULES: tuple[tuple[str, Any], ...] = (
  ("batch", mesh_lib.BATCH_AXES),
  ("embed", "fsdp"),
  ("mlp", "tensor"),
  ("heads", "tensor"),
  ("vocab", "tensor"),
  ("task", None),
  ("layers", None),
)


def param_shardings(axes: Any, shapes: Any, mesh: jax.sharding.Mesh, rules=RULES) -> Any:
  """Maps every parameter's logical axes to a NamedSharding.

  Args:
    axes: tree of tuples of logical axis names; parameters that are missing from it (statistics, a
      frozen tokenizer) are replicated.
    shapes: the parameters' tree of arrays or ShapeDtypeStructs.
    mesh: the mesh.
    rules: the table.

  Raises:
    ValueError: an axis without a rule, or an axis whose size the mesh does not divide; names the
      parameter.
  """
  table = dict(rules)
  is_axes = lambda x: isinstance(x, tuple)
  known = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))

  def one(path, leaf):
    where = jax.tree_util.keystr(path)
    names = known.pop(path, None)
    if names is None:
      return mesh_lib.replicated(mesh)
    if len(names) != len(leaf.shape):
      raise ValueError(
        f"parameter {where}: {len(names)} logical axes {names} for shape {leaf.shape}"
      )
    missing = [name for name in names if name is not None and name not in table]
    if missing:
      raise ValueError(
        f"parameter {where}: no sharding rule for axis '{missing[0]}'; rules: {sorted(table)}"
      )
    entries = [None if name is None else table[name] for name in names]
    for size, name, entry in zip(leaf.shape, names, entries):
      parts = 1
      for axis in (entry,) if isinstance(entry, str) else entry or ():
        parts *= mesh.shape[axis]
      if size % parts:
        raise ValueError(
          f"parameter {where}: axis '{name}' of size {size} does not divide over {parts} devices "
          f"({entry})"
        )
    return jax.NamedSharding(mesh, jax.P(*entries))

  shardings = jax.tree_util.tree_map_with_path(one, shapes)
  if known:
    raise ValueError(
      f"logical axes name parameters that do not exist: {sorted(map(jax.tree_util.keystr, known))}"
    )
  return shardings


def state_shardings(state: Any, params: Any, shardings: Any, mesh: jax.sharding.Mesh) -> Any:
  """Shards what mirrors a parameter (path suffix, shape) as that parameter; replicates the rest."""
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
  known = dict(zip(paths, zip(shapes, jax.tree.leaves(shardings))))

  def one(path, leaf):
    for start in range(len(path)):
      shape, sharding = known.get(path[start:], (None, None))
      if shape == leaf.shape:
        return sharding
    return mesh_lib.replicated(mesh)

  return jax.tree_util.tree_map_with_path(one, state)
