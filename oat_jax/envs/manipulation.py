"""What the simulators built on robosuite 1.5 share: stepping, snapshots, cameras.

Source: github.com/ARISE-Initiative/robosuite. Nothing of it is imported here: the rooms `libero`
and `robocasa` make its environments, and this one drives them.
"""

# mujoco's names are compiled, so pyright does not see them.
# pyright: reportAttributeAccessIssue=false

import atexit
from collections.abc import Iterator
import contextlib
import copy
import functools
import logging
import os
from typing import Any, NamedTuple
import weakref

import gymnasium
import mujoco
import numpy as np

from oat_jax.envs import env as env_lib

_PHYSICS = (
  mujoco.mjtState.mjSTATE_INTEGRATION
)  # all that mj_step reads, the solver's warm start included
# What the simulators write in the model: where fixtures stand at a reset, flames and water later.
_MODEL = (
  *("body_pos", "body_quat", "geom_rgba", "site_rgba", "site_size"),
  *("geom_contype", "geom_conaffinity"),
)
_open: weakref.WeakSet[Any] = weakref.WeakSet()  # renderers


class Snapshot(NamedTuple):
  """The complete state of one episode."""

  task: str
  seed: int
  physics: np.ndarray
  model: dict[str, np.ndarray]
  memory: dict[str, dict[str, Any]]  # of the simulator's Python objects
  steps: int
  np_random: np.random.Generator | None


class ManipulationEnv(gymnasium.Env):
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
    self.suite = suite
    self.task = task
    self._inner = inner
    self._steps = 0
    self._seed: int | None = None
    if not 1 <= image_size <= 4096:
      raise ValueError(f"image_size is {image_size}; it must be between 1 and 4096 pixels")
    self._cameras = cameras
    self._image_size = image_size
    self._renderer: Any = None
    self.renders = True
    self._blind = False
    if cameras:
      env_lib.choose_renderer()
    for camera in cameras:
      if camera not in self._camera_names():
        raise ValueError(
          f"task '{task}' has no camera '{camera}'; its cameras are"
          f" {', '.join(self._camera_names())}"
        )
    box, free = gymnasium.spaces.Box, np.inf
    self.action_space = box(-1, 1, (suite.action_dim,), np.float32)
    self.observation_space = gymnasium.spaces.Dict(
      {
        "state": box(-free, free, (suite.state_dim,), np.float32),
        "proprioception": box(-free, free, (suite.proprioception_dim,), np.float32),
        **{f"image_{c}": box(0, 255, (image_size, image_size, 3), np.uint8) for c in cameras},
      }
    )

  def _begin(self, seed: int) -> None:
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
    model, _ = self._model_and_data()
    return [model.camera(i).name for i in range(model.ncam)]

  @property
  def blind(self) -> bool:
    return self._blind

  @blind.setter
  def blind(self, value: bool) -> None:
    self._blind = value
    if value:
      self._inner._check_success = lambda: False
    else:
      vars(self._inner).pop("_check_success", None)

  def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
    super().reset(seed=seed)
    if seed is None:
      seed = int(self.np_random.integers(2**31))
    self._begin_from(seed)
    return self._observation(images=True), {"success": False}

  def step(self, action: np.ndarray):
    if self._seed is None:
      raise RuntimeError(f"task '{self.task}': reset the environment before its first step")
    action_A = np.asarray(action, np.float32)
    if action_A.shape != self.action_space.shape:
      raise ValueError(
        f"task '{self.task}': action has shape {action_A.shape}; expected {self.action_space.shape}"
      )
    if not np.isfinite(action_A).all():
      raise ValueError(
        f"task '{self.task}', step {self._steps}: action {action_A.tolist()} is not finite"
      )
    self._inner.step(np.clip(action_A, -1, 1))
    self._steps += 1
    success = bool(self._inner._check_success())
    return (
      self._observation(images=self.renders and not self._blind),
      float(success),
      success,
      self._steps >= self.suite.max_steps,
      {"success": success},
    )

  def snapshot(self) -> Snapshot:
    if self._seed is None:
      raise RuntimeError(f"task '{self.task}': reset the environment before taking a snapshot")
    model, data = self._model_and_data()
    physics = np.empty(mujoco.mj_stateSize(model, _PHYSICS))
    mujoco.mj_getState(model, data, physics, _PHYSICS)
    return Snapshot(
      task=self.task,
      seed=self._seed,
      physics=physics,
      model={name: getattr(model, name).copy() for name in _MODEL},
      memory={
        name: copy.deepcopy({k: v for k, v in vars(held).items() if _is_plain(v)})
        for name, held in self._remembering()
      },
      steps=self._steps,
      np_random=copy.deepcopy(self._np_random),
    )

  def restore(self, snapshot: Snapshot) -> None:
    if snapshot.task != self.task:
      raise ValueError(
        f"the snapshot is of task '{snapshot.task}'; this environment has '{self.task}'"
      )
    if self._must_begin_again(snapshot):
      self._begin_from(snapshot.seed)
    model, data = self._model_and_data()
    for name, value in snapshot.model.items():
      getattr(model, name)[:] = value
    mujoco.mj_setState(model, data, snapshot.physics, _PHYSICS)
    # The forward pass brings positions for sensors and cameras, but it also moves the solver's warm
    # start: set that back.
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, snapshot.physics, _PHYSICS)
    for name, held in self._remembering():
      vars(held).update(copy.deepcopy(snapshot.memory[name]))
    self._seed, self._steps = snapshot.seed, snapshot.steps
    self._np_random = copy.deepcopy(snapshot.np_random)

  def expert(self) -> None:
    return None

  def close(self) -> None:
    if self._renderer is not None:
      self._renderer.close()
      self._renderer = None

  def _must_begin_again(self, snapshot: Snapshot) -> bool:
    """Whether the simulator has another scene than the snapshot's, or none yet."""
    return self._seed is None

  def _begin_from(self, seed: int) -> None:
    """Begins episode `seed`; the simulators draw from numpy's global generator, among others."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
      self._begin(seed)
    finally:
      np.random.set_state(before)
    self._seed, self._steps = seed, 0

  def _model_and_data(self) -> tuple[Any, Any]:
    return self._inner.sim.model._model, self._inner.sim.data._data

  def _observation(self, images: bool) -> env_lib.Observation:
    # Forced: robosuite's own sensors measure a moment before the end of a step.
    sensed = self._inner._get_observations(force_update=True)
    state_S = self._proprioception(sensed).astype(np.float32)
    observation = {"state": state_S, "proprioception": state_S.copy()}
    for camera in self._cameras if images else ():
      observation[f"image_{camera}"] = self._render(camera)
    return observation

  def _render(self, camera: str) -> np.ndarray:
    model, data = self._model_and_data()
    if self._renderer is None or self._rendered_model is not model:
      self.close()
      self._renderer, self._rendered_model = _make_renderer(model, self._image_size), model
    options = mujoco.MjvOption()
    options.geomgroup[0] = 0  # shapes to collide with, not to be seen
    self._renderer.update_scene(data, camera=camera, scene_option=options)
    image = self._renderer.render()
    return np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image.copy()


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
    if before is None:
      os.environ.pop("MUJOCO_GL", None)


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


def _make_renderer(model: Any, image_size: int) -> Any:
  """As the simulators render: with shadows, because what policies are trained on has them."""
  model.vis.global_.offwidth = max(model.vis.global_.offwidth, image_size)
  model.vis.global_.offheight = max(model.vis.global_.offheight, image_size)
  try:
    renderer = mujoco.Renderer(model, height=image_size, width=image_size)
  except Exception as error:  # whatever the OpenGL library at hand raises
    raise RuntimeError(
      f"MuJoCo found no working off-screen OpenGL ({error}); install libegl1 or libosmesa6"
      " and set MUJOCO_GL to egl or osmesa, or ask for no cameras"
    ) from error
  _open.add(renderer)
  _close_at_exit()
  return renderer


@functools.cache
def _close_at_exit() -> None:
  """Registered behind MuJoCo's own, to run before it, which takes the display from under them."""
  atexit.register(lambda: [renderer.close() for renderer in list(_open)])
