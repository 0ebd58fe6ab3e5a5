"""MetaWorld episodes: repeatable, restorable, solvable."""

import pickle

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


def run(env, actions):
  return [env.step(action)[0] for action in actions]


def random_actions(steps, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (steps, 4)).astype(np.float32)


def assert_equal(got, want):
  for a, b in zip(got, want, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_repeats_from_its_seed(task):
  env = make(task)
  actions = random_actions(25)
  first = [env.reset(seed=3)[0], *run(env, actions)]
  env.reset(seed=60)
  run(env, actions)  # another episode in between leaves no trace
  again = [env.reset(seed=3)[0], *run(env, actions)]
  fresh = make(task)
  assert_equal(again, first)
  assert_equal([fresh.reset(seed=3)[0], *run(fresh, actions)], first)
  assert not np.array_equal(env.reset(seed=4)[0]["state"], first[0]["state"])


@pytest.mark.parametrize("task", TASKS)
def test_a_snapshot_brings_everything_back(task):
  env, other = make(task), make(task)
  observation, _ = env.reset(seed=1)
  expert = env.expert()
  for _ in range(30):  # into contact with the object
    observation = env.step(expert.act(observation))[0]
  snapshot = pickle.loads(pickle.dumps(env.snapshot()))
  want = run(env, random_actions(20))
  after = env.snapshot()
  for either, seed in ((env, 2), (other, 9)):
    either.reset(seed=seed)
    either.restore(snapshot)
    assert_equal(run(either, random_actions(20)), want)
    # Observations are rounded to float32: small departures show only in the physics.
    np.testing.assert_array_equal(either.snapshot().physics, after.physics)


@pytest.mark.parametrize("task", TASKS)
def test_reward_and_success_survive_a_restore(task):
  env = make(task)
  env.reset(seed=5)
  run(env, random_actions(5))
  snapshot = env.snapshot()
  want = [env.step(action)[1:4] for action in random_actions(10, 1)]
  env.restore(snapshot)
  env.blind = True
  run(env, random_actions(10, 1))
  env.blind = False
  env.restore(snapshot)
  assert [env.step(action)[1:4] for action in random_actions(10, 1)] == want


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
  env = make(task)
  solved = 0
  for seed in range(5):
    observation, info = env.reset(seed=seed)
    expert, truncated = env.expert(), False
    while not truncated and not info["success"]:
      action = expert.act(observation)
      assert action.dtype == np.float32 and np.abs(action).max() <= 1
      observation, _, terminated, truncated, info = env.step(action)
      assert terminated == info["success"]
    solved += info["success"]
  assert solved >= 4


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
  with pytest.raises(RuntimeError, match="reset"):
    env.step(np.zeros(4))
  env.reset(seed=0)
  with pytest.raises(ValueError, match="box-close.*not finite"):
    env.step(np.array([0, np.nan, 0, 0]))
  with pytest.raises(ValueError, match=r"shape \(3,\); expected \(4,\)"):
    env.step(np.zeros(3))
  other = env_lib.make(MT4, "coffee-pull")
  with pytest.raises(ValueError, match="'box-close'.*'coffee-pull'"):
    other.restore(env.snapshot())


def test_a_missing_simulator_names_its_extra(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, "metaworld", None)
  monkeypatch.delitem(sys.modules, "oat_jax.envs.metaworld", raising=False)
  with pytest.raises(ImportError, match=r"pip install 'oat-jax\[sim\]'"):
    env_lib.make(MT4, "box-close")
