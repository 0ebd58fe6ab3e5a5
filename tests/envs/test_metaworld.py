"""MetaWorld episodes: repeatable, restorable, solvable."""

import pickle

import env_contract
import numpy as np
import pytest

from oat_jax.envs import env as env_lib

pytest.importorskip("metaworld", reason="the extra `sim` is not installed")

MT4, MT50 = "metaworld/mt4", "metaworld/mt50"
# Beside the four: one that looks at poses while it is reset, and one of two objects.
TASKS = (*env_lib.suite(MT4).tasks, "lever-pull", "peg-insert-side")


def make(task):
  """Makes a task's environment, with the horizon of the suite that it is evaluated in."""
  return env_lib.make(MT4 if task in env_lib.suite(MT4).tasks else MT50, task)


def test_the_suites_are_metaworlds_own():
  import metaworld
  from metaworld import env_dict

  named = lambda names: {name.removesuffix("-v3") for name in names}
  assert set(env_lib.suite(MT50).tasks) == named(metaworld.ALL_V3_ENVIRONMENTS)
  assert set(env_lib.suite("metaworld/mt10").tasks) == named(env_dict.MT10_V3)
  for name in (MT4, "metaworld/mt10", MT50):
    suite = env_lib.suite(name)
    assert suite.name == name and set(suite.instructions) == set(suite.tasks)
    assert len(set(suite.instructions.values())) == len(suite.tasks)


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_repeats_from_its_seed(task):
  env_contract.check_repeats(make(task), make(task))


@pytest.mark.parametrize("task", TASKS)
def test_a_snapshot_brings_everything_back(task):
  env_contract.check_restores(make(task), make(task), 30)  # into contact with the object


@pytest.mark.parametrize("task", TASKS)
def test_reward_and_success_survive_looking_ahead(task):
  env_contract.check_looking_ahead(make(task))


@pytest.mark.parametrize("name", [f"{task}-v3" for task in (*TASKS, "push")])
def test_goals_are_those_of_metaworlds_own_benchmark(name):
  import metaworld

  from oat_jax.envs import metaworld as room

  tasks = metaworld.MT1(name, seed=2).train_tasks
  want = [pickle.loads(task.data)["rand_vec"] for task in tasks]
  np.testing.assert_array_equal(room.goals(name, 2), want)
  assert len(np.unique(np.concatenate([room.goals(name, i) for i in range(3)]), axis=0)) == 150


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_within_the_horizon(task):
  assert env_contract.check_solves(make(task), range(5)) >= 4


def test_observations_are_as_the_space_says():
  env = env_lib.make(MT4, "box-close")
  observation, info = env.reset(seed=0)
  assert env.observation_space.contains(observation)
  assert info["success"] is False
  np.testing.assert_array_equal(observation["proprioception"], observation["state"][:4])
  np.testing.assert_array_equal(observation["state"][18:36], observation["state"][:18])


def test_a_camera_shows_the_scene():
  try:
    env = env_lib.make(MT4, "box-close", ("corner2",), 48)
    image = env.reset(seed=0)[0]["image_corner2"]
  except RuntimeError as error:
    pytest.skip(f"no off-screen OpenGL: {error}")
  assert image.shape == (48, 48, 3) and image.dtype == np.uint8
  # The right way up: plain background above, table and robot below.
  assert image[:6].std(axis=(0, 1)).max() < 3 and image[-6:].std(axis=(0, 1)).max() > 20
  assert not np.array_equal(env.reset(seed=1)[0]["image_corner2"], image)
  np.testing.assert_array_equal(env.reset(seed=0)[0]["image_corner2"], image)
  env.close()


def test_bad_input_is_named(monkeypatch):
  with pytest.raises(ValueError, match="no suite 'metaworld/mt5'; known are .*metaworld/mt4"):
    env_lib.suite("metaworld/mt5")
  with pytest.raises(ValueError, match="no task 'box-open'; its tasks are box-close"):
    env_lib.make(MT4, "box-open")
  with pytest.raises(ValueError, match="no camera 'corner9'; its cameras are .*corner2"):
    env_lib.make(MT4, "box-close", ("corner9",))
  env = env_lib.make(MT4, "box-close")
  env_contract.check_bad_actions(env)
  other = env_lib.make(MT4, "coffee-pull")
  with pytest.raises(ValueError, match="'box-close'.*'coffee-pull'"):
    other.restore(env.snapshot())


def test_a_missing_simulator_names_its_extra(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, "metaworld", None)
  monkeypatch.delitem(sys.modules, "oat_jax.envs.metaworld", raising=False)
  with pytest.raises(ImportError, match=r"pip install 'oat-jax\[sim\]'"):
    env_lib.make(MT4, "box-close")
