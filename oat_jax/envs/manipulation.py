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
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import rendering

_PHYSICS = (
  mujoco.mjtState.mjSTATE_INTEGRATION
)  # all that mj_step reads, the solver's warm start included
# What the simulators write in the model: where fixtures stand at a reset, flames and water later.
_MODEL = (
  *("body_pos", "body_quat", "geom_rgba", "site_rgba", "site_size"),
  *("geom_contype", "geom_conaffinity"),
)


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
    self._cameras = rendering.Cameras(
      suite,
      task,
      self._camera_names(),
      cameras,
      image_size,
      hidden_groups=(0,),  # shapes to collide with, not to be seen
    )
    self.renders = True
    self._blind = False
    box, free = gymnasium.spaces.Box, np.inf
    self.action_space = box(-1, 1, (suite.action_dim,), np.float32)
    self.observation_space = gymnasium.spaces.Dict(
      {
        "state": box(-free, free, (suite.state_dim,), np.float32),
        "proprioception": box(-free, free, (suite.proprioception_dim,), np.float32),
        **self._cameras.space,
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
    return rendering.cameras_of(self._model_and_data()[0])

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
    self._cameras.close()

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
    for camera in self._cameras.names if images else ():
      image = self._cameras.render(*self._model_and_data(), camera)
      image = np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image
      observation[f"image_{camera}"] = image
    return observation


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
