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
  """Statistics of each dimension, float32 (D,) but for the mask, in the dataset's units."""

  min: np.ndarray
  max: np.ndarray
  mean: np.ndarray
  std: np.ndarray  # of the population
  q01: np.ndarray
  q99: np.ndarray
  mask: np.ndarray  # bool (D,): false where the dimension is not to be scaled, e.g. a gripper
  count: int  # steps  # pyright: ignore[reportIncompatibleMethodOverride]


def compute(values_LD: np.ndarray, chosen_L: np.ndarray | None = None) -> Statistics:
  """Returns the exact statistics of (L, D) finite values, quantiles linearly interpolated.

  One dimension is looked at at a time, so that a mapped array of any length needs the memory of one
  column.

  Args:
    values_LD: the values.
    chosen_L: bool, the rows that count; all if None.

  Raises:
    ValueError: the array is not two-dimensional, has no rows, or holds NaN or infinity.
  """
  values_LD = np.asarray(values_LD)
  count = len(values_LD) if chosen_L is None else int(np.count_nonzero(chosen_L))
  if values_LD.ndim != 2 or not count:
    raise ValueError(f"statistics need a (steps, dims) array with steps, not {values_LD.shape}")
  columns = []
  for dim in range(values_LD.shape[1]):
    x_L = values_LD[:, dim] if chosen_L is None else values_LD[chosen_L, dim]
    if not np.isfinite(x_L).all():
      row = int(np.flatnonzero(~np.isfinite(x_L))[0])
      raise ValueError(f"statistics of values with NaN or infinity, first at {[row, dim]}")
    x_L = x_L.astype(np.float64)
    quantiles = np.quantile(x_L, (0.01, 0.99))
    columns.append((x_L.min(), x_L.max(), x_L.mean(), x_L.std(), *quantiles))
  arrays = np.array(columns).reshape(-1, 6).T.astype(np.float32)
  return Statistics(*arrays, mask=np.ones(values_LD.shape[1], bool), count=count)


def to_json(statistics: Statistics) -> dict[str, Any]:
  """Returns a dict of lists (and the count) that `from_json` turns back bit by bit."""
  return {name: np.asarray(value).tolist() for name, value in statistics._asdict().items()}


def from_json(content: Mapping[str, Any]) -> Statistics:
  """Returns the statistics that `to_json` wrote; ValueError where names or sizes disagree."""
  if set(content) != set(Statistics._fields):
    raise ValueError(f"statistics hold {sorted(content)}; expected {sorted(Statistics._fields)}")
  dtype = lambda name: bool if name == "mask" else np.float32
  arrays = {k: np.asarray(v, dtype(k)) for k, v in content.items() if k != "count"}
  shapes = {name: array.shape for name, array in arrays.items()}
  if len(set(shapes.values())) > 1 or arrays["min"].ndim != 1:
    raise ValueError(f"statistics need lists of one length; their shapes are {shapes}")
  for low, high in (("min", "max"), ("q01", "q99")):
    # Also false where one of them is NaN.
    if not (arrays[low] <= arrays[high]).all() or not np.isfinite(arrays[high] - arrays[low]).all():
      raise ValueError(f"statistics: '{low}' must be finite and at most '{high}'")
  if not (np.isfinite(arrays["mean"]) & (arrays["std"] >= 0) & np.isfinite(arrays["std"])).all():
    raise ValueError("statistics: 'mean' and 'std' must be finite, and 'std' not negative")
  return Statistics(**arrays, count=int(content["count"]))


def stack(statistics: Sequence[Statistics]) -> dict[str, np.ndarray]:
  """Returns each statistic of a mixture as (datasets, D), row by row; without the counts.

  Raises:
    ValueError: there are none, or they disagree in their number of dimensions.
  """
  widths = [len(s.min) for s in statistics]
  if len(set(widths)) != 1:
    raise ValueError(f"statistics to stack need one number of dimensions, not {widths}")
  names = [name for name in Statistics._fields if name != "count"]
  return {name: np.stack([getattr(s, name) for s in statistics]) for name in names}


def place(statistics: Statistics, columns: np.ndarray, width: int) -> Statistics:
  """Returns statistics (width,): those given in the named columns, constant zeros elsewhere."""
  arrays = {}
  for name, values in statistics._asdict().items():
    if name != "count":
      arrays[name] = np.full(width, name == "mask", values.dtype)
      arrays[name][columns] = values
  return Statistics(**arrays, count=statistics.count)


def affine(statistics: Mapping[str, np.ndarray], mode: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the map to normalised values: (x - offset) * scale.

  Args:
    statistics: arrays (D,) or (datasets, D): of `stack`, or `Statistics._asdict()`.
    mode: "min_max" maps [min, max] and "q01_q99" maps [q01, q99] to [-1, 1], "mean_std" gives zero
      mean and unit deviation, "none" changes nothing. A nearly constant dimension is centred and
      keeps its scale, so that nothing explodes; one outside `mask` is left as it is.

  Returns:
    offset, scale: float32, of the statistics' shape.

  Raises:
    ValueError: there is no such mode.
  """
  if mode not in MODES:
    raise ValueError(f"unknown normalisation mode '{mode}'; expected one of {', '.join(MODES)}")
  exact = {name: np.asarray(value, np.float64) for name, value in statistics.items()}
  left = exact["mask"] == 0
  if mode == "none":
    offset, half_range = np.zeros_like(exact["min"]), np.ones_like(exact["min"])
  elif mode == "mean_std":
    offset, half_range = exact["mean"], exact["std"]
  else:
    low, high = (exact["min"], exact["max"]) if mode == "min_max" else (exact["q01"], exact["q99"])
    offset, half_range = (high + low) / 2, (high - low) / 2
  constant = 2 * half_range <= _CONSTANT * np.maximum(1, np.abs(offset))
  scale = 1 / np.where(constant | left, 1, half_range)
  offset = np.where(left, 0, offset)
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
