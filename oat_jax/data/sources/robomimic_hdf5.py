"""robomimic's HDF5 files: one task a file, its observations under their own names.

`/data/demo_N` has actions (T, A), rewards, dones, states and obs/NAME; `/mask/train` and
`/mask/valid` name the demos of the splits train and val (https://robomimic.github.io, Dataset
Contents). An observation that is uint8 (T, H, W, 3) is a camera's, all others become float32.
"""

import json
import pathlib
from typing import Any

import numpy as np
from tensorflow_datasets import features as tfds_features

from oat_jax.data import sources
from oat_jax.data import write
from oat_jax.data.sources import _hdf5

_SPLITS = {"train": "train", "valid": "val"}  # of /mask -> of the dataset


def open_source(path: pathlib.Path, options: sources.Options) -> sources.Source:
  """Opens a file; see `sources`."""
  if path.is_dir():
    found = ", ".join(sorted(p.name for p in path.glob("*.hdf5"))[:8])
    raise ValueError(f"{path} is a directory; give one of its files: {found or 'it has none'}")
  with _hdf5.open_file(path) as file:
    demos = _hdf5.demos(file)
    features = _features(path, file, demos, options.image_format or "jpeg")
    task = _env_name(path, file)
    splits, apart = _splits(path, file, demos)
  cameras = {k for k, v in features["steps"]["observation"].items() if len(v.shape) == 3}
  names = sorted(features["steps"]["observation"])

  def read(key: sources.Key) -> dict[str, Any]:
    with _hdf5.open_file(path) as file:
      demo = _hdf5.group(file, key.episode)
      more = sorted(set(_hdf5.names(demo, "obs")) - set(names))
      if more:
        raise ValueError(
          f"'obs' has {', '.join(more)} besides {', '.join(names)} of the first demo"
        )
      observation = {
        name: (_hdf5.read if name in cameras else _hdf5.read_float)(demo, f"obs/{name}")
        for name in names
      }
      reward_T, success = _hdf5.read_rewards(demo)
      return sources.episode(
        observation,
        _hdf5.read_float(demo, "actions"),
        language=options.language,
        reward_T=reward_T,
        success=success,
        metadata={"file": key.file, "episode": key.episode, "task": task, "success": success},
      )

  return sources.Source(
    name=path.stem,
    description=f"Demonstrations of {task or 'a task'}, converted from robomimic's {path.name}.",
    features=features,
    keys=[
      sources.Key(split, path.name, demo) for split in _SPLITS.values() for demo in splits[split]
    ],
    read=read,
    left_out=("states (the simulator's) and next_obs", *apart),
  )


def _features(path: pathlib.Path, file: Any, demos: list[str], image_format: str) -> Any:
  """Takes the features from the first demo that has actions and observations."""
  first = None
  for name in demos:
    try:
      demo = _hdf5.group(file, name)
      width = _width(demo)
      observation = {
        key: _feature(*_hdf5.facts(demo, f"obs/{key}"), image_format)
        for key in _hdf5.names(demo, "obs")
      }
      if observation:
        metadata = {**sources.ORIGIN, "task": tfds_features.Text(), "success": np.bool_}
        return write.rlds_features(observation, width, metadata)
      raise ValueError(
        "'obs' is empty; extract observations with robomimic's dataset_states_to_obs"
      )
    except ValueError as error:
      first = first or ValueError(f"{path}, {name}: {error}")
  raise first or ValueError(f"{path}: no demos")


def _width(demo: Any) -> int:
  shape, _ = _hdf5.facts(demo, "actions")
  if len(shape) != 2 or not shape[1]:
    raise ValueError(f"'actions' has shape {list(shape)}; it must be (steps, dims)")
  return shape[1]


def _feature(shape: tuple[int, ...], dtype: np.dtype, image_format: str) -> Any:
  if dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3:
    return tfds_features.Image(shape=shape[1:], encoding_format=image_format)
  return tfds_features.Tensor(shape=shape[1:] or (1,), dtype=np.float32)


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
