"""What the environments of all simulators do alike: checks, the horizon, images, snapshots."""

# mujoco's names are compiled, so pyright does not see them.
# pyright: reportAttributeAccessIssue=false

import copy
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import rendering

# All that mj_step reads, the solver's warm start included.
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


class Snapshot(NamedTuple):
  """The complete state of one episode."""

  task: str
  seed: int
  physics: np.ndarray
  memory: dict[str, Any]  # what the simulator remembers besides
  steps: int
  np_random: np.random.Generator | None


class TaskEnv(gymnasium.Env):
  """One task of a MuJoCo simulator; `env_lib.Env` has the contract.

  A simulator's room says the rest: how an episode begins and a step is done, what is seen, what the
  simulator remembers besides MuJoCo's state, and what it need not do while nobody looks.
  """

  def __init__(self, suite: env_lib.Suite, task: str, cameras: rendering.Cameras):
    """To be called when the simulator is there."""
    self.suite, self.task = suite, task
    self.renders, self._blind = True, False
    self._cameras = cameras
    self._seed: int | None = None  # of the episode; None before the first one
    self._steps = 0
    box, free = gymnasium.spaces.Box, np.inf
    self.action_space = box(-1, 1, (suite.action_dim,), np.float32)
    self.observation_space = gymnasium.spaces.Dict(
      {
        "state": box(-free, free, (suite.state_dim,), np.float32),
        "proprioception": box(-free, free, (suite.proprioception_dim,), np.float32),
        **cameras.space,
      }
    )

  def _begin(self, seed: int) -> None:
    """Brings the simulator to the first observation of episode `seed`."""
    raise NotImplementedError

  def _advance(self, action_A: np.ndarray) -> dict[str, Any]:
    """Does one control step; returns `info`, with `success`, and `reward` if that is not success.

    Args:
      action_A: float32 in [-1, 1].
    """
    raise NotImplementedError

  def _see(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns state (S,) and proprioception (P,) of this moment."""
    raise NotImplementedError

  def _scene(self) -> tuple[Any, Any]:
    """Returns MuJoCo's model and data; the model may be another one behind a reset."""
    raise NotImplementedError

  def _remember(self) -> dict[str, Any]:
    """Returns copies of all that later steps depend on besides MuJoCo's state."""
    raise NotImplementedError

  def _must_begin_again(self, snapshot: Snapshot) -> bool:
    """Whether the simulator has another scene than the snapshot's, or none yet."""
    del snapshot
    return self._seed is None

  def _recall(self, snapshot: Snapshot) -> None:
    """Brings back what `_remember` returned, and `_set_physics`."""
    raise NotImplementedError

  def _look_away(self, value: bool) -> None:
    """Spares the simulator what nobody looks at while that is true, if it costs much."""

  def _turned(self, image: np.ndarray, camera: str) -> np.ndarray:
    """Returns an image as it is stored."""
    del camera
    return image

  @property
  def blind(self) -> bool:
    return self._blind

  @blind.setter
  def blind(self, value: bool) -> None:
    self._blind = value
    self._look_away(value)

  def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
    if seed is not None and seed < 0:
      raise ValueError(f"seed is {seed}; it must not be negative")
    super().reset(seed=seed)
    if seed is None:
      seed = int(self.np_random.integers(2**31))
    self._seed = None  # of a reset that fails nothing is left
    self._begin(seed)
    self._seed, self._steps = seed, 0
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
    info = self._advance(np.clip(action_A, -1, 1))
    self._steps += 1
    success = bool(info["success"])
    return (
      self._observation(images=self.renders and not self._blind),
      float(info.pop("reward", success)),
      success,
      self._steps >= self.suite.max_steps,
      {**info, "success": success},
    )

  def snapshot(self) -> Snapshot:
    if self._seed is None:
      raise RuntimeError(f"task '{self.task}': reset the environment before taking a snapshot")
    model, data = self._scene()
    physics = np.empty(mujoco.mj_stateSize(model, _PHYSICS))
    mujoco.mj_getState(model, data, physics, _PHYSICS)
    memory, random = self._remember(), copy.deepcopy(self._np_random)
    return Snapshot(self.task, self._seed, physics, memory, self._steps, random)

  def restore(self, snapshot: Snapshot) -> None:
    if snapshot.task != self.task:
      raise ValueError(
        f"the snapshot is of task '{snapshot.task}'; this environment has '{self.task}'"
      )
    if self._must_begin_again(snapshot):
      self._begin(snapshot.seed)
    self._recall(snapshot)
    self._seed, self._steps = snapshot.seed, snapshot.steps
    self._np_random = copy.deepcopy(snapshot.np_random)

  def close(self) -> None:
    self._cameras.close()

  def _set_physics(self, physics: np.ndarray, forward: bool = False) -> None:
    """Sets MuJoCo's state; `forward` brings positions for sensors and cameras up to it."""
    model, data = self._scene()
    mujoco.mj_setState(model, data, physics, _PHYSICS)
    if forward:
      mujoco.mj_forward(model, data)
      mujoco.mj_setState(model, data, physics, _PHYSICS)  # it also moves the solver's warm start

  def _observation(self, images: bool) -> env_lib.Observation:
    state_S, proprioception_P = self._see()
    observation = {
      "state": state_S.astype(np.float32),
      "proprioception": proprioception_P.astype(np.float32),
    }
    for camera in self._cameras.names if images else ():
      image = self._turned(self._cameras.render(*self._scene(), camera), camera)
      observation[f"image_{camera}"] = np.ascontiguousarray(image)
    return observation
