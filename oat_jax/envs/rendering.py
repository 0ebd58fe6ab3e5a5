"""Square images of a MuJoCo scene, cheaply."""

# mujoco's names are compiled, so pyright does not see them.
# pyright: reportAttributeAccessIssue=false

import atexit
from typing import Any
import weakref

import gymnasium
import mujoco
import numpy as np

from oat_jax.envs import env as env_lib


class Cameras:
  """Renders without shadows, reflections, multisampling: a tenth of the time, other pixels.

  The renderer is made at the first image.
  """

  def __init__(
    self,
    model: mujoco.MjModel,
    task: str,
    names: tuple[str, ...],
    image_size: int,
    hidden_groups: tuple[int, ...] = (),
  ):
    """Takes the names of cameras of the model and the groups of geoms that are not to be seen.

    Raises:
      ValueError: no such camera, or an impossible size.
      RuntimeError: there is no off-screen OpenGL.
    """
    known = [model.camera(i).name for i in range(model.ncam)]
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
    self._model = model
    self._image_size = image_size
    self._options = mujoco.MjvOption()
    self._options.geomgroup[list(hidden_groups)] = 0
    self._renderer: Any = None

  @property
  def space(self) -> dict[str, gymnasium.spaces.Box]:
    """The images' part of an observation space."""
    shape = (self._image_size, self._image_size, 3)
    return {f"image_{n}": gymnasium.spaces.Box(0, 255, shape, np.uint8) for n in self.names}

  def render(self, data: mujoco.MjData, name: str) -> np.ndarray:
    """Returns uint8 (H, W, 3); RuntimeError where OpenGL does not work."""
    if self._renderer is None:
      self._renderer = _make_renderer(self._model, self._image_size)
      # At the latest before OpenGL takes itself apart, which registered its own end before this.
      atexit.register(_close, weakref.ref(self._renderer))
    self._renderer.update_scene(data, name, self._options)
    return self._renderer.render().copy()

  def close(self) -> None:
    if self._renderer is not None:
      self._renderer.close()
      self._renderer = None


def _close(reference: weakref.ref) -> None:
  renderer = reference()
  if renderer is not None:
    renderer.close()


def _make_renderer(model: mujoco.MjModel, image_size: int) -> mujoco.Renderer:
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
  renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
  renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
  return renderer
