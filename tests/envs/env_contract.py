"""What holds for the environments of every suite: checks that their tests share."""

import pickle

import numpy as np
import pytest


def run(env, actions):
  return [env.step(action)[0] for action in actions]


def random_actions(env, steps, seed=0):
  actions = np.random.default_rng(seed).uniform(-1, 1, (steps, env.suite.action_dim))
  return actions.astype(np.float32)


def follow(env, observation, steps):
  """Lets a new expert act, whatever comes of it; returns the last observation."""
  expert = env.expert()
  for _ in range(steps):
    observation = env.step(expert.act(observation))[0]
  return observation


def assert_equal(got, want):
  for a, b in zip(got, want, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def check_repeats(env, fresh):
  """The same seed and actions are the same episode, in this and in a fresh environment."""
  actions = random_actions(env, 25)
  first = [env.reset(seed=3)[0], *run(env, actions)]
  env.reset(seed=60)
  run(env, actions)  # another episode in between leaves no trace
  again = [env.reset(seed=3)[0], *run(env, actions)]
  assert_equal(again, first)
  assert_equal([fresh.reset(seed=3)[0], *run(fresh, actions)], first)
  assert not np.array_equal(env.reset(seed=4)[0]["state"], first[0]["state"])


def check_restores(env, other, steps):
  """A snapshot taken when the expert is at its work brings everything back, in `other` too.

  `other` was just made: nothing was ever reset in it.
  """
  follow(env, env.reset(seed=1)[0], steps)
  snapshot = pickle.loads(pickle.dumps(env.snapshot()))
  want = run(env, random_actions(env, 20))
  after = env.snapshot()
  env.reset(seed=2)
  for either in (env, other):
    either.restore(snapshot)
    assert_equal(run(either, random_actions(env, 20)), want)
    # Observations are rounded to float32: small departures show only in the physics.
    np.testing.assert_array_equal(either.snapshot().physics, after.physics)


def check_looking_ahead(env):
  """Blind steps are the same steps, but for images, reward and success."""
  observation = env.reset(seed=5)[0]
  follow(env, observation, 5)
  snapshot = env.snapshot()
  actions = random_actions(env, 10, 1)
  seen = [env.step(action) for action in actions]
  env.restore(snapshot)
  env.blind = True
  blind = [env.step(action) for action in actions]
  env.blind = False
  assert_equal([step[0] for step in blind], [step[0] for step in seen])
  assert all(step[1:3] == (0.0, False) for step in blind)
  env.restore(snapshot)
  assert [env.step(action)[1:4] for action in actions] == [step[1:4] for step in seen]


def check_solves(env, seeds):
  """Returns in how many of the episodes the expert succeeds within the horizon."""
  solved = 0
  for seed in seeds:
    observation, info = env.reset(seed=seed)
    expert, truncated = env.expert(), False
    while not truncated and not info["success"]:
      action = expert.act(observation)
      assert action.dtype == np.float32 and np.abs(action).max() <= 1
      observation, _, terminated, truncated, info = env.step(action)
      assert terminated == info["success"]
    solved += info["success"]
  return solved


def check_bad_actions(env):
  """Takes an environment that was just made."""
  A = env.suite.action_dim
  with pytest.raises(RuntimeError, match="reset"):
    env.step(np.zeros(A))
  env.reset(seed=0)
  with pytest.raises(ValueError, match=f"{env.task}.*not finite"):
    env.step(np.array([0, np.nan, *np.zeros(A - 2)]))
  with pytest.raises(ValueError, match=rf"shape \({A - 1},\); expected \({A},\)"):
    env.step(np.zeros(A - 1))
  with pytest.raises(ValueError, match="seed is -1"):
    env.reset(seed=-1)
