"""What robomimic's and LIBERO's HDF5 files share: `/data/demo_N`, each with actions and obs."""

import pathlib
from typing import Any

import numpy as np

from oat_jax.data import sources

try:
  import h5py
except ImportError as error:
  raise sources.missing("h5py") from error


def open_file(path: pathlib.Path) -> Any:
  """Opens a file, as a context manager; ValueError where it is none, truncated or has no demos."""
  try:
    file = h5py.File(path, "r")
  except OSError as error:
    raise ValueError(f"{path}: not an HDF5 file, or truncated ({error}); fetch it again") from error
  if not isinstance(file.get("data"), h5py.Group):
    found = ", ".join(list(file)[:8])
    file.close()
    raise ValueError(f"{path}: there is no group /data; found are: {found or 'no groups'}")
  return file


def demos(file: Any) -> list[str]:
  """Returns the names of the demos, by number; ValueError if there are none."""
  try:
    names = [name for name in file["data"] if name.startswith("demo")]
  except (OSError, RuntimeError) as error:
    raise ValueError(f"{file.filename}: /data cannot be read ({error}); fetch it again") from error
  if not names:
    raise ValueError(f"{file.filename}: /data holds no demo_0, demo_1, ...")
  return sorted(names, key=sources.natural)


def group(file: Any, demo: str) -> Any:
  """Returns the group of a demo."""
  return _get(file["data"], demo, h5py.Group)


def names(demo: Any, below: str) -> list[str]:
  """Returns the sorted names of the datasets of a subgroup."""
  return sorted(_get(demo, below, h5py.Group))


def facts(demo: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
  """Returns shape and dtype of a dataset without reading it."""
  dataset = _get(demo, name, h5py.Dataset)
  return dataset.shape, dataset.dtype


def read(demo: Any, name: str) -> np.ndarray:
  """Reads a dataset; ValueError if it is missing or corrupt."""
  dataset = _get(demo, name, h5py.Dataset)
  try:
    return dataset[()]
  except OSError as error:
    raise ValueError(f"'{name}' cannot be read ({error}); fetch the file again") from error


def read_float(demo: Any, name: str) -> np.ndarray:
  """Reads a dataset of numbers as float32, one row a step at least."""
  values = read(demo, name)
  if values.dtype.kind not in "fiub":
    raise ValueError(f"'{name}' is of dtype {values.dtype}; it must hold numbers")
  values = values.astype(np.float32)
  return values[:, None] if values.ndim == 1 else values


def read_rewards(demo: Any) -> tuple[np.ndarray | None, bool]:
  """Returns the rewards, None where there are none, and whether the demo succeeded.

  It did if a reward is positive or, without rewards, if a step is done.
  """
  if "rewards" in demo:
    reward_T = read(demo, "rewards").astype(np.float32).reshape(-1)
    return reward_T, bool((reward_T > 0).any())
  return None, "dones" in demo and bool(read(demo, "dones").any())


def _get(parent: Any, name: str, kind: Any) -> Any:
  try:
    found = parent.get(name)
  except (OSError, RuntimeError, KeyError) as error:
    raise ValueError(f"'{name}' cannot be read ({error}); fetch the file again") from error
  if not isinstance(found, kind):
    word = "dataset" if kind is h5py.Dataset else "group"
    there = ", ".join(sorted(parent)) or "nothing"
    raise ValueError(f"there is no {word} '{name}'; found are: {there}")
  return found
