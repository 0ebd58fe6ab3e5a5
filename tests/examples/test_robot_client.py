"""A robot's loop against a fake robot and a fake server: on time, late, broken, and gone."""

import importlib.util
import threading
import time

import numpy as np
import pytest
import tiny

PATH = tiny.ROOT / "examples" / "robot_client.py"
LIMITS = {"low": [-1.0, 0.0], "high": [1.0, 1000.0], "rate": [0.5, 40.0]}
HORIZON, HZ = 16, 200


@pytest.fixture(scope="module")
def example():
  spec = importlib.util.spec_from_file_location("robot_client", PATH)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class Server:
  """Gives chunks that say which request they are of, and which step; slow or broken on request."""

  def __init__(self, seconds=lambda request: 0.0, limits=LIMITS):
    self.requests, self._seconds, self._limits = [], seconds, limits

  def get_server_metadata(self):
    return {"limits": self._limits, "tasks": [""], "observation": {"state": {"shape": ["B", 2, 5]}}}

  def infer(self, request):
    self.requests.append(request)
    time.sleep(self._seconds(len(self.requests)))
    step = float(request["state"][0])  # when it was observed
    actions_CA = np.zeros((HORIZON, 2), np.float32)
    actions_CA[:, 1] = step + np.arange(HORIZON)
    return {"actions": actions_CA}


class Robot:
  """Counts steps; what it is told to do at each."""

  def __init__(self):
    self.done, self.stopped = [], threading.Event()

  def observe(self):
    return {"state": np.full(5, len(self.done), np.float32), "task": ""}

  def send(self, action_A):
    assert not self.stopped.is_set()
    self.done.append(action_A)

  def hold(self):
    assert not self.stopped.is_set()
    self.done.append(None)

  def stop(self):
    self.stopped.set()


def test_every_step_has_the_action_that_was_meant_for_it(example):
  """Whenever a chunk comes, its first steps are skipped that the time is past."""
  robot, server = Robot(), Server(lambda request: 0.01)
  assert example.run(robot, server, hz=HZ, execute=8, lead=6, steps=80) == "done"
  sent = [(i, action_A) for i, action_A in enumerate(robot.done) if action_A is not None]
  assert len(sent) > 40 and not robot.stopped.is_set()
  for i, action_A in sent:
    assert action_A[1] == pytest.approx(i)
  assert len(server.requests) >= 5  # not more than 8 steps of each
  assert all(request["deadline_ms"] == 50 for request in server.requests)


def test_limits_hold_at_the_robot_too(example):
  limits = {"low": [-1.0, 3.0], "high": [1.0, 6.0], "rate": [0.5, 0.25]}
  robot, server = Robot(), Server(limits=limits)
  assert example.run(robot, server, hz=HZ, steps=60) == "done"
  sent = np.stack([action_A for action_A in robot.done if action_A is not None])
  assert sent[:, 1].min() >= 3 and sent[:, 1].max() <= 6
  assert np.abs(np.diff(sent[:, 1])).max() <= 0.25 + 1e-6
  told = [request["last_action"] for request in server.requests if "last_action" in request]
  assert told and any(np.allclose(told[0], action_A) for action_A in sent)


def test_while_a_chunk_is_late_the_robot_holds_and_goes_on(example):
  robot, server = Robot(), Server(lambda request: 0.06 if request == 2 else 0.0)
  assert example.run(robot, server, hz=HZ, execute=4, lead=2, hold_s=5, steps=120) == "done"
  first = next(i for i, action_A in enumerate(robot.done) if action_A is not None)
  late = [i for i, action_A in enumerate(robot.done) if action_A is None and i > first]
  assert late and max(late) < 119  # it held, and went on
  for i, action_A in enumerate(robot.done):  # never one that was meant for another step
    assert action_A is None or action_A[1] == pytest.approx(i)


def test_without_a_chunk_the_robot_stops(example):
  robot, server = Robot(), Server(lambda request: 0.0 if request == 1 else 3.0)
  begin = time.monotonic()
  assert example.run(robot, server, hz=HZ, execute=4, hold_s=0.1) == "no chunk for 0.1 s"
  assert robot.stopped.is_set() and time.monotonic() - begin < 60
  sent = [i for i, action_A in enumerate(robot.done) if action_A is not None]
  assert len(sent) <= 4 and robot.done[-1] is None


def test_a_server_that_fails_stops_the_robot(example):
  class Broken(Server):
    def infer(self, request):
      if len(self.requests) == 2:
        raise ConnectionError("gone")
      return super().infer(request)

  robot = Robot()
  assert example.run(robot, Broken(), hz=HZ, execute=4) == "the server failed: gone"
  assert robot.stopped.is_set()
