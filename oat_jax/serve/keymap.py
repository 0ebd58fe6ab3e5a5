"""What a robot's or simulator's observations are called, in a small file: names there -> ours.

  {
    "state": ["observation/joint_position", "observation/gripper_position"],
    "images": {"wrist": "observation/wrist_image_left"},
    "task": "prompt",
    "tasks": {"box-close": "Grasp the cover and close the box with it"},
    "channels_first": false,
    "float_images": false
  }

`state` is joined in this order; `images` has our name of each camera first, or "*" for all others,
whose name then stands for the "*" of theirs; a name with slashes that is not there as it stands is
looked for part by part in nested maps. `task` is where the task is said, `tasks` how, where that is
not our name of it. With `float_images`, images of floats in 0..1 are taken too.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from oat_jax import batch as batch_lib

FOLDER = pathlib.Path(__file__).parent / "keymaps"


class Keymap(NamedTuple):
  """Names of the other side; see the file's docstring."""

  state: tuple[str, ...] = ("state",)
  images: Mapping[str, str] = {}
  task: str = "task"
  tasks: Mapping[str, str] = {}
  channels_first: bool = False
  float_images: bool = False


def ready() -> list[str]:
  """Returns the names of the keymaps that come with this package."""
  return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str, spec: batch_lib.BatchSpec) -> Keymap:
  """Returns a keymap by the name of a ready one or the path of a file; "" is our own names.

  Raises:
    ValueError: the file is none, or has no name for a camera of the policy.
    FileNotFoundError: there is no such file.
  """
  own = Keymap(images={camera: f"image_{camera}" for camera, _, _ in spec.cameras})
  if not name:
    return own
  path = FOLDER / f"{name}.json" if name in ready() else pathlib.Path(name)
  if not path.is_file():
    raise FileNotFoundError(f"there is no keymap '{name}'; ready ones are {', '.join(ready())}")
  try:
    content = json.loads(path.read_text())
    fixed = {"state": tuple(content["state"])}
    fixed |= {name: dict(content.get(name, {})) for name in ("images", "tasks")}
    made = Keymap(**(content | fixed))
  except (ValueError, KeyError, TypeError) as error:
    fields = ", ".join(Keymap._fields)
    raise ValueError(f"{path} is no keymap of {fields}: {type(error).__name__}: {error}") from error
  images = dict(made.images)
  pattern = images.pop("*", None)
  if pattern is not None:
    if not isinstance(pattern, str) or pattern.count("*") != 1:
      raise ValueError(f"{path} calls all cameras {pattern!r}; a name with one '*' is needed")
    named = {camera: pattern.replace("*", camera) for camera, _, _ in spec.cameras}
    made = made._replace(images=named | images)
  unnamed = [camera for camera, _, _ in spec.cameras if camera not in made.images]
  if unnamed:
    raise ValueError(
      f"{path} has no name for the policy's camera '{unnamed[0]}'; it names "
      f"{', '.join(made.images) or 'none'}: copy the file, and write the policy's names first"
    )
  return made


def translate(
  request: Mapping[str, Any], keymap: Keymap, spec: batch_lib.BatchSpec
) -> dict[str, Any]:
  """Returns the observation, as `observing.batch` takes it, of a request; the rest is left out.

  Raises:
    ValueError: something is missing, or is none that can be joined or scaled.
  """
  parts = [np.asarray(_find(request, name)) for name in keymap.state]
  for name, part in zip(keymap.state, parts):
    if part.dtype.kind not in "buif":
      raise ValueError(f"'{name}' is of dtype {part.dtype}; numbers are needed")
  if len({part.shape[:-1] if part.ndim else None for part in parts} - {None}) > 1:
    shapes = {name: list(part.shape) for name, part in zip(keymap.state, parts)}
    raise ValueError(f"the parts of the state have shapes {shapes}, which cannot be joined")
  deepest = max(part.ndim for part in parts)
  joined = [part.reshape((1,) * (max(deepest, 1) - part.ndim) + part.shape) for part in parts]
  observation = {"state": np.concatenate(joined, -1)}
  for camera, _, _ in spec.cameras:
    name = keymap.images[camera]
    frame = np.asarray(_find(request, name))
    if keymap.channels_first:
      if frame.ndim < 3:
        raise ValueError(
          f"'{name}' has shape {list(frame.shape)}; channels, height, width are needed"
        )
      frame = np.moveaxis(frame, -3, -1)
    if keymap.float_images and frame.dtype.kind == "f":
      if not ((frame >= 0) & (frame <= 1)).all():
        raise ValueError(f"'{name}' is {frame.dtype}, but not all of it is in 0..1")
      frame = np.rint(255 * frame).astype(np.uint8)
    observation[f"image_{camera}"] = frame
  if spec.num_tasks > 1:
    observation["task"] = _task(_find(request, keymap.task), keymap, spec)
  for name in ("language", "observation_mask", "dataset"):
    if name in request:
      observation[name] = request[name]
  return observation


def _task(given: Any, keymap: Keymap, spec: batch_lib.BatchSpec) -> Any:
  """Returns our name of a task; what is no name of theirs is left as it is."""
  if not isinstance(given, str):
    return given
  meant = [name for name, theirs in keymap.tasks.items() if theirs == given]
  known = [name for name in meant if name in spec.task_names]
  if len(known) > 1:
    raise ValueError(
      f"'{keymap.task}' is {given!r}, which the policy's tasks {' and '.join(known)} are both "
      "called there: they cannot be told apart"
    )
  return known[0] if known else given


def _find(request: Mapping[str, Any], name: str) -> Any:
  if name in request:
    return request[name]
  at: Any = request
  for part in name.split("/"):
    if not isinstance(at, Mapping) or part not in at:
      raise ValueError(f"the request has no '{name}'; it holds {sorted(map(str, request))}")
    at = at[part]
  return at
