"""Parameters in a safetensors file: nested dicts of arrays, named as in "network/encoder/w"."""

from collections.abc import Iterable, Iterator, Mapping
import hashlib
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

# What can be saved, by safetensors' own names.
_KINDS = {"BOOL": np.bool_, "BF16": ml_dtypes.bfloat16}
_KINDS |= {f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)}
_KINDS |= {f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)}
_KINDS |= {f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)}
DTYPES = tuple(np.dtype(dtype).name for dtype in _KINDS.values())

Description = list[Any]  # [dtype, [size of each axis]]


def flat(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (name, leaf), sorted by name; ValueError for what names alone could not rebuild."""
  if not isinstance(tree, Mapping):
    yield where, tree
    return
  if not tree:
    raise ValueError(f"parameters '{where}' are empty: nothing of them would be saved")
  for key in sorted(tree, key=str):
    if not isinstance(key, str) or not key or "/" in key:
      raise ValueError(f"parameters '{where}' have the key {key!r}; names without '/' can be saved")
    yield from flat(tree[key], f"{where}/{key}" if where else key)


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the tree whose `flat` these arrays are."""
  tree: dict[str, Any] = {}
  for name, x in arrays.items():
    *parents, last = name.split("/")
    at = tree
    for parent in parents:
      at = at.setdefault(parent, {})
    at[last] = x
  return tree


def describe(x: Any) -> Description:
  """Returns [dtype, shape] of an array, or of what stands for one."""
  return [str(x.dtype), list(x.shape)]


def described(arrays: Iterable[tuple[str, Any]]) -> dict[str, Description]:
  """Returns the descriptions, by name, of pairs as `flat` yields them."""
  return {name: describe(x) for name, x in arrays}


def compare(found: Mapping[str, Any], wanted: Mapping[str, Any], who: str) -> None:
  """Raises ValueError, naming the first array, where two descriptions by name disagree."""
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise ValueError(
        f"parameter '{name}': {who} {wanted.get(name, 'none')}, the parameters hold "
        f"{found.get(name, 'none')}"
      )


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
  """Returns a tree's arrays by name, as they can be saved.

  Raises:
    ValueError: one is of a dtype that cannot be saved, or holds NaN or infinity.
  """
  arrays = {}
  for name, x in flat(tree):
    arrays[name] = x = np.array(x, np.asarray(x).dtype.newbyteorder("="), order="C")
    if x.dtype.name not in DTYPES:
      raise ValueError(f"parameter '{name}' is {x.dtype}; one of {', '.join(DTYPES)} can be saved")
    if x.dtype.name in ("bfloat16", "float16", "float32", "float64") and not np.isfinite(x).all():
      first = np.argwhere(~np.isfinite(x))[0].tolist()
      raise ValueError(f"parameter '{name}' holds NaN or infinity at index {first}")
  return arrays


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Returns the content of a file."""
  return safetensors.numpy.save(dict(arrays))


def from_bytes(data: bytes, where: Any) -> dict[str, np.ndarray]:
  """Returns the arrays of a file's content; ValueError, naming the file `where`, if it is none."""
  try:
    read = dict(safetensors.deserialize(data))
    views = {
      name: np.frombuffer(x["data"], _KINDS[x["dtype"]]).reshape(x["shape"])
      for name, x in read.items()
    }
  except (safetensors.SafetensorError, KeyError, ValueError) as error:
    raise ValueError(f"{where} cannot be read: {error}") from error
  return {name: views[name].copy() for name in sorted(views)}  # views are read-only


def sha256(data: bytes) -> str:
  """Returns hex digits by which a file is known."""
  return hashlib.sha256(data).hexdigest()
