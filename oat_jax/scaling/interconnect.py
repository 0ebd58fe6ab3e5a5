"""How fast chips of a mesh exchange, and what they exchange at least."""

from collections.abc import Sequence
import itertools
import math
from typing import Any

import numpy as np

from oat_jax.cost import chips
from oat_jax.parallel import mesh as mesh_lib


def least(
  leaves: Sequence[Any], where: chips.Topology, mesh: tuple[int, int, int], config: Any
) -> float:
  """Seconds that gathering parameters twice and scattering gradients once take at least."""
  data, fsdp, tensor = mesh
  trained = sum(math.prod(x.shape) for x in leaves if x.name.startswith("network/")) / tensor
  width = 2 if config.model.get("dtype") == "bfloat16" else 4
  inside = chips.rate(where, _span(where, fsdp * tensor))
  total = 2 * chips.seconds("all-gather", trained * width, fsdp, inside)
  total += chips.seconds("reduce-scatter", trained * 4, fsdp, inside)
  across = chips.rate(where, _span(where, where.size))
  return total + chips.seconds("all-reduce", trained * 4 / fsdp, data, across)


def _span(where: chips.Topology, count: int) -> np.ndarray:
  """Returns the coordinates of the first chips, the last axis fastest."""
  shape = (where.slices, *where.shape) if where.slices > 1 else where.shape
  grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
  return grid.reshape(-1, len(shape))[:count]


def rate(where: chips.Topology, mesh: Any, group: int) -> float:
  """Returns the rate of a group of so many chips: the slowest of the mesh's axes that make it."""
  rates = []
  for count in (1, 2, 3):
    for names in itertools.combinations(mesh_lib.AXES, count):
      if math.prod(mesh.shape[name] for name in names) == group:
        index = tuple(slice(None) if name in names else 0 for name in mesh_lib.AXES)
        rates.append(chips.rate(where, _coordinates(where, mesh.devices[index].ravel())))
  return min(rates) if rates else chips.rate(where, _span(where, group))


def _coordinates(where: chips.Topology, devices: Any) -> list[list[int]]:
  if not where.chip.axes:  # however many processes a node has, its GPUs are numbered together
    return [[*divmod(device.id, where.shape[1])] for device in devices]
  slices = lambda device: [device.slice_index] if where.slices > 1 else []
  return [[*slices(device), *device.coords[: len(where.shape)]] for device in devices]
