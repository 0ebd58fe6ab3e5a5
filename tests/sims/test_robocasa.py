"""RoboCasa behind the contract, in the environment that `make sim-robocasa` makes.

Its kitchens are several GB that do not come with the package. The package does hold the shapes of
walls, counters and drawers: one kitchen is built of these, with grey textures, and in it the task
of closing a drawer, without the objects that lie in it and on the counter.
"""

import importlib
import importlib.util
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from oat_jax.envs import env as env_lib

# Before RoboCasa itself, which would choose a renderer.
if importlib.util.find_spec("robocasa") is None:
  pytest.skip("`make sim-robocasa` makes an environment with RoboCasa", allow_module_level=True)
room = importlib.import_module("oat_jax.envs.robocasa")

robocasa = room.robocasa
dataset_registry = robocasa.utils.dataset_registry

SUITE, TASK = env_lib.suite("robocasa/four"), "CloseDrawer"
CAMERAS = ("robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand")
PLAN = """
room:
  walls:
    - {name: wall, type: wall, size: [2.75, 1.5, 0.02], pos: [2.75, 0, 1.5]}
  floor:
    - {name: floor, type: floor, size: [2.75, 1.5, 0.02], pos: [2.75, -1.5, 0]}
main:
  cabinets:
    - {name: drawer, type: drawer, size: [0.6, 0.6, 0.3], pos: [2.5, -0.3, 0.75]}
  counters:
    - {name: counter, type: counter, size: [1.0, 0.65, 0.04], pos: [2.5, -0.325, 0.92]}
"""
STYLE = "cabinet: {default: [gray, slab]}"


class CloseEmptyDrawer(robocasa.environments.kitchen.atomic.kitchen_drawer.CloseDrawer):
  def _get_obj_cfgs(self):
    return []


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
  """RoboCasa with grey textures, and with one plan of a kitchen."""
  import cv2

  package = tmp_path_factory.mktemp("assets") / "robocasa"
  own = pathlib.Path(robocasa.models.assets_root)
  assets = package / "models/assets"
  shutil.copytree(own, assets)
  (package / "plan.yaml").write_text(PLAN)
  (package / "style.yaml").write_text(STYLE)
  says = [*own.rglob("*.yaml"), *own.rglob("*.xml")]
  says += pathlib.Path(robocasa.__path__[0]).glob("models/fixtures/*.py")
  for name in {
    name for file in says for name in re.findall(r"textures/[\w/]+\.png", file.read_text())
  }:
    (assets / name).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(assets / name), np.full((4, 4, 3), 160, np.uint8))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(robocasa.models, "assets_root", str(assets))
    patch.setattr(robocasa, "__file__", str(package / "__init__.py"))
    arena = robocasa.models.scenes.kitchen_arena
    patch.setattr(arena, "get_layout_path", lambda layout_id: str(package / "plan.yaml"))
    patch.setattr(arena, "get_style_path", lambda style_id: str(package / "style.yaml"))
    yield


def make(cameras=(), size=64):
  return room.RoboCasaEnv(SUITE, TASK, room.make_inner("CloseEmptyDrawer", 1, 1), cameras, size)


@pytest.fixture(scope="module")
def env(kitchen):
  return make()


def run(env, actions):
  return [env.step(action)[0]["state"] for action in actions]


def random_actions(steps, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (steps, 12)).astype(np.float32)


def still(**parts):
  """An action that does nothing but hold the gripper open, and what is asked for."""
  slices = {"hand": slice(0, 3), "gripper": 6, "base": slice(7, 10), "torso": 10, "mode": 11}
  action = np.array([0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1], float)
  for name, value in parts.items():
    action[slices[name]] = value
  return action


def test_tasks_and_horizons_are_robocasas_own():
  from robocasa.environments import ALL_KITCHEN_ENVIRONMENTS

  atomic = env_lib.suite("robocasa/atomic")
  assert list(atomic.tasks) == dataset_registry.TASK_SET_REGISTRY["all_atomic_tasks"]
  for suite in (SUITE, atomic):
    assert set(suite.tasks) <= set(ALL_KITCHEN_ENVIRONMENTS)
    horizons = [dataset_registry.ATOMIC_TASK_DATASETS[task]["horizon"] for task in suite.tasks]
    assert suite.max_steps == max(horizons)


def test_every_task_makes_its_environment():
  """As far as goes without kitchens: robot, controller, plans and styles are chosen."""
  inner = room.make_inner(TASK)
  assert len(inner.layout_and_style_ids) > 3000 and inner.control_freq == 20
  for task in SUITE.tasks[1:]:
    assert type(room.make_inner(task)).__name__ == task


def test_an_episode_repeats_and_comes_back_from_a_snapshot(env):
  actions = random_actions(12)
  observation, info = env.reset(seed=3)
  assert env.observation_space.contains(observation) and info == {"success": False}
  first = [observation["state"], *run(env, actions)]
  snapshot = pickle.loads(pickle.dumps(env.snapshot()))
  want, after = run(env, random_actions(10, 1)), env.snapshot()
  different = env.reset(seed=4)[0]["state"]
  assert not np.array_equal(different, first[0])  # the robot stands elsewhere
  run(env, actions)
  other = make()  # was never reset
  for either in (env, other):
    either.restore(snapshot)
    np.testing.assert_array_equal(run(either, random_actions(10, 1)), want)
    # Observations are rounded to float32: small departures show only in the physics.
    np.testing.assert_array_equal(either.snapshot().physics, after.physics)
    assert either.snapshot().steps == 22
  np.testing.assert_array_equal([env.reset(seed=3)[0]["state"], *run(env, actions)], first)


def test_a_snapshot_remembers_what_fixtures_are_doing(env):
  """Whether a microwave is on is known to RoboCasa's objects alone, not to the physics."""
  env.reset(seed=0)
  drawer = env._inner.fixtures["drawer_main"]
  drawer.turned_on = True
  snapshot = env.snapshot()
  drawer.turned_on = False
  env.restore(snapshot)
  assert drawer.turned_on is True


def test_state_and_actions_are_laid_out_as_documented(env):
  parts = env._inner.robots[0].composite_controller._action_split_indexes
  if not parts:
    env.reset(seed=0)
  assert dict(env._inner.robots[0].composite_controller._action_split_indexes) == {
    **{"right": (0, 6), "right_gripper": (6, 7), "base": (7, 10), "torso": (10, 11)}
  }
  begun = env.reset(seed=0)[0]["state"]
  sensed = env._inner._get_observations(force_update=True)
  np.testing.assert_allclose(begun[:3], sensed["robot0_base_pos"], atol=1e-6)
  for quaternion in (begun[3:7], begun[10:14]):
    assert np.linalg.norm(quaternion) == pytest.approx(1, abs=1e-5)
  for _ in range(5):
    held = env.step(still())[0]["state"]
  for _ in range(5):
    state = env.step(still(hand=[0, 0, 0.5]))[0]["state"]
  assert state[9] - held[9] > 0.02  # up, as the base sees it
  np.testing.assert_allclose(state[:3], held[:3], atol=0.01)
  for _ in range(10):
    state = env.step(still(gripper=1))[0]["state"]
  assert state[14] - state[15] < held[14] - held[15] - 0.02
  for _ in range(10):
    moved = env.step(still(base=[0.5, 0, 0], mode=1))[0]["state"]
  assert np.linalg.norm(moved[:2] - state[:2]) > 0.05
  np.testing.assert_allclose(moved[7:10], state[7:10], atol=0.05)  # the hand rides along


def test_success_is_robocasas_own_check(env):
  env.reset(seed=0)
  assert env.step(still())[1:3] == (0.0, False)
  before = env.snapshot()
  env._inner.sim.data.set_joint_qpos("drawer_main_slidejoint", 0.0)
  assert env.step(still())[1:3] == (1.0, True)
  env.restore(before)
  assert env.step(still())[1:3] == (0.0, False)


def test_images_are_robocasas_own_the_right_way_up(kitchen):
  from robosuite.utils import binding_utils

  try:
    env = make(CAMERAS)
    observation, _ = env.reset(seed=0)
  except RuntimeError as error:
    pytest.skip(f"no off-screen OpenGL: {error}")
  first = env._cameras._model
  own = binding_utils.MjRenderContextOffscreen(env._inner.sim, device_id=-1)
  own.vopt.geomgroup[0] = 0
  for camera in CAMERAS:
    image = observation[f"image_{camera}"]
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.std() > 10
    own.gl_ctx.make_current()
    raw = env._inner.sim.render(width=64, height=64, camera_name=camera)  # from the bottom up
    apart = np.abs(image.astype(int) - raw[::-1])
    assert apart.mean() < 0.5, f"{camera}: {apart.mean()}"
  env.reset(seed=1)  # another model, so another renderer
  assert env._cameras._model is not first
  again, _ = env.reset(seed=0)
  env.close()
  for name, value in observation.items():
    np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_bad_input_is_named(env):
  with pytest.raises(ValueError, match="no camera 'agentview'; its cameras are .*eye_in_hand"):
    make(("agentview",))
  env.reset(seed=0)
  with pytest.raises(ValueError, match=r"shape \(7,\); expected \(12,\)"):
    env.step(np.zeros(7))


def test_missing_kitchens_are_named_with_the_command_that_brings_them():
  code = "from oat_jax.envs import env\nenv.make('robocasa/four', 'CloseDrawer')"
  environment = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"}
  done = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True
  )
  if not done.returncode:
    pytest.skip("RoboCasa's kitchens are here")
  assert "FileNotFoundError: RoboCasa's kitchens are missing (textures" in done.stderr
  assert "download_kitchen_assets --type tex fixtures_lw objs_objaverse objs_lw" in done.stderr
