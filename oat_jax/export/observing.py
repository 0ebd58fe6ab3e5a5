"""From what a robot or a simulator observes to the batch that a policy acts on; plain numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from oat_jax import batch as batch_lib

OPTIONAL = ("task", "language", "observation_mask", "dataset")


def batch(observation: Mapping[str, Any], spec: batch_lib.BatchSpec) -> tuple[dict[str, Any], bool]:
  """Returns (batch of `batch.ACTING`, whether it had a batch axis).

  Args:
    observation: `state`, float (S,) of one moment, (T', S) of the last T' <= T moments, oldest
      first, or (B, T, S); `image_<camera>` likewise, uint8. Moments before the first that is given
      count as not there. `task`: its name or number (a list of B of them), `language` (E,),
      `dataset`: its name or number, `observation_mask` (T,), where they are not the only ones.
    spec: of the policy.

  Raises:
    ValueError: a key is missing or not known, or a value is of another shape, dtype or range.
  """
  if not isinstance(observation, Mapping):
    raise ValueError(f"the observation is {type(observation).__name__}; it must be a mapping")
  images = {f"image_{name}": (height, width, 3) for name, height, width in spec.cameras}
  series = {"state": (spec.state_dim,)} | images
  unknown = sorted(set(map(str, observation)) - {*series, *OPTIONAL})
  missing = sorted(set(series) - set(observation))
  if unknown or missing:
    wrong = f"has '{unknown[0]}', which is not known" if unknown else f"has no '{missing[0]}'"
    raise ValueError(f"the observation {wrong}; it takes {[*series, *OPTIONAL]}")
  values = {name: _array(observation[name], name) for name in series}
  rank = values["state"].ndim
  if rank not in (1, 2, 3):
    raise ValueError(
      f"'state' has shape {list(values['state'].shape)}; expected [{spec.state_dim}], or with axes "
      "of time, or of batch and time, before it"
    )
  found: dict[str, Any] = {}
  lengths = {}
  for name, shape in series.items():
    value = values[name]
    extra = value.ndim - len(shape)
    if extra != rank - 1 or value.shape[extra:] != shape:
      raise ValueError(
        f"'{name}' has shape {list(value.shape)}; expected {list(shape)} behind the {rank - 1} "
        "axes of batch and time that 'state' has"
      )
    found[name] = value.reshape(*(1,) * (2 - extra), *value.shape)
    lengths[name] = found[name].shape[:2]
  (B, length), T = lengths["state"], spec.observation_steps
  for name, both in lengths.items():
    if both != (B, length):
      raise ValueError(f"'{name}' has {both[0]} rows of {both[1]} moments, 'state' {B} of {length}")
  if not B or not 1 <= length <= T:
    raise ValueError(f"'state' holds {B} rows of {length} moments; the policy looks at 1 to {T}")
  absent = T - length
  whole = {name: np.concatenate([x[:, :1]] * absent + [x], 1) for name, x in found.items()}
  mask_BT = np.broadcast_to(np.arange(T) >= absent, (B, T))
  if "observation_mask" in observation:
    mask_BT = mask_BT & _array(observation["observation_mask"], "observation_mask").astype(bool)
  dtypes = {name: np.float32 if name == "state" else np.uint8 for name in series}
  seen = {name: _cast(x, dtypes[name], name) for name, x in whole.items()}
  seen["task"] = _numbers(observation, "task", spec.task_names, B)
  if spec.language_dim and "language" in observation:
    language = _cast(_array(observation["language"], "language"), np.float32, "language")
    seen["language"] = np.array(np.broadcast_to(language, (B, language.shape[-1])))
  made = {
    "observation": seen,
    "observation_mask": np.array(mask_BT),
    "dataset": _numbers(observation, "dataset", spec.dataset_names, B, spec.num_datasets),
  }
  batch_lib.check(made, spec, batch_lib.ACTING)
  return made, rank == 3


def _array(value: Any, name: str) -> np.ndarray:
  array = np.asarray(value)
  if array.dtype.kind not in "buif":
    raise ValueError(f"'{name}' is of dtype {array.dtype}; numbers are needed")
  return array


def _cast(x: np.ndarray, dtype: Any, name: str) -> np.ndarray:
  """Returns the array in native byte order, contiguous; integers for images only."""
  if dtype == np.uint8 and x.dtype != np.uint8:
    raise ValueError(f"'{name}' is {x.dtype}; images are uint8, 0 to 255")
  return np.ascontiguousarray(x, dtype)


def _numbers(
  observation: Mapping[str, Any], key: str, names: tuple[str, ...], B: int, count: int = 0
) -> np.ndarray:
  """Returns int32 (B,) of what is given by name or number; 0 where there is only one."""
  count = count or len(names)
  if key not in observation:
    if count > 1:
      known = f": one of {', '.join(names)}" if names else f": 0..{count - 1}"
      raise ValueError(f"the observation has no '{key}'; the policy needs it{known}")
    return np.zeros(B, np.int32)
  given = observation[key]
  given = [given] * B if isinstance(given, str) or np.ndim(given) == 0 else list(given)
  if len(given) != B:
    raise ValueError(f"'{key}' has {len(given)} values for {B} rows")
  found = []
  for value in given:
    if isinstance(value, str):
      if value not in names:
        raise ValueError(f"there is no {key} '{value}'; the policy knows {', '.join(names)}")
      value = names.index(value)
    if not isinstance(value, int | np.integer) or not 0 <= value < count:
      raise ValueError(f"'{key}' is {value!r}; it must be a name, or in 0..{count - 1}")
    found.append(value)
  return np.asarray(found, np.int32)
