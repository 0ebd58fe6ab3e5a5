"""Receding-horizon episodes: which actions are executed, who is asked, what the rows say."""

from typing import NamedTuple

import numpy as np
import pytest

from oat_jax.evaluate import rollout

PAIRS = [("lift", 0), ("push", 0), ("lift", 1), ("push", 1)]


class State(NamedTuple):
  observation: dict
  observation_mask: np.ndarray
  done: np.ndarray
  success: np.ndarray
  steps: np.ndarray


class FakeEnv:
  """Episode b succeeds after `needs[b]` steps, or ends without success after `max_steps`."""

  def __init__(self, needs, max_steps=20):
    self.needs, self.max_steps = np.asarray(needs), max_steps
    self.started, self.executed = [], []

  def _state(self):
    success = self.steps >= self.needs
    done = success | (self.steps >= self.max_steps)
    observation = {"state": self.steps[:, None, None].astype(np.float32)}
    mask = np.ones((len(self.steps), 1), bool)
    return State(observation, mask, done, success, self.steps.copy())

  def start(self, pairs):
    self.started.append(list(pairs))
    self.steps = np.zeros(len(pairs), np.int32)
    return self._state()

  def step(self, actions_BRA, active_B):
    self.executed.append((actions_BRA.copy(), active_B.copy()))
    limit = np.minimum(self.needs, self.max_steps)
    self.steps = np.where(
      active_B, np.minimum(self.steps + actions_BRA.shape[1], limit), self.steps
    ).astype(np.int32)
    return self._state()


def counting_act(calls, C=8):
  """Chunk number i holds 100 i, 100 i + 1, ..., its steps counted."""

  def act(state, active_B):
    calls.append((state, active_B.copy()))
    steps_C = 100 * len(calls) + np.arange(C)
    return np.broadcast_to(steps_C[None, :, None], (len(active_B), C, 1)).astype(np.float32)

  return act


def run(needs, replan=4, **changes):
  env, calls = FakeEnv(needs), []
  arguments = {"replan": replan, "method": "policy", "num_tokens": 8, "progress": False} | changes
  found = rollout.run(env, counting_act(calls), PAIRS, **arguments)
  return env, calls, found


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
  assert found == [
    rollout.Episode("policy", 8, 4, "lift", 0, True, 3),
    rollout.Episode("policy", 8, 4, "push", 0, False, 20),
    rollout.Episode("policy", 8, 4, "lift", 1, True, 8),
    rollout.Episode("policy", 8, 4, "push", 1, True, 20),
  ]
  assert all(type(row.success) is bool and type(row.steps) is int for row in found)


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
  """A clock that only the call moves on: 3 ms a call, but 1 s for the first five."""
  now, calls = [0.0], []

  def act():
    calls.append(None)
    now[0] += 1.0 if len(calls) <= 5 else 0.003

  monkeypatch.setattr(rollout.time, "perf_counter", lambda: now[0])
  found = rollout.latency_ms(act, repeats=10)
  assert found == pytest.approx({"p50": 3.0, "p95": 3.0}) and len(calls) == 15
