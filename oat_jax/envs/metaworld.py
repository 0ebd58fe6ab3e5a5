"""MetaWorld v3: repeatable episodes, snapshots, cheap cameras, scripted experts.

Source: github.com/Farama-Foundation/Metaworld.

Episode seed s is goal s % 50 of `metaworld.MT1(task, seed=s // 50)`, so different seeds have
different goals, and the first 50 are those of MetaWorld's own benchmark with seed 0. The goal is
part of the observed state.
"""

# mujoco's names are compiled and metaworld's re-exported, so pyright sees neither.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

import copy
import functools
import pickle
from typing import Any, NamedTuple
from unittest import mock
import warnings

import gymnasium
import metaworld
from metaworld import policies
from metaworld import types
import mujoco
import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import rendering

_GOALS = 50  # of one MT1 benchmark
_PHYSICS = (
  mujoco.mjtState.mjSTATE_INTEGRATION
)  # all that mj_step reads, the solver's warm start included
_MODEL = ("body_pos", "site_pos")  # what MetaWorld moves in the model at a reset
_PLAIN = (bool, int, float, str, type(None), np.ndarray, np.generic, list, tuple, dict)
_UPSIDE_DOWN = ("corner2",)


class Snapshot(NamedTuple):
  """The complete state of one episode."""

  task: str
  physics: np.ndarray
  model: dict[str, np.ndarray]
  attributes: dict[str, Any]
  steps: int
  np_random: np.random.Generator | None


class MetaWorldEnv(gymnasium.Env):
  """One task; `env_lib.Env` has the contract.

  The state is MetaWorld's full observation (39,): hand xyz in metres, gripper opening, poses of up
  to two objects (14), the same 18 numbers one step earlier, and the goal's xyz. Proprioception (4,)
  is the hand's xyz and the opening of the gripper in [0, 1]. Actions (4,) move the hand by up to 1
  cm per axis and close (+1) or open (-1) the gripper.
  """

  def __init__(self, suite: env_lib.Suite, task: str, cameras: tuple[str, ...], image_size: int):
    self.suite = suite
    self.task = task
    self._name = f"{task}-v3"
    self._inner = metaworld.ALL_V3_ENVIRONMENTS[self._name]()
    self._inner.max_path_length = np.iinfo(np.int64).max  # the horizon is ours to say
    self._steps = 0
    self._was_reset = False
    known = rendering.cameras_of(self._inner.model)
    self._cameras = rendering.Cameras(suite, task, known, cameras, image_size)
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

  @property
  def blind(self) -> bool:
    return self._blind

  @blind.setter
  def blind(self, value: bool) -> None:
    self._blind = value
    # The reward is a third of a step's time.
    if value:
      self._inner.evaluate_state = lambda *_: (0.0, {"success": False})
    else:
      vars(self._inner).pop("evaluate_state", None)

  def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
    if seed is not None and seed < 0:
      raise ValueError(f"seed is {seed}; it must not be negative")
    super().reset(seed=seed)
    if seed is None:
      seed = int(self.np_random.integers(2**31))
    goal = goals(self._name, seed // _GOALS)[seed % _GOALS]
    data = {"rand_vec": goal, "env_cls": type(self._inner), "partially_observable": False}
    self._inner.set_task(types.Task(env_name=self._name, data=pickle.dumps(data)))
    self._inner.reset()
    # Objects that belong to the model were moved after the last forward pass: without this one the
    # first image, and whatever is read from them, would show them where the previous episode left
    # them.
    mujoco.mj_forward(self._inner.model, self._inner.data)
    self._inner._prev_obs = self._inner._get_curr_obs_combined_no_goal()
    self._steps = 0
    self._was_reset = True
    state_S = self._inner._get_obs()
    return self._observation(state_S, images=True), {"success": False}

  def step(self, action: np.ndarray):
    if not self._was_reset:
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
    state_S, reward, _, _, info = self._inner.step(np.clip(action_A, -1, 1))
    self._steps += 1
    success = bool(info["success"])
    truncated = self._steps >= self.suite.max_steps
    return (
      self._observation(state_S, images=self.renders and not self._blind),
      float(reward),
      success,
      truncated,
      {**info, "success": success},
    )

  def snapshot(self) -> Snapshot:
    inner = self._inner
    physics = np.empty(mujoco.mj_stateSize(inner.model, _PHYSICS))
    mujoco.mj_getState(inner.model, inner.data, physics, _PHYSICS)
    attributes = {
      name: value
      for name, value in vars(inner).items()
      if isinstance(value, _PLAIN) and not _is_simulator_memory(value)
    }
    return Snapshot(
      task=self.task,
      physics=physics,
      model={name: getattr(inner.model, name).copy() for name in _MODEL},
      attributes=copy.deepcopy(attributes),
      steps=self._steps,
      np_random=copy.deepcopy(self._np_random),
    )

  def restore(self, snapshot: Snapshot) -> None:
    if snapshot.task != self.task:
      raise ValueError(
        f"the snapshot is of task '{snapshot.task}'; this environment has '{self.task}'"
      )
    inner = self._inner
    for name, value in snapshot.model.items():
      getattr(inner.model, name)[:] = value
    mujoco.mj_setState(inner.model, inner.data, snapshot.physics, _PHYSICS)
    # The forward pass brings positions for the renderer, but it also moves the solver's warm start:
    # set that back.
    mujoco.mj_forward(inner.model, inner.data)
    mujoco.mj_setState(inner.model, inner.data, snapshot.physics, _PHYSICS)
    vars(inner).update(copy.deepcopy(snapshot.attributes))
    self._steps = snapshot.steps
    self._np_random = copy.deepcopy(snapshot.np_random)
    self._was_reset = True

  def expert(self) -> env_lib.Expert:
    return _Expert(self._name)

  def close(self) -> None:
    self._cameras.close()

  def _observation(self, state_S: np.ndarray, images: bool) -> env_lib.Observation:
    state_S = state_S.astype(np.float32)
    observation = {
      "state": state_S,
      "proprioception": state_S[: self.suite.proprioception_dim].copy(),
    }
    for camera in self._cameras.names if images else ():
      image = self._cameras.render(self._inner.model, self._inner.data, camera)
      if camera in _UPSIDE_DOWN:
        image = np.ascontiguousarray(image[::-1, ::-1])
      observation[f"image_{camera}"] = image
    return observation


def make(
  suite: env_lib.Suite, task: str, cameras: tuple[str, ...], image_size: int
) -> MetaWorldEnv:
  """See `env.make`, which calls this."""
  return MetaWorldEnv(suite, task, cameras, image_size)


@functools.cache
def goals(name: str, seed: int) -> np.ndarray:
  """Returns the 50 goals of `metaworld.MT1(name, seed)`, float64 (50, G), bit for bit.

  MT1 lets the arm settle 100 times to draw 50 goals; they do not depend on it, so here the physics
  stands still, which takes a quarter of the time (0.1 s).
  """
  inner = metaworld.ALL_V3_ENVIRONMENTS[name]()
  inner._freeze_rand_vec = False
  inner._set_task_called = True

  def reset_hand(steps=50):
    mujoco.mj_forward(inner.model, inner.data)  # poses that some tasks look at
    inner.init_tcp = inner.tcp_center

  inner._reset_hand = reset_hand
  inner.do_simulation = lambda *args, **kwargs: None
  drawn = []
  before = np.random.get_state()
  np.random.seed(seed)  # MetaWorld draws goals from numpy's global generator
  try:
    with mock.patch.object(mujoco, "mj_step", lambda *args, **kwargs: None):
      for _ in range(_GOALS):
        inner.reset()
        drawn.append(inner._last_rand_vec)
  finally:
    np.random.set_state(before)
  return np.stack(drawn)


class _Expert:
  """MetaWorld's scripted policy; it looks only at the current observation."""

  def __init__(self, name: str):
    # The scripts ask for more than the full stroke and warn that it will be clipped.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    self._policy = policies.ENV_POLICY_MAP[name]()

  def act(self, observation: env_lib.Observation) -> np.ndarray:
    action_A = self._policy.get_action(observation["state"].astype(np.float64))
    return np.clip(action_A, -1, 1).astype(np.float32)


def _is_simulator_memory(value: Any) -> bool:
  """Whether an array is a window into MuJoCo's memory, which restoring `physics` brings back."""
  while isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
    value = value.base
  return isinstance(value, np.ndarray) and value.base is not None
