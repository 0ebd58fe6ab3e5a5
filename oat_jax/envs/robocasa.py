"""RoboCasa's atomic tasks: a Franka arm on a mobile base in kitchens that every seed draws anew.

Source: github.com/robocasa/robocasa, version 1.0, in the package praxis-robocasa. A seed draws the
kitchen's plan and style (of all 60 each), the objects, and where the robot stands; RoboCasa lets
the objects settle for ten steps before the first observation.

A kitchen takes seconds to build, and an environment holds one: an episode that is restored into an
environment that is in another kitchen builds its own again. Evaluate with as many processes as
episodes that run side by side.
"""

# The packages are in an environment of their own; see the Makefile.
# pyright: reportMissingImports=false

from collections.abc import Iterator
import contextlib
import io
import pathlib
from typing import Any

import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import manipulation
from oat_jax.envs import task_env

with contextlib.redirect_stdout(io.StringIO()), manipulation.quiet():
  import robocasa
  import robosuite
  from robosuite.controllers import load_composite_controller_config

_ALL = -3  # RoboCasa's number for all plans, and for all styles
# One of each kind that `download_kitchen_assets` brings and the kitchens here are made of.
_NEEDED = (
  *("textures", "fixtures/cabinets/cabinet_panels/CabinetDoorPanel003"),
  *("objects/objaverse", "objects/lightwheel"),
)


class RoboCasaEnv(manipulation.ManipulationEnv):
  """One task; `env_lib.Env` has the contract.

  State (16,), as in RoboCasa's datasets: the base's xyz in metres and its orientation, in the frame
  of the world; the hand's xyz and orientation in the frame of the base; the positions of the two
  fingers in metres. Orientations are quaternions xyzw.

  Actions (12,), in the simulator's order: a step of the hand by up to 5 cm along each axis of the
  base, a turn by up to 0.5 rad about each, the gripper from -1, open, to +1, closed; the base's
  speed forwards, sideways and about the vertical; a step of the torso upwards; the mode: above 0
  the hand's goal rides along with the base, else it is a step from where the hand is.

  Cameras are `robot0_agentview_left`, `robot0_agentview_right` and `robot0_eye_in_hand`.
  """

  def _start(self, seed: int) -> None:
    self._inner.rng = np.random.default_rng(seed)
    self._inner.unset_ep_meta()
    self._inner.reset()

  def _proprioception(self, sensed: dict[str, Any]) -> np.ndarray:
    base = ("base_pos", "base_quat", "base_to_eef_pos", "base_to_eef_quat", "gripper_qpos")
    return np.concatenate([sensed[f"robot0_{name}"] for name in base])

  def _remembering(self) -> Iterator[tuple[str, Any]]:
    yield from super()._remembering()
    for name, fixture in self._inner.fixtures.items():  # whether they are on, open, for how long
      yield f"fixture.{name}", fixture

  def _camera_names(self) -> list[str]:
    return list(self._inner._cam_configs)  # before there is a kitchen, too

  def _must_begin_again(self, snapshot: task_env.Snapshot) -> bool:
    return self._seed != snapshot.seed


def make(suite: env_lib.Suite, task: str, cameras: tuple[str, ...], image_size: int) -> RoboCasaEnv:
  """See `env.make`, which calls this.

  Raises:
    FileNotFoundError: RoboCasa's kitchens are missing.
  """
  check_assets()
  return RoboCasaEnv(suite, task, make_inner(task), cameras, image_size)


def make_inner(task: str, plans: Any = _ALL, styles: Any = _ALL) -> Any:
  """Makes RoboCasa's environment of a task, without cameras of its own."""
  with manipulation.quiet():
    return robosuite.make(
      task,
      robots="PandaOmron",
      controller_configs=load_composite_controller_config(controller=None, robot="PandaOmron"),
      has_renderer=False,
      has_offscreen_renderer=False,
      use_camera_obs=False,
      ignore_done=True,
      renderer="mujoco",
      seed=0,
      layout_ids=plans,
      style_ids=styles,
    )


def check_assets() -> None:
  """Raises FileNotFoundError if RoboCasa's fixtures, textures or objects are missing."""
  folder = pathlib.Path(robocasa.__path__[0]) / "models/assets"
  missing = [needed for needed in _NEEDED if not (folder / needed).exists()]
  if missing:
    raise FileNotFoundError(
      f"RoboCasa's kitchens are missing ({', '.join(missing)} in {folder}); in its environment"
      " `python -m robocasa.scripts.download_kitchen_assets --type tex fixtures_lw objs_objaverse"
      " objs_lw` downloads them, several GB"
    )
