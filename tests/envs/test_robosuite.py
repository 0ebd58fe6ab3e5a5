"""robosuite's episodes are RoboMimic's: repeatable, restorable, solvable."""

import functools
import hashlib
import importlib.util
import subprocess
import sys

import env_contract
import numpy as np
import pytest
import tiny

from oat_jax.envs import env as env_lib
from oat_jax.envs import vector

# Not imported here: it asks for EGL when it is.
if importlib.util.find_spec("robosuite") is None:
  pytest.skip("the extra `robosuite` is not installed", allow_module_level=True)

TASKS = ("lift", "can", "square")
GRASP = {"lift": 23, "can": 45, "square": 45}  # steps, to be in the midst of it


@functools.cache
def make(task, which=0):
  """One of several environments of a task; they are made once, as they take a second each."""
  return env_lib.make(f"robosuite/{task}", task)


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_repeats_from_its_seed(task):
  env_contract.check_repeats(make(task), make(task, 1))


@pytest.mark.parametrize("task", TASKS)
def test_a_snapshot_in_the_midst_of_a_grasp_brings_everything_back(task):
  env = make(task)
  env_contract.check_restores(env, env_lib.make(f"robosuite/{task}", task), GRASP[task])
  state_S = env_contract.follow(env, env.reset(seed=1)[0], GRASP[task])["state"]
  assert 0.02 < state_S[7] - state_S[8] < 0.07  # something is between the fingers


@pytest.mark.parametrize("task", TASKS)
def test_a_snapshot_before_the_first_step_is_one_too(task):
  env, other = make(task), make(task, 1)
  env.reset(seed=4)
  snapshot = env.snapshot()
  want = env_contract.run(env, env_contract.random_actions(env, 5))
  other.restore(snapshot)
  env_contract.assert_equal(env_contract.run(other, env_contract.random_actions(env, 5)), want)


@pytest.mark.parametrize("task", TASKS)
def test_reward_and_success_survive_looking_ahead(task):
  env_contract.check_looking_ahead(make(task))


@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_robosuites_own(task):
  env = make(task)
  actions = env_contract.random_actions(env, 8)
  env.reset(seed=2)
  env_contract.run(env, actions)
  ours = env.snapshot()
  env.reset(seed=2)
  for action_A in actions:
    env._inner.step(action_A.astype(np.float64))
  np.testing.assert_array_equal(env.snapshot().physics, ours.physics)
  np.testing.assert_array_equal(env.snapshot().memory["fingers"], ours.memory["fingers"])


@pytest.mark.parametrize("task", TASKS)
def test_observations_are_robosuites_of_the_moment(task):
  env = make(task)
  env.reset(seed=6)
  got = env_contract.run(env, env_contract.random_actions(env, 6))[-1]
  for _ in range(2):  # the object in the gripper's frame is what it was when last asked for
    want = env._inner._get_observations(force_update=True)
  keys = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object-state")
  state_S = np.concatenate([want[key] for key in keys]).astype(np.float32)
  np.testing.assert_array_equal(got["state"], state_S)
  np.testing.assert_array_equal(got["proprioception"], state_S[:9])
  assert env.observation_space.contains(got)


def test_a_cube_of_another_size_is_the_one_that_robosuite_compiles():
  import robosuite

  env = make("lift")
  env.reset(seed=7)
  size = np.array(env._cube.size)
  compiled = robosuite.make(
    "Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False
  )
  compiled.cube.size = size  # what it drew is not to be chosen
  compiled.model.merge_objects([])
  for geom in compiled.model.root.iter("geom"):
    if geom.get("name", "").startswith("cube_g0"):
      geom.set("size", " ".join(map(repr, map(float, size))))
  compiled._initialize_sim()
  theirs, ours = compiled.sim.model._model, env._model
  assert 0.02 <= size.min() and size.max() <= 0.022 and len(set(size)) == 3
  for name in (
    *("geom_size", "geom_rbound", "geom_aabb", "bvh_aabb", "body_mass", "body_inertia"),
    *("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0"),
  ):
    np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12, err_msg=name)
  np.testing.assert_allclose(ours.stat.meaninertia, theirs.stat.meaninertia, rtol=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_within_the_horizon(task):
  assert env_contract.check_solves(make(task), range(2)) == 2


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_goes_on_from_wherever_it_is_asked(task):
  """A new one each step, in another environment, behind actions that it did not choose."""
  env, other = make(task), make(task, 1)
  observation, _ = env.reset(seed=8)
  env_contract.follow(env, observation, GRASP[task])
  env_contract.run(env, env_contract.random_actions(env, 10))
  other.restore(env.snapshot())
  observation, _, success, _, _ = other.step(np.zeros(7))
  for _ in range(300):
    if success:
      break
    observation, _, success, _, _ = other.step(other.expert().act(observation))
  assert success


def test_lift_in_other_processes():
  """Workers swap two episodes in and out of one simulator; the expert looks ahead in them."""
  with vector.VectorEnv("robosuite/lift", 1) as envs:
    envs.start([("lift", 0), ("lift", 1)])
    chunks_BCA = envs.expert_chunks(12)
    state = envs.step(chunks_BCA[:, :6])
    state = envs.step(chunks_BCA[:, 6:])
  env = make("lift")
  for b in range(2):
    observation = env.reset(seed=b)[0]
    expert = env.expert()
    for action_A in chunks_BCA[b]:
      np.testing.assert_array_equal(expert.act(observation), action_A)
      observation = env.step(action_A)[0]
    np.testing.assert_array_equal(state.observation["state"][b, -1], observation["state"])


def test_making_one_says_nothing_and_chooses_no_renderer():
  code = """
import hashlib, os
from oat_jax.envs import env as env_lib
env = env_lib.make("robosuite/can", "can")
assert "MUJOCO_GL" not in os.environ
print(hashlib.sha256(env.reset(seed=3)[0]["state"].tobytes()).hexdigest())
"""
  environment = {k: v for k, v in tiny.environment().items() if k != "MUJOCO_GL"}
  child = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
  )
  state_S = make("can").reset(seed=3)[0]["state"]
  assert child.stdout.strip() == hashlib.sha256(state_S.tobytes()).hexdigest()
  assert child.stderr == ""


def test_a_camera_shows_the_cube_where_it_is():
  try:
    env = env_lib.make("robosuite/lift", "lift", ("agentview", "robot0_eye_in_hand"), 96)
    observation = env.reset(seed=0)[0]
  except RuntimeError as error:
    pytest.skip(f"no off-screen OpenGL: {error}")
  assert env.observation_space.contains(observation)
  image = observation["image_agentview"].astype(int)
  camera = env._data.camera("agentview")
  x, y, z = camera.xmat.reshape(3, 3).T @ (env._data.body("cube_main").xpos - camera.xpos)
  focal = 48 / np.tan(np.deg2rad(env._model.camera("agentview").fovy[0]) / 2)
  row, column = 48 + focal * y / z, 48 - focal * x / z
  red = image[..., 0] - image[..., 1:].max(-1)
  rows, columns = np.nonzero(red > 0.3 * red.max())
  assert abs(rows.mean() - row) < 3 and abs(columns.mean() - column) < 3
  assert abs(row - 48) > 4  # or upside down would go unnoticed
  np.testing.assert_array_equal(env.reset(seed=0)[0]["image_agentview"], image)
  env.renders = False
  assert set(env.step(np.zeros(7))[0]) == {"state", "proprioception"}
  env.close()


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="no task 'stack'; its tasks are lift"):
    env_lib.make("robosuite/lift", "stack")
  with pytest.raises(ValueError, match="no camera 'corner'; its cameras are .*agentview"):
    env_lib.make("robosuite/lift", "lift", ("corner",))
  env = env_lib.make("robosuite/lift", "lift")
  env_contract.check_bad_actions(env)
  with pytest.raises(ValueError, match="'lift'.*'can'"):
    make("can").restore(env.snapshot())


def test_a_missing_simulator_names_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "robosuite", None)
  monkeypatch.delitem(sys.modules, "oat_jax.envs.robosuite", raising=False)
  with pytest.raises(ImportError, match=r"pip install 'oat-jax\[robosuite\]'.*praxis-robosuite"):
    env_lib.make("robosuite/lift", "lift")
