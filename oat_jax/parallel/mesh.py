"""The device mesh: axes (data, fsdp, tensor), the same names on one CPU and on a pod."""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType
import numpy as np

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(shape: tuple[int, ...], devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """Returns the mesh of the given shape over all devices.

  Of several TPU slices, which a data centre's network joins, each holds a part of the data axis and
  the other two whole.

  Args:
    shape: sizes of (data, fsdp, tensor); one of them may be -1 and takes what the others leave.
    devices: all devices of all processes by default.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or the data axis not to slices.
  """
  devices = jax.devices() if devices is None else devices
  # Auto, because Linen's init fails under Explicit axes, jax.make_mesh's default.
  types = (AxisType.Auto,) * len(AXES)
  found = sizes(shape, len(devices))
  slices = count_slices(devices)
  if slices == 1:
    # Also axes that no axis of the torus fits alone.
    placed = mesh_utils.create_device_mesh(found, list(devices), allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, AXES, axis_types=types)
  if found[0] % slices:
    raise ValueError(
      f"config.mesh is {found} over {slices} slices; the data axis alone crosses between them, so "
      f"it must be a multiple of {slices}"
    )
  inside, across = (found[0] // slices, *found[1:]), (slices, 1, 1)
  placed = mesh_utils.create_hybrid_device_mesh(
    inside, across, list(devices), allow_split_physical_axes=True
  )
  return jax.sharding.Mesh(placed, AXES, axis_types=types)


def count_slices(devices: Sequence[Any]) -> int:
  """Returns how many TPU slices devices lie in; 1 for all others, whose network is one for all."""
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", 0) for device in devices})


def abstract(shape: tuple[int, ...]) -> jax.sharding.AbstractMesh:
  """Returns a mesh of these sizes of (data, fsdp, tensor) without devices, to plan with."""
  return jax.sharding.AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sizes(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
  """Returns the sizes of the axes over so many devices; errors as those of `make_mesh`."""
  found = list(shape)
  if len(found) != len(AXES) or found.count(-1) > 1 or any(n < 1 and n != -1 for n in found):
    raise ValueError(
      f"config.mesh is {tuple(shape)}; it holds the sizes of {AXES}, one of which may be -1"
    )
  if -1 in found:
    known = math.prod(n for n in found if n != -1)
    if count % known:
      raise ValueError(
        f"config.mesh {tuple(shape)} needs a multiple of {known} devices; there are {count}"
      )
    found[found.index(-1)] = count // known
  if math.prod(found) != count:
    raise ValueError(
      f"config.mesh {tuple(shape)} needs {math.prod(found)} devices; there are {count}"
    )
  return tuple(found)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Rows of a batch over the data and fsdp axes."""
  return jax.NamedSharding(mesh, jax.P(BATCH_AXES))


def process_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
  """Returns the rows of a global batch that lie on this process's devices, ascending.

  They need not lie together: meshes follow the wires between chips, and a host's chips are a square
  of them. Processes that a tensor axis joins hold the same rows.

  Raises:
    ValueError: the batch does not divide over the data and fsdp axes.
  """
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  if batch_size % parts:
    raise ValueError(
      f"config.batch_size {batch_size} does not divide over the {parts} devices of the mesh's "
      "data and fsdp axes"
    )
  mine = [device.process_index == jax.process_index() for device in mesh.devices.flat]
  mine = np.reshape(mine, (parts, -1)).any(-1)
  return np.flatnonzero(np.repeat(mine, batch_size // parts))


def global_batch(batch: Any, rows_R: np.ndarray, mesh: jax.sharding.Mesh, batch_size: int) -> Any:
  """Places this process's rows of a batch, `process_rows`, of which all processes hold theirs."""
  sharding = batch_sharding(mesh)

  def place(x_R):
    def part(index):
      start, stop, _ = index[0].indices(batch_size)
      first = np.searchsorted(rows_R, start)
      return x_R[first : first + stop - start]

    return jax.make_array_from_callback((batch_size, *x_R.shape[1:]), sharding, part)

  return jax.tree.map(place, batch)


def check_parts(mesh: jax.sharding.Mesh, batch_size: int, parts: int) -> None:
  """Raises ValueError unless each of the parts of a batch divides over its devices."""
  over = mesh.shape["data"] * mesh.shape["fsdp"]
  if batch_size % (parts * over):
    raise ValueError(
      f"config.batch_size {batch_size} does not divide into config.accumulate {parts} parts over "
      f"the {over} devices of the mesh's data and fsdp axes; take a multiple of {parts * over}"
    )


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  return jax.NamedSharding(mesh, jax.P())
