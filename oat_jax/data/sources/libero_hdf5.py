"""LIBERO's HDF5 files: a task each (`*_demo.hdf5`), in a directory or alone.

The result has the names of the published RLDS versions: observation/{image, wrist_image, state,
joint_state}, where state is the end effector's position (3) and orientation (3, axis-angle) and the
two fingers of the gripper. LIBERO stores its images upside down: as in those versions, they are
rotated by 180 degrees, so images of its simulator must be rotated, too, before a policy trained on
them sees them.
"""

import json
import pathlib
import re
from typing import Any

import numpy as np
from tensorflow_datasets import features as tfds_features

from oat_jax.data import sources
from oat_jax.data import write
from oat_jax.data.sources import _hdf5

_ACTION_DIM = 7
_CAMERAS = {"image": "agentview_rgb", "wrist_image": "eye_in_hand_rgb"}
_STATE = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
_JOINTS = {"joint_states": 7}


def open_source(path: pathlib.Path, options: sources.Options) -> sources.Source:
  """Opens a file or all of a directory, which must be of one image size; see `sources`."""
  files = sorted(path.rglob("*.hdf5")) if path.is_dir() else [path]
  if not files:
    raise ValueError(f"{path}: the directory holds no *.hdf5")
  root = path if path.is_dir() else path.parent
  keys, broken, features = [], [], None
  languages: dict[str, str] = {}
  first: ValueError | None = None
  for file_path in files:
    name = file_path.relative_to(root).as_posix()
    try:
      with _hdf5.open_file(file_path) as file:
        demos = _hdf5.demos(file)
        languages[name] = options.language or _language(file_path, file)
        for demo in demos if features is None else ():
          try:
            features = _features(_hdf5.group(file, demo), options.image_format or "jpeg")
            break
          except ValueError as error:
            first = first or ValueError(f"{file_path}, {demo}: {error}")
        keys += [sources.Key("train", name, demo) for demo in demos]
    except ValueError as error:
      broken.append(sources.Broken(name, str(error)))
  if features is None:
    raise first or ValueError(broken[0].reason)

  def read(key: sources.Key) -> dict[str, Any]:
    with _hdf5.open_file(root / key.file) as file:
      demo = _hdf5.group(file, key.episode)
      observation = {
        name: _image(_hdf5.read(demo, f"obs/{camera}"), camera)[:, ::-1, ::-1]
        for name, camera in _CAMERAS.items()
      }
      observation["state"] = _join(demo, _STATE)
      observation["joint_state"] = _join(demo, _JOINTS)
      reward_T, success = _hdf5.read_rewards(demo)
      return sources.episode(
        observation,
        _hdf5.read_float(demo, "actions"),
        language=languages[key.file],
        reward_T=reward_T,
        success=success,
        metadata={"file": key.file, "episode": key.episode, "success": success},
      )

  return sources.Source(
    name=path.stem.removesuffix("_demo"),
    description=f"LIBERO demonstrations of {len(languages)} tasks, images upright.",
    features=features,
    keys=keys,
    read=read,
    broken=tuple(broken),
    left_out=("states (the simulator's) and robot_states",),
  )


def _features(demo: Any, image_format: str) -> Any:
  observation: dict[str, Any] = {}
  for name, camera in _CAMERAS.items():
    shape, _ = _hdf5.facts(demo, f"obs/{camera}")
    observation[name] = tfds_features.Image(shape=shape[1:], encoding_format=image_format)
  for name, parts in (("state", _STATE), ("joint_state", _JOINTS)):
    shape = (sum(parts.values()),)
    observation[name] = tfds_features.Tensor(shape=shape, dtype=np.float32)
  return write.rlds_features(observation, _ACTION_DIM, {**sources.ORIGIN, "success": np.bool_})


def _image(images: np.ndarray, camera: str) -> np.ndarray:
  if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
    raise ValueError(
      f"'obs/{camera}' is {images.dtype}{list(images.shape)}; it must be uint8 (steps, H, W, 3)"
    )
  return images


def _join(demo: Any, parts: dict[str, int]) -> np.ndarray:
  """Returns float32 (T, sum of the sizes)."""
  arrays = {name: _hdf5.read_float(demo, f"obs/{name}") for name in parts}
  for name, values in arrays.items():
    if values.ndim != 2 or values.shape[1] != parts[name]:
      raise ValueError(
        f"'obs/{name}' has shape {list(values.shape)}; it must be (steps, {parts[name]})"
      )
  lengths = {name: len(values) for name, values in arrays.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f"parts of 'obs' disagree in their number of steps: {lengths}")
  return np.concatenate(list(arrays.values()), axis=1)


def _language(path: pathlib.Path, file: Any) -> str:
  """Returns the file's own instruction; where it has none, its name without scene and "_demo"."""
  text: Any = ""
  if "problem_info" in file["data"].attrs:
    try:
      text = json.loads(file["data"].attrs["problem_info"]).get("language_instruction", "")
    except (ValueError, AttributeError) as error:
      raise ValueError(f"{path}: attribute problem_info of /data is not a JSON object") from error
  text = "".join(text).strip().strip('"')  # a list of letters in some versions
  if not text:
    name = re.sub(r"^[A-Z_]+_SCENE\d+_", "", path.stem).removesuffix("_demo")
    text = name.replace("_", " ")
  return text
