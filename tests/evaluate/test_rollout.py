"""Receding-horizon episodes: which actions are executed, who is asked, what the rows say."""

import itertools
import json
from typing import NamedTuple

import numpy as np
import pytest

from oat_jax.evaluate import rollout
from oat_jax.export import limits

MS = 6.0  # of every call
PAIRS = [("lift", 0), ("push", 0), ("lift", 1), ("push", 1)]


class State(NamedTuple):
  observation: dict
  observation_mask: np.ndarray
  done: np.ndarray
  success: np.ndarray
  steps: np.ndarray
  restarts: np.ndarray


class FakeEnv:
  """Episode b succeeds after `needs[b]` steps, or ends without success after `max_steps`.

  In its step number i, counted over all calls, the episodes `dies[i]` lose their process.
  """

  def __init__(self, needs, max_steps=20, dies=()):
    self.needs, self.max_steps, self.dies = np.asarray(needs), max_steps, dict(dies)
    self.started, self.executed = [], []

  def _state(self):
    success = self.steps >= self.needs
    done = success | (self.steps >= self.max_steps)
    observation = {"state": self.steps[:, None, None].astype(np.float32)}
    mask = np.ones((len(self.steps), 1), bool)
    return State(observation, mask, done, success, self.steps.copy(), self.restarts.copy())

  def start(self, pairs):
    self.started.append(list(pairs))
    self.steps = np.zeros(len(pairs), np.int32)
    self.restarts = np.zeros(len(pairs), np.int32)
    return self._state()

  def step(self, actions_BRA, active_B):
    self.executed.append((actions_BRA.copy(), active_B.copy()))
    limit = np.minimum(self.needs, self.max_steps)
    self.steps = np.where(
      active_B, np.minimum(self.steps + actions_BRA.shape[1], limit), self.steps
    ).astype(np.int32)
    for b in self.dies.pop(len(self.executed), ()):
      self.steps[b] = 0
      self.restarts[b] += 1
    return self._state()


def counting_act(calls, C=8):
  """Chunk number i holds 100 i, 100 i + 1, ..., its steps counted; row b has b + 1 tokens."""

  def act(state, active_B, last_BA):
    calls.append((state, active_B.copy()))
    steps_C = 100 * len(calls) + np.arange(C)
    B = len(active_B)
    chunks_BCA = np.broadcast_to(steps_C[None, :, None], (B, C, 1)).astype(np.float32)
    return rollout.Acted(chunks_BCA, np.arange(B) + 1, MS)

  return act


def run(needs, replan=4, dies=(), **changes):
  env, calls = FakeEnv(needs, dies=dies), []
  arguments = {"replan": replan, "method": "policy", "num_tokens": 8, "progress": False} | changes
  found = rollout.run(env, counting_act(calls), PAIRS, **arguments)
  return env, calls, found


def test_who_acts_is_told_what_was_executed_last():
  """Row 1 dies in the second step and has nothing before it again; row 3 succeeds in the first."""
  last = []

  def act(state, active_B, last_BA):
    last.append(None if last_BA is None else last_BA.copy())
    value = 100.0 * len(last) + np.arange(4)[None, :, None]
    return rollout.Acted(np.broadcast_to(value, (4, 4, 1)).astype(np.float32))

  env = FakeEnv([9, 9, 9, 3], dies={2: (1,)}.items())
  rollout.run(env, act, PAIRS, replan=4, method="policy", progress=False)
  assert last[0] is None
  np.testing.assert_array_equal(last[1][:, 0], [103, 103, 103, 102])
  np.testing.assert_array_equal(last[2][:, 0], [203, np.nan, 203, 102])


def test_averages_are_held_to_the_limits():
  limit = limits.make([-1000.0], [1000.0], [0.5])
  env, calls, _ = run([12, 12, 12, 12], replan=4, ensemble=0.01, limits=limit)
  whole_BSA = np.concatenate([actions for actions, _ in env.executed], 1)
  assert np.abs(np.diff(whole_BSA, axis=1)).max() <= 0.5 + 1e-4
  free, _, _ = run([12, 12, 12, 12], replan=4, ensemble=0.01)
  assert np.abs(np.diff(np.concatenate([x for x, _ in free.executed], 1), axis=1)).max() > 1


def test_the_first_r_steps_of_every_chunk_are_executed():
  env, calls, _ = run([20, 20, 20, 20], replan=3)
  assert [list(actions[0, :, 0]) for actions, _ in env.executed[:2]] == [
    [100, 101, 102],
    [200, 201, 202],
  ]
  assert len(calls) == len(env.executed) == 7  # 20 steps in threes


def test_the_newest_state_is_what_is_acted_on():
  _, calls, _ = run([20, 20, 20, 20], replan=8)
  assert [int(state.steps.max()) for state, _ in calls] == [0, 8, 16]


def test_rows_say_what_happened():
  env, _, found = run([3, 99, 8, 20], replan=4)
  assert env.started == [PAIRS]
  assert found.rows == [
    rollout.Episode("policy", 8, 4, "lift", 0, True, 3, calls=1, tokens=1.0, policy_ms=MS),
    rollout.Episode("policy", 8, 4, "push", 0, False, 20, calls=5, tokens=2.0, policy_ms=MS),
    rollout.Episode("policy", 8, 4, "lift", 1, True, 8, calls=2, tokens=3.0, policy_ms=MS),
    rollout.Episode("policy", 8, 4, "push", 1, True, 20, calls=5, tokens=4.0, policy_ms=MS),
  ]
  assert found.restarts == [0, 0, 0, 0]
  assert json.loads(json.dumps(found.rows)) == [list(row) for row in found.rows]


def test_what_was_executed_is_kept_up_to_the_end_of_each_episode():
  _, _, found = run([3, 99, 8, 20], replan=4)
  steps = lambda calls, n: [100 * (i + 1) + r for i in range(calls) for r in range(4)][:n]
  assert [list(actions[:, 0]) for actions in found.actions] == [
    steps(1, 3),
    steps(5, 20),
    steps(2, 8),
    steps(5, 20),
  ]


def test_means_are_over_the_calls_of_an_episode_while_it_ran():
  """Tokens and milliseconds 1, 2, 3, ...: an episode of n calls has the mean (n + 1) / 2."""
  calls = itertools.count(1)

  def act(state, active_B, last_BA):
    i = next(calls)
    return rollout.Acted(np.zeros((4, 8, 1), np.float32), np.full(4, i), float(i))

  found = rollout.run(FakeEnv([3, 99, 8, 20]), act, PAIRS, replan=4, method="x", progress=False)
  assert [row.calls for row in found.rows] == [1, 5, 2, 5]
  assert [row.tokens for row in found.rows] == [1.0, 3.0, 1.5, 3.0]
  assert [row.policy_ms for row in found.rows] == [1.0, 3.0, 1.5, 3.0]


def test_nothing_of_a_try_whose_process_died_is_left():
  """In their third call two episodes lose their process; one had ended before, and stays so."""
  _, _, calm = run([3, 99, 8, 20], replan=4)
  env, _, found = run([3, 99, 8, 20], replan=4, dies={3: (1, 3), 4: (1,)})
  assert found.rows == calm.rows
  assert found.restarts == [0, 2, 0, 1]
  assert env.started == [PAIRS]
  # The last five of its nine calls are episode 1's.
  assert list(found.actions[1][:, 0]) == [100 * i + r for i in range(5, 10) for r in range(4)]


def test_an_ensemble_executes_the_average_of_overlapping_chunks():
  _, _, found = run([99] * 4, replan=4, ensemble=0.0)
  executed = found.actions[0][:, 0]
  assert list(executed[:4]) == [100, 101, 102, 103]
  # Steps 4..7 of chunk 1 and 0..3 of chunk 2.
  assert list(executed[4:8]) == [(104 + 200) / 2 + r for r in range(4)]


def test_an_episode_that_begins_again_forgets_its_chunks():
  _, _, found = run([99] * 4, replan=4, ensemble=0.0, dies={2: (1,)})
  assert list(found.actions[1][:4, 0]) == [300, 301, 302, 303]
  assert list(found.actions[0][8:12, 0]) == [(204 + 300) / 2 + r for r in range(4)]


def test_finished_episodes_are_neither_asked_nor_stepped():
  env, calls, _ = run([3, 99, 8, 20], replan=4)
  expected = [[True] * 4, [False, True, True, True]] + [[False, True, False, True]] * 3
  assert [list(active_B) for _, active_B in calls] == expected
  assert [list(active_B) for _, active_B in env.executed] == expected


def test_a_whole_chunk_may_be_executed():
  env, calls, _ = run([20, 20, 20, 20], replan=8)
  assert env.executed[0][0].shape == (4, 8, 1) and len(calls) == 3


def test_replan_beyond_the_chunk_is_an_error_with_both_numbers():
  with pytest.raises(ValueError, match="replan is 9, but a chunk has 8 steps"):
    run([20, 20, 20, 20], replan=9)


@pytest.mark.parametrize("replan", [0, -1])
def test_replan_below_one_is_an_error_before_anything_starts(replan):
  env = FakeEnv([3] * 4)
  with pytest.raises(ValueError, match=f"replan is {replan}; it must be at least 1"):
    rollout.run(env, counting_act([]), PAIRS, replan=replan, method="policy")
  assert not env.started


def test_every_task_is_run_on_the_same_seeds():
  assert rollout.assignments(("lift", "push"), 2, 50) == [
    ("lift", 50),
    ("push", 50),
    ("lift", 51),
    ("push", 51),
  ]


def test_latency_is_of_warm_calls(monkeypatch):
  """A clock that only the calls move on: the first time 1 s each, then 2, 3 and 7 ms."""
  now, took = [0.0], [1.0, 1.0, 1.0, 0.002, 0.003, 0.007]

  def act():
    now[0] += took.pop(0)

  monkeypatch.setattr(rollout.time, "perf_counter", lambda: now[0])
  found = rollout.latency_ms([act] * 3)
  assert found == pytest.approx({"mean": 4.0, "p50": 3.0, "p95": 6.6}) and not took
