"""What a batch is, said once: the names, shapes, dtypes and ranges that every room agrees on.

A batch is a nested dict, numpy on the host and jax arrays inside a step. Axis letters: B batch, T
observation steps, C chunk steps, A action dims, S state dims, N tokens, E language dims.

  observation
    image_<camera>    uint8   (B, T, height, width, 3)  RGB; for every camera of the spec
    state             float32 (B, T, S)  dataset units, oldest step first
    task              int32   (B,)       index of the task's name in `BatchSpec.task_names`
    language          float32 (B, E)     an embedding of the instruction; where a batch lacks it,
                                         it is the task's own, which the policy's parameters hold
  observation_mask    bool    (B, T)     false where the episode had not begun yet
  actions             float32 (B, C, A)  dataset units; the newest observation's action first
  action_mask         bool    (B, C)     false on padding behind the episode's end
  action_dim_mask     bool    (B, A)     false on dimensions that the row's dataset does not have
  dataset             int32   (B,)       whose statistics hold
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

Batch = Mapping[str, Any]

# What the numbers of actions and states mean where the dataset was brought to no other standard.
OWN_UNITS = "of the dataset"

# The parts of a batch that a policy acts on.
ACTING = ("observation", "observation_mask", "dataset")


@dataclasses.dataclass(frozen=True)
class BatchSpec:
  """The sizes that fix a batch's shapes, but for the batch axis itself."""

  observation_steps: int  # T
  action_horizon: int  # C
  action_dim: int  # A
  state_dim: int  # S
  task_names: tuple[str, ...] = ("",)
  num_datasets: int = 1
  cameras: tuple[tuple[str, int, int], ...] = ()  # name, height, width
  language_dim: int = 0  # E; 0 where policies are told the task, but no instruction
  # What columns of the actions and numbers of datasets mean; () where nobody says.
  action_names: tuple[str, ...] = ()
  dataset_names: tuple[str, ...] = ()

  @property
  def num_tasks(self) -> int:
    return len(self.task_names)

  def __post_init__(self):
    for name in (
      "observation_steps",
      "action_horizon",
      "action_dim",
      "state_dim",
      "num_datasets",
      "num_tasks",
    ):
      if getattr(self, name) < 1:
        raise ValueError(f"BatchSpec.{name} is {getattr(self, name)}; it must be at least 1")
    if self.language_dim < 0:
      raise ValueError(f"BatchSpec.language_dim is {self.language_dim}; it must be at least 0")
    # Read back from JSON they are lists.
    for name in ("task_names", "action_names", "dataset_names"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    object.__setattr__(self, "cameras", tuple(tuple(camera) for camera in self.cameras))


def shapes(spec: BatchSpec, batch_size: int) -> dict[str, Any]:
  """Returns the batch's structure with a `(shape, dtype)` pair at every leaf."""
  B, T, C = batch_size, spec.observation_steps, spec.action_horizon
  language = {"language": ((B, spec.language_dim), np.dtype(np.float32))}
  return {
    "observation": {
      **{f"image_{name}": ((B, T, h, w, 3), np.dtype(np.uint8)) for name, h, w in spec.cameras},
      "state": ((B, T, spec.state_dim), np.dtype(np.float32)),
      "task": ((B,), np.dtype(np.int32)),
      **(language if spec.language_dim else {}),
    },
    "observation_mask": ((B, T), np.dtype(bool)),
    "actions": ((B, C, spec.action_dim), np.dtype(np.float32)),
    "action_mask": ((B, C), np.dtype(bool)),
    "action_dim_mask": ((B, spec.action_dim), np.dtype(bool)),
    "dataset": ((B,), np.dtype(np.int32)),
  }


def fake(spec: BatchSpec, batch_size: int, seed: int = 0) -> dict[str, Any]:
  """Returns a random numpy batch of the right shapes and ranges, with padding at both ends."""
  rng = np.random.default_rng(seed)
  like = shapes(spec, batch_size)

  def floats(leaf):
    return rng.uniform(-1, 1, leaf[0]).astype(np.float32)

  def prefix_mask(rows_shape):
    kept = rng.integers(1, rows_shape[1] + 1, (rows_shape[0], 1))
    return np.arange(rows_shape[1]) < kept

  images = {
    name: rng.integers(0, 256, leaf[0], np.uint8)
    for name, leaf in like["observation"].items()
    if name.startswith("image_")
  }
  language = {"language": floats(like["observation"]["language"])} if spec.language_dim else {}
  return {
    "observation": {
      **images,
      "state": floats(like["observation"]["state"]),
      "task": rng.integers(0, spec.num_tasks, batch_size, np.int32),
      **language,
    },
    "observation_mask": prefix_mask(like["observation_mask"][0])[:, ::-1],
    "actions": floats(like["actions"]),
    "action_mask": prefix_mask(like["action_mask"][0]),
    "action_dim_mask": np.ones(like["action_dim_mask"][0], bool),
    "dataset": rng.integers(0, spec.num_datasets, batch_size, np.int32),
  }


def check(batch: Batch, spec: BatchSpec, names: tuple[str, ...] | None = None) -> None:
  """Raises ValueError, naming the leaf, where a batch departs from the spec or is not finite.

  Args:
    batch: numpy arrays, or concrete jax arrays.
    spec: what it should be.
    names: of the parts to look at, e.g. `ACTING`; all if None.
  """
  if "dataset" not in batch:
    raise ValueError(f"batch has no 'dataset'; it holds {sorted(batch)}")
  if np.ndim(batch["dataset"]) != 1 or not len(batch["dataset"]):
    raise ValueError("batch 'dataset' must be int32 of shape (B,), with at least one row")
  batch_size = len(batch["dataset"])
  counts = {"observation/task": spec.num_tasks, "dataset": spec.num_datasets}

  def visit(like, got, path):
    if not isinstance(got, Mapping):
      raise ValueError(f"batch '{path.rstrip('/')}' is {type(got).__name__}; it must be a mapping")
    extra = sorted(set(got) - set(like)) if path else []
    if extra:
      raise ValueError(f"batch has '{path}{extra[0]}', which is not known; it takes {sorted(like)}")
    for name, leaf in like.items():
      where = f"{path}{name}"
      if name not in got:
        if where == "observation/language":  # policies hold their tasks'
          continue
        raise ValueError(f"batch has no '{where}'; it holds {sorted(got)}")
      value = got[name]
      if isinstance(leaf, dict):
        visit(leaf, value, f"{where}/")
        continue
      shape, dtype = leaf
      if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise ValueError(f"batch '{where}' is {type(value).__name__}; it must be an array")
      if tuple(value.shape) != shape or value.dtype != dtype:
        raise ValueError(
          f"batch '{where}' is {value.dtype}{list(value.shape)}; expected {dtype}{list(shape)}"
        )
      if dtype.kind == "f" and not np.isfinite(value).all():
        first = np.argwhere(~np.isfinite(value))[0].tolist()
        raise ValueError(f"batch '{where}' holds NaN or infinity at index {first}")
      if where in counts:
        outside = np.flatnonzero((value < 0) | (value >= counts[where]))
        if len(outside):
          row = outside[0]
          raise ValueError(
            f"batch '{where}' is {value[row]} in row {row}; it must be in 0..{counts[where] - 1}"
          )

  like = shapes(spec, batch_size)
  visit({name: like[name] for name in names or like}, batch, "")
