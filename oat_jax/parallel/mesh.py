"""The device mesh: axes (data, fsdp, tensor), the same names on one CPU and on a pod."""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType
import numpy as np

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(shape: tuple[int, ...], devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """Returns the mesh of the given shape over all devices.

  Args:
    shape: sizes of (data, fsdp, tensor); one of them may be -1 and takes what the others leave.
    devices: all devices of all processes by default.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = list(shape)
  if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
    raise ValueError(
      f"config.mesh is {tuple(shape)}; it holds the sizes of {AXES}, one of which may be -1"
    )
  if -1 in sizes:
    known = math.prod(n for n in sizes if n != -1)
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"config.mesh {tuple(shape)} needs {abs(math.prod(sizes))} devices; there are {len(devices)}"
    )
  # Auto, because Linen's init fails under Explicit axes, jax.make_mesh's default.
  types = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=np.asarray(devices).tolist())


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Rows of a batch over the data and fsdp axes."""
  return jax.NamedSharding(mesh, jax.P(BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  return jax.NamedSharding(mesh, jax.P())
