"""What an environment is, and how one is made.

An environment follows gymnasium's API and adds what this project needs: episodes that repeat from
their seed, snapshots of the complete simulator state, and a scripted expert. The suites stand in
`suites`; `make` imports the room of one.
"""

import ctypes.util
import importlib
import importlib.metadata
import os
import sys
from typing import Any, Protocol

import numpy as np

from oat_jax.envs import suites
from oat_jax.envs.suites import Suite

suite = suites.get

Observation = dict[str, np.ndarray]


class Expert(Protocol):
  """A scripted policy without memory: it can be asked from any state; there is nothing to reset."""

  def act(self, observation: Observation) -> np.ndarray:
    """Returns the noise-free action, float32 (A,) in [-1, 1], for one observation."""
    ...


class Env(Protocol):
  """gymnasium's API and three methods more.

  Observations are dicts: `state` float32 (S,), everything a scripted expert needs; `proprioception`
  float32 (P,), what a robot knows of itself; `image_<camera>` uint8 (H, W, 3) for each camera asked
  for. `info["success"]` is a bool, and `terminated` says the same. Stepping on behind success or
  the horizon is allowed.
  """

  suite: Suite
  task: str
  action_space: Any
  observation_space: Any
  renders: bool  # while false, observations of `step` are without images
  blind: bool  # while true, `step` computes neither images nor reward and success: to look ahead

  def reset(
    self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[Observation, dict[str, Any]]:
    """Begins episode `seed`: the same seed and actions give the same episode, bit for bit."""
    ...

  def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
    """Executes `action` (A,), clipped to [-1, 1]; ValueError on another shape, NaN or infinity."""
    ...

  def snapshot(self) -> Any:
    """Returns the complete state, which can be pickled: all that later observations depend on."""
    ...

  def restore(self, snapshot: Any) -> None:
    """Continues from `snapshot`, bit for bit, in this or another environment of the same task."""
    ...

  def expert(self) -> Expert | None:
    """Returns the task's scripted expert, or None where there is none."""
    ...

  def close(self) -> None:
    """Frees the renderer."""
    ...


def make(suite_name: str, task: str, cameras: tuple[str, ...] = (), image_size: int = 128) -> Env:
  """Makes the environment of one task.

  Args:
    suite_name: a registered suite, e.g. "metaworld/mt4".
    task: one of the suite's tasks.
    cameras: cameras to render at every step, each an `image_<camera>` of the observation.
    image_size: height and width of the images in pixels.

  Raises:
    ValueError: no such suite, task or camera.
    ImportError: the simulator is not installed.
    FileNotFoundError: its meshes and textures, which come apart from it, are not.
  """
  chosen = suite(suite_name)
  if task not in chosen.tasks:
    raise ValueError(
      f"suite {suite_name} has no task '{task}'; its tasks are {', '.join(chosen.tasks)}"
    )
  room = suite_name.partition("/")[0]
  try:
    module = importlib.import_module(f"oat_jax.envs.{room}")
  except ImportError as error:
    raise ImportError(_missing(suite_name, error)) from error
  return module.make(chosen, task, tuple(cameras), image_size)


def versions(suite_name: str) -> dict[str, str]:
  """Returns package -> version of what an episode's numbers depend on; ImportError as in `make`."""
  packages = suite(suite_name).packages
  try:
    return {package: importlib.metadata.version(package) for package in packages}
  except ImportError as error:
    raise ImportError(_missing(suite_name, error)) from error


def choose_renderer() -> None:
  """Sets MUJOCO_GL, and says so, where it is unset and MuJoCo's own choice would need a display.

  To be called before cameras are used; processes started later inherit the choice, so it is said
  once.

  Raises:
    RuntimeError: neither EGL nor OSMesa is installed.
  """
  if os.environ.get("MUJOCO_GL") or sys.platform != "linux":
    return
  libraries = {"egl": "EGL", "osmesa": "OSMesa"}
  backend = next((b for b, library in libraries.items() if ctypes.util.find_library(library)), None)
  if backend is None:
    raise RuntimeError(
      "cameras need off-screen OpenGL, and neither libEGL nor libOSMesa is installed;"
      " on Debian: apt install libegl1 (or libosmesa6)"
    )
  os.environ["MUJOCO_GL"] = backend
  print(f"MUJOCO_GL is not set: rendering with MUJOCO_GL={backend}", file=sys.stderr, flush=True)
  if "mujoco" in sys.modules:
    # MuJoCo read the variable when it was imported, for an environment without cameras.
    context: Any = importlib.import_module("mujoco.gl_context")
    context.GLContext = importlib.import_module(f"mujoco.{backend}").GLContext


def _missing(suite_name: str, error: ImportError) -> str:
  return (
    f"the simulator of suite {suite_name} is not installed ({error}); {suite(suite_name).install}"
  )
