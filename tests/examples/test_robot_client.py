"""A robot's loop against a fake robot and fake servers: on time, late, broken, wrong, and gone."""

import importlib.util
import time
import types

import numpy as np
import pytest
import tiny

PATH = tiny.ROOT / "examples" / "robot_client.py"
LIMITS = {"low": [-1.0, 0.0], "high": [1.0, 1000.0], "rate": [0.5, 40.0]}
HORIZON = 16
# Slow enough for a busy machine to keep up with; what is asserted does not hang on its speed.
PACE = {"hz": 50, "execute": 8, "lead": 6, "deadline_ms": 200.0, "hold_s": 5.0}


@pytest.fixture(scope="module")
def example():
  spec = importlib.util.spec_from_file_location("robot_client", PATH)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class Server:
  """Gives chunks that say for which step each action was meant; slow or broken on request."""

  def __init__(self, seconds=lambda request: 0.0, limits=LIMITS, moments=1):
    self.requests, self._seconds, self._limits, self._moments = [], seconds, limits, moments

  def get_server_metadata(self):
    return {"limits": self._limits, "observation_steps": self._moments}

  def infer(self, request):
    self.requests.append(request)
    time.sleep(self._seconds(len(self.requests)))
    actions_CA = np.zeros((HORIZON, 2), np.float32)
    actions_CA[:, 1] = request["state"][-1, 0] + np.arange(HORIZON)
    return {"actions": actions_CA}


class Robot:
  """Moves by one step with each action; remembers when, and of which observation."""

  def __init__(self, seconds=lambda observation: 0.0):
    self.sent, self.times, self.seen, self.held, self.stops = [], [], [], 0, 0
    self._seconds = seconds

  def observe(self):
    time.sleep(self._seconds(len(self.seen)))
    self.seen.append(time.monotonic())
    return {"state": np.full(5, len(self.sent), np.float32), "task": ""}

  def send(self, action_A):
    assert not self.stops and np.isfinite(action_A).all()
    self.sent.append(action_A)
    self.times.append(time.monotonic())

  def hold(self):
    assert not self.stops
    self.held += 1

  def stop(self):
    self.stops += 1


def meant_for(robot):
  """Whether every step had the action that was meant for it."""
  return [action_A[1] for action_A in robot.sent] == pytest.approx(list(range(len(robot.sent))))


def test_observing_is_part_of_a_step(example, monkeypatch):
  """A clock that only sleeping and observing, 12 ms of 20, move."""
  now, robot, server = [0.0], Robot(), Server(moments=2)
  tick = lambda seconds: now.__setitem__(0, now[0] + seconds)
  clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=tick)
  monkeypatch.setattr(example, "time", clock)
  see = robot.observe
  monkeypatch.setattr(robot, "observe", lambda: tick(0.012) or see())
  assert example.run(robot, server, steps=50, **PACE) == "done"
  assert now[0] == pytest.approx(1.0) and len(robot.seen) == 50


def test_every_step_has_the_action_that_was_meant_for_it(example):
  robot, server = Robot(), Server(lambda request: 0.02)
  assert example.run(robot, server, steps=100, **PACE) == "done"
  assert len(robot.sent) > 50 and meant_for(robot) and robot.stops == 1
  assert len(server.requests) >= len(robot.sent) / 8  # not more than 8 steps of each
  assert all(request["deadline_ms"] == 200 for request in server.requests)


def test_a_request_holds_the_moments_of_consecutive_steps(example):
  robot, server = Robot(), Server(lambda request: 0.02, moments=3)
  assert example.run(robot, server, steps=100, **PACE) == "done"
  assert meant_for(robot) and len(robot.seen) == 100
  states = [request["state"] for request in server.requests]
  assert len(states) > 6 and states[0].shape == (1, 5)
  assert sum(x.shape == (3, 5) for x in states) > len(states) / 2  # a busy machine may lose some
  for x in states:
    assert set(np.diff(x[:, 0])) <= {0, 1}  # a step was executed between two, or the robot held
  assert any((np.diff(x[:, 0]) == 1).all() for x in states if len(x) == 3)


def test_moments_that_are_not_consecutive_are_not_sent_together(example):
  moments = example.Moments(2, gap_s=0.2)
  see = lambda value: moments.see({"state": np.full(5, value), "image_top": value, "task": "a"})
  see(1)
  see(2)
  see(3)
  assert moments.observation()["state"][:, 0].tolist() == [2, 3]
  assert moments.observation()["image_top"].tolist() == [2, 3]
  assert moments.observation()["task"] == "a"
  time.sleep(0.3)
  see(4)
  assert moments.observation()["state"][:, 0].tolist() == [4]


def test_a_policy_of_one_moment_observes_when_it_is_asked_only(example):
  robot, server = Robot(), Server()
  assert example.run(robot, server, steps=60, **PACE) == "done"
  assert len(robot.seen) == len(server.requests) < 15
  assert all(request["state"].shape == (1, 5) for request in server.requests)


def test_limits_hold_at_the_robot_too(example):
  limits = {"low": [-1.0, 3.0], "high": [1.0, 6.0], "rate": [0.5, 0.25]}
  robot, server = Robot(), Server(limits=limits)
  assert example.run(robot, server, steps=60, **PACE) == "done"
  sent = np.stack(robot.sent)
  assert sent[:, 1].min() >= 3 and sent[:, 1].max() <= 6
  assert np.abs(np.diff(sent[:, 1])).max() <= 0.25 + 1e-6
  told = [request["last_action"] for request in server.requests if "last_action" in request]
  assert told and any(np.allclose(told[0], action_A) for action_A in sent)


def test_a_chunk_that_comes_too_late_is_thrown_away_and_the_robot_holds(example):
  robot, server = Robot(), Server(lambda request: 0.5 if request == 2 else 0.0)
  assert example.run(robot, server, steps=100, **PACE) == "done"
  assert robot.held > 10 and len(robot.sent) > 16 and meant_for(robot)
  pauses = np.diff(robot.times)
  assert pauses.max() > 0.3  # held while it was late
  # And no action is older than the age at which a chunk is taken, and the 8 steps of it.
  last = lambda when: max(seen for seen in robot.seen if seen <= when)
  assert all(when - last(when) < 0.22 + 8 / 50 + 0.1 for when in robot.times)


def test_nothing_old_is_executed_after_the_loop_stood_still(example):
  """A camera that takes a second: what was left of the chunk is past by then."""
  robot = Robot(lambda observation: 1.0 if observation == 1 else 0.0)
  assert example.run(robot, Server(), steps=60, **PACE) == "done"
  assert meant_for(robot) and robot.held >= 1
  begin = robot.seen[1] - 1.0
  assert not [when for when in robot.times if begin + 0.45 < when <= robot.seen[1]]
  after = [when for when in robot.times if when > robot.seen[1]]
  assert after and robot.sent[len(robot.times) - len(after)][1] == len(robot.times) - len(after)


def test_without_a_chunk_the_robot_stops(example):
  robot, server = Robot(), Server(lambda request: 0.0 if request == 1 else 30.0)
  begin = time.monotonic()
  assert example.run(robot, server, **(PACE | {"hold_s": 0.2})) == "no chunk for 0.2 s"
  assert robot.stops == 1 and len(robot.sent) <= 8 and time.monotonic() - begin < 20


@pytest.mark.parametrize(
  ("answer", "message"),
  [
    (ConnectionError("gone"), "the server failed: gone"),
    ({}, "the server failed: 'actions'"),
    ({"actions": "text"}, "the server failed: could not convert string"),
    ({"actions": np.zeros(2)}, "the server's answer is no chunk"),
    ({"actions": np.full((HORIZON, 2), np.nan)}, "the server's answer is no chunk"),
    ({"actions": np.full((HORIZON, 2), np.inf)}, "the server's answer is no chunk"),
  ],
)
def test_an_answer_that_is_no_chunk_stops_the_robot(answer, message, example):
  class Broken(Server):
    def infer(self, request):
      if len(self.requests) < 1:
        return super().infer(request)
      if isinstance(answer, Exception):
        raise answer
      return answer

  robot = Robot()
  assert example.run(robot, Broken(), **PACE).startswith(message)
  assert robot.stops == 1 and len(robot.sent) <= 8


def test_whatever_breaks_the_loop_stops_the_robot(example):
  class Interrupted(Robot):
    def observe(self):
      if self.seen:
        raise KeyboardInterrupt
      return super().observe()

  robot = Interrupted()
  with pytest.raises(KeyboardInterrupt):
    example.run(robot, Server(), **PACE)
  assert robot.stops == 1
