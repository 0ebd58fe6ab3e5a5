"""robomimic's HDF5 files, one task each, alone or in a directory; observations keep their names.

`/data/demo_N` has actions (T, A), rewards, dones, states and obs/NAME; `/mask/train` and
`/mask/valid` name the demos of the splits train and val (https://robomimic.github.io, Dataset
Contents). An observation that is uint8 (T, H, W, 3) is a camera's, all others become float32. Of
several files only the observations that all of them have, and alike, are kept. `proprioception`
joins those that the environments of robosuite and RoboCasa call so, where they are there.
"""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from tensorflow_datasets import features as tfds_features

from oat_jax.data import sources
from oat_jax.data import write
from oat_jax.data.sources import _hdf5

_SPLITS = {"train": "train", "valid": "val"}  # of /mask -> of the dataset
# Parts of the proprioception and their sizes: RoboCasa's, whose robot has a base, or robosuite's.
_PROPRIOCEPTION = tuple(
  {f"robot0_{name}": size for name, size in parts.items()} | {"robot0_gripper_qpos": 2}
  for parts in (
    {"base_pos": 3, "base_quat": 4, "base_to_eef_pos": 3, "base_to_eef_quat": 4},
    {"eef_pos": 3, "eef_quat": 4},
  )
)

Shape = tuple[tuple[int, ...], bool]  # of one step's observation, and whether it is an image


class _File(NamedTuple):
  """What the episodes of a file share."""

  task: str
  width: int  # of actions
  observation: dict[str, Shape]
  splits: dict[str, list[str]]  # split -> demos
  apart: list[str]  # words about demos that are in none


def open_source(path: pathlib.Path, options: sources.Options) -> sources.Source:
  """Opens a file or all of a directory; see `sources`."""
  paths = sorted(path.rglob("*.hdf5")) if path.is_dir() else [path]
  if not paths:
    raise ValueError(f"{path}: the directory holds no *.hdf5")
  root = path if path.is_dir() else path.parent
  files: dict[str, _File] = {}
  broken = []
  for file_path in paths:
    name = file_path.relative_to(root).as_posix()
    try:
      files[name] = _look(file_path)
    except ValueError as error:
      if not path.is_dir():
        raise
      broken.append(sources.Broken(name, str(error)))
  if not files:
    raise ValueError(broken[0].reason)
  widths = {name: file.width for name, file in files.items()}
  if len(set(widths.values())) > 1:
    raise ValueError(f"{path}: files disagree in the width of their actions: {widths}")
  known, *others = [file.observation for file in files.values()]
  kept = {k: v for k, v in known.items() if all(other.get(k) == v for other in others)}
  if not kept:
    raise ValueError(f"{path}: there is no observation that all files have: {', '.join(files)}")
  alike = lambda parts: all(kept.get(name) == ((size,), False) for name, size in parts.items())
  parts = next(filter(alike, _PROPRIOCEPTION), {})
  lost = sorted({name for file in files.values() for name in file.observation} - set(kept))

  def read(key: sources.Key) -> dict[str, Any]:
    with _hdf5.open_file(root / key.file) as file:
      demo = _hdf5.group(file, key.episode)
      first = sorted(files[key.file].observation)
      more = sorted(set(_hdf5.names(demo, "obs")) - set(first))
      if more:
        raise ValueError(
          f"'obs' has {', '.join(more)} besides {', '.join(first)} of the first demo"
        )
      observation = {
        name: (_hdf5.read if image else _hdf5.read_float)(demo, f"obs/{name}")
        for name, (_, image) in kept.items()
      }
      if parts:
        observation["proprioception"] = np.concatenate([observation[name] for name in parts], 1)
      reward_T, success = _hdf5.read_rewards(demo)
      return sources.episode(
        observation,
        _hdf5.read_float(demo, "actions"),
        language=options.language,
        reward_T=reward_T,
        success=success,
        metadata={
          "file": key.file,
          "episode": key.episode,
          "task": files[key.file].task,
          "success": success,
        },
      )

  tasks = ", ".join(dict.fromkeys(file.task for file in files.values() if file.task))
  return sources.Source(
    name=path.stem,
    description=f"Demonstrations of {tasks or 'a task'}, converted from robomimic's {path.name}.",
    features=_features(
      kept | ({"proprioception": ((sum(parts.values()),), False)} if parts else {}),
      widths.popitem()[1],
      options.image_format or "jpeg",
    ),
    keys=[
      sources.Key(split, name, demo)
      for split in _SPLITS.values()
      for name, file in files.items()
      for demo in file.splits[split]
    ],
    read=read,
    broken=tuple(broken),
    left_out=(
      "states (the simulator's) and next_obs",
      *(f"obs/{name}, which not all files have alike" for name in lost),
      *(words for file in files.values() for words in file.apart),
    ),
  )


def _look(path: pathlib.Path) -> _File:
  with _hdf5.open_file(path) as file:
    demos = _hdf5.demos(file)
    width, observation = _facts(path, file, demos)
    return _File(_env_name(path, file), width, observation, *_splits(path, file, demos))


def _facts(path: pathlib.Path, file: Any, demos: list[str]) -> tuple[int, dict[str, Shape]]:
  """Takes them from the first demo that has actions and observations."""
  first = None
  for name in demos:
    try:
      demo = _hdf5.group(file, name)
      width = _width(demo)
      observation = {
        key: _shape(*_hdf5.facts(demo, f"obs/{key}")) for key in _hdf5.names(demo, "obs")
      }
      if observation:
        return width, observation
      raise ValueError(
        "'obs' is empty; extract observations with robomimic's dataset_states_to_obs"
      )
    except ValueError as error:
      first = first or ValueError(f"{path}, {name}: {error}")
  raise first or ValueError(f"{path}: no demos")


def _features(observation: dict[str, Shape], width: int, image_format: str) -> Any:
  features = {}
  for name, (shape, image) in observation.items():
    if image:
      features[name] = tfds_features.Image(shape=shape, encoding_format=image_format)
    else:
      features[name] = tfds_features.Tensor(shape=shape or (1,), dtype=np.float32)
  metadata = {**sources.ORIGIN, "task": tfds_features.Text(), "success": np.bool_}
  return write.rlds_features(features, width, metadata)


def _width(demo: Any) -> int:
  shape, _ = _hdf5.facts(demo, "actions")
  if len(shape) != 2 or not shape[1]:
    raise ValueError(f"'actions' has shape {list(shape)}; it must be (steps, dims)")
  return shape[1]


def _shape(shape: tuple[int, ...], dtype: np.dtype) -> Shape:
  return shape[1:], dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3


def _env_name(path: pathlib.Path, file: Any) -> str:
  try:
    return str(json.loads(file["data"].attrs.get("env_args", "{}")).get("env_name", ""))
  except (ValueError, AttributeError) as error:
    raise ValueError(f"{path}: attribute env_args of /data is not a JSON object") from error


def _splits(
  path: pathlib.Path, file: Any, demos: list[str]
) -> tuple[dict[str, list[str]], list[str]]:
  """Returns split -> demos, and words about demos that are in none."""
  masks = file.get("mask", {})
  named = {
    split: {name.decode() for name in masks[mask][()]} if mask in masks else set()
    for mask, split in _SPLITS.items()
  }
  if not any(named.values()):
    return {"train": demos, "val": []}, []
  both, unknown = named["train"] & named["val"], (named["train"] | named["val"]) - set(demos)
  if both or unknown:
    wrong = f"{min(both)} is in both" if both else f"{min(unknown)} is not in /data"
    raise ValueError(f"{path}: /mask/train and /mask/valid must divide the demos: {wrong}")
  apart = [demo for demo in demos if demo not in named["train"] | named["val"]]
  words = [f"{demo}, which is neither in /mask/train nor in /mask/valid" for demo in apart]
  return {split: [d for d in demos if d in names] for split, names in named.items()}, words
