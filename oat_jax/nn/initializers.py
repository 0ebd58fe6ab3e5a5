"""Initializers that record the logical axes of the array they make."""

from typing import Any

from flax import linen as nn


def fan_in(*axes: str | None, in_axis: Any = 0, out_axis: Any = -1, scale: float = 1.0) -> Any:
  """Normal with variance `scale` / fan-in."""
  init = nn.initializers.variance_scaling(scale, "fan_in", "normal", in_axis, out_axis)
  return nn.with_logical_partitioning(init, axes)


def normal(*axes: str | None, stddev: float = 0.02) -> Any:
  return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)


def zeros(*axes: str | None) -> Any:
  return nn.with_logical_partitioning(nn.initializers.zeros, axes)


def ones(*axes: str | None) -> Any:
  return nn.with_logical_partitioning(nn.initializers.ones, axes)
