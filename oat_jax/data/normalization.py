"""Per-dimension statistics of a dataset and the affine maps that normalise by them.

Axis letters: L steps, D dimensions (of actions or of states).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MODES = ("min_max", "q01_q99", "mean_std", "none")

# A dimension is nearly constant where its range is below 1e-4 (a tenth of a millimetre or of a
# milliradian: under the repeatability of robots) or below 1e-4 of its magnitude (about a thousand
# float32 steps). What it carries is rounding and sensor noise, not to be blown up to [-1, 1].
_CONSTANT = 1e-4


class Statistics(NamedTuple):
  """Statistics of each dimension, float32 (D,), in the dataset's units."""

  min: np.ndarray
  max: np.ndarray
  mean: np.ndarray
  std: np.ndarray  # of the population
  q01: np.ndarray
  q99: np.ndarray
  count: int  # steps  # pyright: ignore[reportIncompatibleMethodOverride]


def compute(values_LD: np.ndarray) -> Statistics:
  """Returns the exact statistics of (L, D) finite values, quantiles linearly interpolated.

  Raises:
    ValueError: the array is not two-dimensional, has no rows, or holds NaN or infinity.
  """
  values_LD = np.asarray(values_LD)
  if values_LD.ndim != 2 or not len(values_LD):
    raise ValueError(f"statistics need a (steps, dims) array with steps, not {values_LD.shape}")
  bad = np.argwhere(~np.isfinite(values_LD))
  if len(bad):
    raise ValueError(f"statistics of values with NaN or infinity, first at {bad[0].tolist()}")
  values_LD = values_LD.astype(np.float64)
  arrays = (
      values_LD.min(0), values_LD.max(0), values_LD.mean(0), values_LD.std(0),
      *np.quantile(values_LD, (0.01, 0.99), axis=0),
  )  # fmt: skip
  return Statistics(*(array.astype(np.float32) for array in arrays), count=len(values_LD))


def to_json(statistics: Statistics) -> dict[str, Any]:
  """Returns a dict of lists (and the count) that `from_json` turns back bit by bit."""
  return {name: np.asarray(value).tolist() for name, value in statistics._asdict().items()}


def from_json(content: Mapping[str, Any]) -> Statistics:
  """Returns the statistics that `to_json` wrote; ValueError where names or sizes disagree."""
  if set(content) != set(Statistics._fields):
    raise ValueError(f"statistics hold {sorted(content)}; expected {sorted(Statistics._fields)}")
  arrays = {k: np.asarray(v, np.float32) for k, v in content.items() if k != "count"}
  shapes = {name: array.shape for name, array in arrays.items()}
  if len(set(shapes.values())) > 1 or arrays["min"].ndim != 1:
    raise ValueError(f"statistics need lists of one length; their shapes are {shapes}")
  return Statistics(**arrays, count=int(content["count"]))


def stack(statistics: Sequence[Statistics]) -> dict[str, np.ndarray]:
  """Returns each statistic of a mixture as float32 (datasets, D), row by row; without the counts.

  Raises:
    ValueError: there are none, or they disagree in their number of dimensions.
  """
  widths = [len(s.min) for s in statistics]
  if len(set(widths)) != 1:
    raise ValueError(f"statistics to stack need one number of dimensions, not {widths}")
  names = [name for name in Statistics._fields if name != "count"]
  return {name: np.stack([getattr(s, name) for s in statistics]) for name in names}


def affine(statistics: Mapping[str, np.ndarray], mode: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the map to normalised values: (x - offset) * scale.

  Args:
    statistics: arrays (D,) or (datasets, D): of `stack`, or `Statistics._asdict()`.
    mode: "min_max" maps [min, max] and "q01_q99" maps [q01, q99] to [-1, 1], "mean_std" gives zero
      mean and unit deviation, "none" changes nothing. A nearly constant dimension is centred and
      keeps its scale, so that nothing explodes.

  Returns:
    offset, scale: float32, of the statistics' shape.

  Raises:
    ValueError: there is no such mode.
  """
  if mode not in MODES:
    raise ValueError(f"unknown normalisation mode '{mode}'; expected one of {', '.join(MODES)}")
  exact = {name: np.asarray(value, np.float64) for name, value in statistics.items()}
  if mode == "none":
    offset, half_range = np.zeros_like(exact["min"]), np.ones_like(exact["min"])
  elif mode == "mean_std":
    offset, half_range = exact["mean"], exact["std"]
  else:
    low, high = (exact["min"], exact["max"]) if mode == "min_max" else (exact["q01"], exact["q99"])
    offset, half_range = (high + low) / 2, (high - low) / 2
  constant = 2 * half_range <= _CONSTANT * np.maximum(1, np.abs(offset))
  scale = 1 / np.where(constant, 1, half_range)
  return offset.astype(np.float32), scale.astype(np.float32)


def parameters(
  statistics: Mapping[str, np.ndarray] | None, mode: str, of: str
) -> dict[str, np.ndarray]:
  """Returns what a model carries: `stack`'s statistics, and `offset` and `scale` of `affine`.

  Args:
    statistics: arrays (datasets, D); None where a model is loaded, not initialised.
    mode: one of `MODES`.
    of: what they are statistics of, for the error.

  Raises:
    ValueError: there are none.
  """
  if statistics is None:
    raise ValueError(f"initialising a model needs the statistics of the training {of}")
  offset, scale = affine(statistics, mode)
  arrays = {name: np.asarray(value, np.float32) for name, value in statistics.items()}
  return arrays | {"offset": offset, "scale": scale}
