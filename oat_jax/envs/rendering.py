"""Square images of MuJoCo scenes, without a display."""

# mujoco's names are compiled, so pyright does not see them.
# pyright: reportAttributeAccessIssue=false

import atexit
from collections.abc import Sequence
import functools
from typing import Any
import weakref

import gymnasium
import mujoco
import numpy as np

from oat_jax.envs import env as env_lib

_open: weakref.WeakSet[Any] = weakref.WeakSet()  # renderers


class Cameras:
  """What an environment's cameras see. The renderer is made at the first image of a model."""

  def __init__(
    self,
    suite: env_lib.Suite,
    task: str,
    known: Sequence[str],
    names: tuple[str, ...],
    image_size: int,
    hidden_groups: tuple[int, ...] = (),
  ):
    """Takes the names of all cameras and of those that are used, and groups of geoms to be hidden.

    Where the suite has no shadows, reflections and multisampling are left out too: a tenth of the
    time, other pixels.

    Raises:
      ValueError: no such camera, or an impossible size.
      RuntimeError: there is no off-screen OpenGL.
    """
    for name in names:
      if name not in known:
        raise ValueError(
          f"task '{task}' has no camera '{name}'; its cameras are {', '.join(known)}"
        )
    if not 1 <= image_size <= 4096:
      raise ValueError(f"image_size is {image_size}; it must be between 1 and 4096 pixels")
    if names:
      env_lib.choose_renderer()
    self.names = names
    self._shadows = suite.shadows
    self._image_size = image_size
    self._options = mujoco.MjvOption()
    self._options.geomgroup[list(hidden_groups)] = 0
    self._renderer: Any = None
    self._model: Any = None

  @property
  def space(self) -> dict[str, gymnasium.spaces.Box]:
    """The images' part of an observation space."""
    shape = (self._image_size, self._image_size, 3)
    return {f"image_{n}": gymnasium.spaces.Box(0, 255, shape, np.uint8) for n in self.names}

  def render(self, model: mujoco.MjModel, data: mujoco.MjData, name: str) -> np.ndarray:
    """Returns uint8 (H, W, 3); RuntimeError where OpenGL does not work."""
    if self._renderer is None or self._model is not model:
      self.close()
      self._renderer, self._model = _make_renderer(model, self._image_size, self._shadows), model
    self._renderer.update_scene(data, name, self._options)
    return self._renderer.render().copy()

  def close(self) -> None:
    if self._renderer is not None:
      self._renderer.close()
      self._renderer = None


def cameras_of(model: mujoco.MjModel) -> list[str]:
  """Returns the names of a model's cameras."""
  return [model.camera(i).name for i in range(model.ncam)]


def _make_renderer(model: mujoco.MjModel, image_size: int, shadows: bool) -> mujoco.Renderer:
  if not shadows:
    model.vis.quality.offsamples = 0
  model.vis.global_.offwidth = max(model.vis.global_.offwidth, image_size)
  model.vis.global_.offheight = max(model.vis.global_.offheight, image_size)
  try:
    renderer = mujoco.Renderer(model, height=image_size, width=image_size)
  except Exception as error:  # whatever the OpenGL library at hand raises
    raise RuntimeError(
      f"MuJoCo found no working off-screen OpenGL ({error}); install libegl1 or libosmesa6"
      " and set MUJOCO_GL to egl or osmesa, or ask for no cameras"
    ) from error
  if not shadows:
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
  _open.add(renderer)
  _close_at_exit()
  return renderer


@functools.cache
def _close_at_exit() -> None:
  """Registered behind MuJoCo's own, to run before it, which takes the display from under them."""
  atexit.register(lambda: [renderer.close() for renderer in list(_open)])
