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
from typing import Any
from unittest import mock
import warnings

import metaworld
from metaworld import policies
from metaworld import types
import mujoco
import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import rendering
from oat_jax.envs import task_env

_GOALS = 50  # of one MT1 benchmark
_MODEL = ("body_pos", "site_pos")  # what MetaWorld moves in the model at a reset
_PLAIN = (bool, int, float, str, type(None), np.ndarray, np.generic, list, tuple, dict)
_UPSIDE_DOWN = ("corner2",)


class MetaWorldEnv(task_env.TaskEnv):
  """One task; `env_lib.Env` has the contract.

  The state is MetaWorld's full observation (39,): hand xyz in metres, gripper opening, poses of up
  to two objects (14), the same 18 numbers one step earlier, and the goal's xyz. Proprioception (4,)
  is the hand's xyz and the opening of the gripper in [0, 1]. Actions (4,) move the hand by up to 1
  cm per axis and close (+1) or open (-1) the gripper.
  """

  def __init__(self, suite: env_lib.Suite, task: str, cameras: tuple[str, ...], image_size: int):
    self._name = f"{task}-v3"
    self._inner = metaworld.ALL_V3_ENVIRONMENTS[self._name]()
    self._inner.max_path_length = np.iinfo(np.int64).max  # the horizon is ours to say
    known = rendering.cameras_of(self._inner.model)
    super().__init__(suite, task, rendering.Cameras(suite, task, known, cameras, image_size))
    self._state_S: Any = None  # asking MetaWorld twice would shift its memory of a step before

  def expert(self) -> env_lib.Expert:
    return _Expert(self._name)

  def _begin(self, seed: int) -> None:
    goal = goals(self._name, seed // _GOALS)[seed % _GOALS]
    data = {"rand_vec": goal, "env_cls": type(self._inner), "partially_observable": False}
    self._inner.set_task(types.Task(env_name=self._name, data=pickle.dumps(data)))
    self._inner.reset()
    # Objects that belong to the model were moved after the last forward pass: without this one the
    # first image, and whatever is read from them, would show them where the previous episode left
    # them.
    mujoco.mj_forward(self._inner.model, self._inner.data)
    self._inner._prev_obs = self._inner._get_curr_obs_combined_no_goal()
    self._state_S = self._inner._get_obs()

  def _advance(self, action_A: np.ndarray) -> dict[str, Any]:
    self._state_S, reward, _, _, info = self._inner.step(action_A)
    return {**info, "reward": reward}

  def _see(self) -> tuple[np.ndarray, np.ndarray]:
    return self._state_S, self._state_S[: self.suite.proprioception_dim]

  def _scene(self) -> tuple[Any, Any]:
    return self._inner.model, self._inner.data

  def _remember(self) -> dict[str, Any]:
    attributes = {
      name: value
      for name, value in vars(self._inner).items()
      if isinstance(value, _PLAIN) and not _is_simulator_memory(value)
    }
    return {
      "model": {name: getattr(self._inner.model, name).copy() for name in _MODEL},
      "attributes": copy.deepcopy(attributes),
      "state": self._state_S.copy(),
    }

  def _recall(self, snapshot: task_env.Snapshot) -> None:
    for name, value in snapshot.memory["model"].items():
      getattr(self._inner.model, name)[:] = value
    self._set_physics(snapshot.physics, forward=True)
    vars(self._inner).update(copy.deepcopy(snapshot.memory["attributes"]))
    self._state_S = snapshot.memory["state"].copy()

  def _look_away(self, value: bool) -> None:
    # The reward is a third of a step's time.
    if value:
      self._inner.evaluate_state = lambda *_: (0.0, {"success": False})
    else:
      vars(self._inner).pop("evaluate_state", None)

  def _turned(self, image: np.ndarray, camera: str) -> np.ndarray:
    return image[::-1, ::-1] if camera in _UPSIDE_DOWN else image


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
