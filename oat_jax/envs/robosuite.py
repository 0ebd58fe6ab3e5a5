"""robosuite's Lift, Can and Square as RoboMimic has them: repeatable episodes, snapshots, experts.

Sources: github.com/ARISE-Initiative/robosuite, arXiv 2108.03298 (RoboMimic).

A Panda moves at 20 Hz by OSC_POSE, robosuite's own controller with its own settings. Observed are
RoboMimic's low-dimensional keys: `robot0_eef_pos` in metres, `robot0_eef_quat` (x, y, z, w) and
`robot0_gripper_qpos` in metres, the proprioception, and behind them robosuite's `object-state`. All
are of the moment; what robosuite's own `step` returns is a little older, its object in the
gripper's frame, in an episode's first steps, as old as a step.
"""

# mujoco's names are compiled and robosuite has no types, so pyright sees neither.
# pyright: reportAttributeAccessIssue=false

import logging
import os
from typing import Any, NamedTuple
from unittest import mock

import mujoco
import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import rendering
from oat_jax.envs import robosuite_experts
from oat_jax.envs import task_env

# Importing it logs what is not installed and asks for EGL, whether there is EGL or not.
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
with mock.patch.dict(os.environ):
  import robosuite
  from robosuite import controllers

_PROPRIOCEPTION = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
_CUBE = (0.020, 0.022)  # metres: half of an edge


class _Task(NamedTuple):
  name: str  # in robosuite
  object_state: tuple[str, ...]  # as robosuite orders it
  sensors: tuple[str, ...]  # of it, each behind those that it looks at


def _placed(name: str, thing: str) -> _Task:
  pos, quat = f"{thing}_pos", f"{thing}_quat"
  in_gripper = (f"{thing}_to_robot0_eef_pos", f"{thing}_to_robot0_eef_quat")
  return _Task(name, (*in_gripper, pos, quat), (pos, quat, "world_pose_in_gripper", *in_gripper))


_LIFT = ("cube_pos", "cube_quat", "gripper_to_cube_pos")
_TASKS = {
  "lift": _Task("Lift", _LIFT, _LIFT),
  "can": _placed("PickPlaceCan", "Can"),
  "square": _placed("NutAssemblySquare", "SquareNut"),
}


class RobosuiteEnv(task_env.TaskEnv):
  """One task; `env_lib.Env` has the contract.

  Actions (7,) move the gripper by up to 5 cm per axis and turn it by up to 0.5 rad about each, in
  the robot's frame, and open (below 0) or close (above 0) it.
  """

  def __init__(self, suite: env_lib.Suite, task: str, cameras: tuple[str, ...], image_size: int):
    self._task = _TASKS[task]
    self._inner = robosuite.make(
      self._task.name,
      robots="Panda",
      controller_configs=controllers.load_composite_controller_config(robot="Panda"),
      has_renderer=False,
      has_offscreen_renderer=False,  # the images are ours to render
      use_camera_obs=False,
      control_freq=20,
      ignore_done=True,
      hard_reset=False,  # a second, for the size of the cube alone
      seed=0,
    )
    self._model = self._inner.sim.model._model
    self._data = self._inner.sim.data._data
    self._substeps = round(self._inner.control_timestep / self._inner.model_timestep)
    robot = self._inner.robots[0]
    self._robot, self._gripper = robot, robot.gripper["right"]
    self._arm_motors = robot._ref_actuators_indexes_dict["right"]
    self._finger_motors = robot._ref_actuators_indexes_dict["right_gripper"]
    self._cube: Any = getattr(self._inner, "cube", None)
    if self._cube is not None:
      mass = self._model.body(self._cube.root_body).mass[0]
      self._density = mass / np.prod(self._cube.size)
    eyes = rendering.Cameras(
      suite,
      task,
      rendering.cameras_of(self._model),
      cameras,
      image_size,
      hidden_groups=(0,),  # what is there to collide with
    )
    super().__init__(suite, task, eyes)

  def expert(self) -> env_lib.Expert:
    return robosuite_experts.EXPERTS[self.task]()

  def _begin(self, seed: int) -> None:
    rng = self._inner.rng  # robot and placement hold the same one
    rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    if self._cube is not None:
      self._resize_cube(rng.uniform(*_CUBE, 3))
    self._inner.reset()
    self._forget()

  def _advance(self, action_A: np.ndarray) -> dict[str, Any]:
    self._act(action_A.astype(np.float64))
    return {"success": not self.blind and self._inner._check_success()}

  def _scene(self) -> tuple[Any, Any]:
    return self._model, self._data

  def _remember(self) -> dict[str, Any]:
    return {
      "fingers": self._gripper.current_action.copy(),  # where they are told to be
      # The joints to which the controller's null space is drawn.
      "posture": self._robot.part_controllers["right"].initial_joint.copy(),
      "cube": None if self._cube is None else np.array(self._cube.size),  # half edges
    }

  def _recall(self, snapshot: task_env.Snapshot) -> None:
    memory = snapshot.memory
    if memory["cube"] is not None:
      self._resize_cube(memory["cube"])
    self._set_physics(snapshot.physics)
    self._gripper.current_action = memory["fingers"].copy()
    self._robot.part_controllers["right"].initial_joint = memory["posture"].copy()
    self._forget()

  def _act(self, action_A: np.ndarray) -> None:
    """Does what robosuite's own step does, but for its sensors: read 25 times, for nobody."""
    arm = self._robot.part_controllers["right"]
    fingers = self._robot.part_controllers["right_gripper"]
    for substep in range(self._substeps):
      mujoco.mj_step1(self._model, self._data)
      if not substep:
        arm.set_goal(action_A[:6])
        fingers.set_goal(self._gripper.format_action(action_A[6:]))
        self._drive(self._finger_motors, fingers)
      self._drive(self._arm_motors, arm)
      mujoco.mj_step2(self._model, self._data)
    self._locate()

  def _drive(self, motors: list[int], controller: Any) -> None:
    low, high = self._model.actuator_ctrlrange[motors].T
    self._data.ctrl[motors] = np.clip(controller.run_controller(), low, high)

  def _locate(self) -> None:
    """Brings positions up to the joints, where the last step moved them; no state changes."""
    mujoco.mj_kinematics(self._model, self._data)
    mujoco.mj_comPos(self._model, self._data)
    mujoco.mj_camlight(self._model, self._data)

  def _forget(self) -> None:
    """Lets the controllers look at the simulation anew in the next step.

    They keep nothing else from one control step to the next: goals are set by the action.
    """
    for controller in self._robot.part_controllers.values():
      controller.new_update = True
    self._locate()

  def _resize_cube(self, size: np.ndarray) -> None:
    """Gives the model the cube that robosuite would have compiled, half edges in metres."""
    if np.array_equal(size, self._cube.size):
      return
    self._cube.size = size.copy()  # its placement looks here
    body = self._model.body(self._cube.root_body)
    for geom in range(body.geomadr[0], body.geomadr[0] + body.geomnum[0]):
      self._model.geom_size[geom] = self._model.geom_aabb[geom, 3:] = size
      self._model.geom_rbound[geom] = np.linalg.norm(size)
    self._model.bvh_aabb[self._model.body_bvhadr[body.id], 3:] = size
    body.mass[:] = self._density * np.prod(size)
    x, y, z = size**2
    body.inertia[:] = body.mass / 3 * np.array([y + z, x + z, x + y])
    mujoco.mj_setConst(self._model, mujoco.MjData(self._model))

  def _see(self) -> tuple[np.ndarray, np.ndarray]:
    sensed: dict[str, np.ndarray] = {}
    for name in (*_PROPRIOCEPTION, *self._task.sensors):
      sensed[name] = self._inner._observables[name]._sensor(sensed)
    proprioception_P = np.concatenate([sensed[name] for name in _PROPRIOCEPTION])
    object_state = [sensed[name] for name in self._task.object_state]
    return np.concatenate([proprioception_P, *object_state]), proprioception_P


def make(
  suite: env_lib.Suite, task: str, cameras: tuple[str, ...], image_size: int
) -> RobosuiteEnv:
  """See `env.make`, which calls this."""
  return RobosuiteEnv(suite, task, cameras, image_size)
