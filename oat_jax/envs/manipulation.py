"""What the simulators built on robosuite 1.5 share: stepping, snapshots, cameras.

Source: github.com/ARISE-Initiative/robosuite. Nothing of it is imported here: the rooms `libero`
and `robocasa` make its environments, and this one drives them.
"""

# mujoco's names are compiled, so pyright does not see them.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterator
import contextlib
import copy
import logging
import os
from typing import Any

import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import rendering
from oat_jax.envs import task_env

# What the simulators write in the model: where fixtures stand at a reset, flames and water later.
_MODEL = (
  *("body_pos", "body_quat", "geom_rgba", "site_rgba", "site_size"),
  *("geom_contype", "geom_conaffinity"),
)


class ManipulationEnv(task_env.TaskEnv):
  """One task of a robosuite simulator; `env_lib.Env` has the contract.

  Subclasses say how an episode begins, what the robot knows of itself, and which objects of the
  simulator remember something between steps. There is no scripted expert, so `state` is the same as
  `proprioception`. Observations are of the moment after a step.
  """

  mirrored = False  # images are stored left side right

  def __init__(
    self,
    suite: env_lib.Suite,
    task: str,
    inner: Any,
    cameras: tuple[str, ...],
    image_size: int,
  ):
    """Takes a robosuite environment without cameras of its own that never says it is done."""
    self._inner = inner
    eyes = rendering.Cameras(
      suite,
      task,
      self._camera_names(),
      cameras,
      image_size,
      hidden_groups=(0,),  # shapes to collide with, not to be seen
    )
    super().__init__(suite, task, eyes)

  def expert(self) -> None:
    return None

  def _start(self, seed: int) -> None:
    """Brings the simulator to the first observation of episode `seed`."""
    raise NotImplementedError

  def _proprioception(self, sensed: dict[str, Any]) -> np.ndarray:
    """Returns (P,) of robosuite's observation."""
    raise NotImplementedError

  def _remembering(self) -> Iterator[tuple[str, Any]]:
    """Yields (name, object) of what remembers something between steps: env, robot, controllers."""
    yield "env", self._inner
    for i, robot in enumerate(self._inner.robots):
      yield f"robot{i}", robot
      yield f"robot{i}.controller", robot.composite_controller
      for part, controller in robot.composite_controller.part_controllers.items():
        yield f"robot{i}.{part}", controller
      for arm, gripper in robot.gripper.items():
        yield f"robot{i}.gripper.{arm}", gripper

  def _camera_names(self) -> list[str]:
    return rendering.cameras_of(self._scene()[0])

  def _begin(self, seed: int) -> None:
    """Starts; the simulators draw from numpy's global generator, among others."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
      self._start(seed)
    finally:
      np.random.set_state(before)

  def _advance(self, action_A: np.ndarray) -> dict[str, Any]:
    self._inner.step(action_A)
    return {"success": self._inner._check_success()}

  def _see(self) -> tuple[np.ndarray, np.ndarray]:
    # Forced: robosuite's own sensors measure a moment before the end of a step.
    state_S = self._proprioception(self._inner._get_observations(force_update=True))
    return state_S, state_S

  def _scene(self) -> tuple[Any, Any]:
    return self._inner.sim.model._model, self._inner.sim.data._data

  def _remember(self) -> dict[str, Any]:
    model, _ = self._scene()
    objects = {
      name: copy.deepcopy({k: v for k, v in vars(held).items() if _is_plain(v)})
      for name, held in self._remembering()
    }
    return {"model": {name: getattr(model, name).copy() for name in _MODEL}, "objects": objects}

  def _recall(self, snapshot: task_env.Snapshot) -> None:
    model, _ = self._scene()
    for name, value in snapshot.memory["model"].items():
      getattr(model, name)[:] = value
    self._set_physics(snapshot.physics, forward=True)
    blind, self.blind = self.blind, False
    for name, held in self._remembering():
      vars(held).update(copy.deepcopy(snapshot.memory["objects"][name]))
    self.blind = blind

  def _look_away(self, value: bool) -> None:
    if value:
      self._inner._check_success = lambda: False
    else:
      vars(self._inner).pop("_check_success", None)

  def _turned(self, image: np.ndarray, camera: str) -> np.ndarray:
    del camera
    return image[:, ::-1] if self.mirrored else image


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """For what robosuite does with advice about itself; it also sets MUJOCO_GL when imported."""
  before = os.environ.get("MUJOCO_GL")
  disabled = logging.root.manager.disable
  logging.disable(logging.WARNING)
  try:
    yield
  finally:
    logging.disable(disabled)
    os.environ.pop("MUJOCO_GL", None)
    if before is not None:
      os.environ["MUJOCO_GL"] = before


def _is_plain(value: Any) -> bool:
  """Whether a value is data of its own: neither an object nor a window into MuJoCo's memory."""
  if isinstance(value, np.ndarray):
    base = value
    while isinstance(base.base, np.ndarray):
      base = base.base
    return base.base is None and value.dtype != object
  if isinstance(value, (list, tuple, set)):
    return all(map(_is_plain, value))
  if isinstance(value, dict):
    return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
  if type(value).__module__ == "robosuite.utils.buffers":
    return True
  return value is None or isinstance(value, (bool, int, float, str, np.generic))
