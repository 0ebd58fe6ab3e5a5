"""Many episodes over several processes are the same episodes."""

import itertools
import os
import pathlib
import signal

import numpy as np
import pytest

from oat_jax.envs import env as env_lib
from oat_jax.envs import process
from oat_jax.envs import vector
from oat_jax.evaluate import rollout

pytest.importorskip("metaworld", reason="the extra `sim` is not installed")

MT4 = "metaworld/mt4"
JOBS = [
  ("box-close", 0),
  ("coffee-pull", 1),
  ("box-close", 2),
  ("coffee-pull", 60),
  ("box-close", 0),
]
B = len(JOBS)


def chunks(rounds, R=5):
  return np.random.default_rng(0).uniform(-1, 1, (rounds, B, R, 4)).astype(np.float32)


def test_slots_that_share_a_simulator_equal_episodes_run_alone():
  actions = chunks(3)
  with vector.VectorEnv(MT4, 2, observation_steps=3) as envs:
    first = envs.start(JOBS)
    states = [envs.step(chunk) for chunk in actions]
    again = envs.start(JOBS[::-1])
  np.testing.assert_array_equal(first.observation_mask, [[False, False, True]] * B)
  np.testing.assert_array_equal(again.observation["state"], first.observation["state"][::-1])
  for b, (task, seed) in enumerate(JOBS):
    env = env_lib.make(MT4, task)
    alone = [env.reset(seed=seed)[0]["state"]]
    np.testing.assert_array_equal(first.observation["state"][b], alone * 3)
    for chunk, state in zip(actions, states):
      alone += [env.step(action)[0]["state"] for action in chunk[b]]
      np.testing.assert_array_equal(state.observation["state"][b], alone[-3:])
      assert state.observation_mask.all() and state.steps[b] == len(alone) - 1


def test_images_of_a_window_are_those_of_its_steps():
  """Only they are rendered; where an episode ends before them its window has the latest image."""
  camera = {"cameras": ("corner2",), "image_size": 24}
  actions = chunks(2)[:, :1]
  with vector.VectorEnv(MT4, 1, observation_steps=2, max_steps=12, **camera) as envs:
    states = [envs.start(JOBS[:1]), *(envs.step(chunk) for chunk in (*actions, actions[0]))]
  env = env_lib.make(MT4, JOBS[0][0], **camera)
  alone = [env.reset(seed=JOBS[0][1])[0]["image_corner2"]]
  for action in actions.reshape(-1, 4):
    alone.append(env.step(action)[0]["image_corner2"])
  for state, last in zip(states, (0, 5, 10)):
    images = np.stack(alone[max(last - 1, 0) : last + 1])
    np.testing.assert_array_equal(state.observation["image_corner2"][0][-len(images) :], images)
  assert (alone[4] != alone[5]).any() and states[3].done.all()
  np.testing.assert_array_equal(states[3].observation["image_corner2"][0], [alone[10]] * 2)


def test_expert_chunks_leave_no_trace_and_come_true():
  with vector.VectorEnv(MT4, 2) as envs:
    envs.start(JOBS)
    plain = [envs.step(chunk) for chunk in chunks(2)]
    envs.start(JOBS)
    envs.step(chunks(2)[0])
    expert = envs.expert_chunks(20)
    looked = envs.step(chunks(2)[1])
    np.testing.assert_array_equal(looked.observation["state"], plain[1].observation["state"])
    envs.start(JOBS)
    envs.step(chunks(2)[0])
    after = envs.step(expert)
  assert expert.shape == (B, 20, 4) and np.abs(expert).max() <= 1
  for b, (task, seed) in enumerate(JOBS):
    env = env_lib.make(MT4, task)
    env.reset(seed=seed)
    for action in chunks(2)[0, b]:
      observation = env.step(action)[0]
    policy = env.expert()
    for action in expert[b]:
      np.testing.assert_array_equal(policy.act(observation), action)
      observation = env.step(action)[0]
    np.testing.assert_array_equal(after.observation["state"][b, -1], observation["state"])


def test_episodes_end_at_success_or_the_horizon_and_then_wait():
  with vector.VectorEnv(MT4, 1, max_steps=120) as envs:
    state = envs.start([("coffee-pull", 0), ("coffee-pull", 1), ("box-close", 0)])
    waiting = envs.step(np.zeros((3, 4, 4)), np.array([True, True, False]))
    assert waiting.steps.tolist() == [4, 4, 0]
    np.testing.assert_array_equal(waiting.observation["state"][2], state.observation["state"][2])
    while not state.done[:2].all():
      expert = envs.expert_chunks(10, np.array([True, False, False]))
      assert not expert[1:].any()
      state = envs.step(expert, np.array([True, True, False]))
    assert state.success.tolist() == [True, False, False]
    assert state.done.tolist() == [True, True, False]
    assert state.steps[0] < 120 and state.steps[1] == 120
    after = envs.step(np.ones((3, 1, 4)))
    assert after.steps.tolist() == [*state.steps[:2], 1]
    np.testing.assert_array_equal(after.observation["state"][:2], state.observation["state"][:2])


def test_bad_input_is_named_and_does_no_harm():
  with vector.VectorEnv(MT4, 1) as envs:
    with pytest.raises(RuntimeError, match="start"):
      envs.step(np.zeros((1, 1, 4)))
    with pytest.raises(ValueError, match="no task 'push'"):
      envs.start([("push", 0)])
    envs.start([("box-close", 7)])
    with pytest.raises(ValueError, match="'box-close', seed 7.*NaN"):
      envs.step(np.full((1, 1, 4), np.nan))
    with pytest.raises(ValueError, match=r"expected \[1, R, 4\]"):
      envs.step(np.zeros((1, 4)))
    assert envs.step(np.zeros((1, 2, 4))).steps.tolist() == [2]
  with pytest.raises(RuntimeError, match="closed"):
    envs.start([("box-close", 7)])


def kill(envs, index=1):
  os.kill(envs._workers[index]._process.pid, signal.SIGKILL)


def greedy(envs, deaths=()):
  """A policy that looks at the state alone; before its calls `deaths` a process is killed."""
  weights_SA, calls = np.random.default_rng(0).normal(0, 3, (39, 4)), itertools.count()

  def act(state, active_B, last_BA):
    if next(calls) in deaths:
      kill(envs)
    action_BA = np.sin(state.observation["state"][:, -1] @ weights_SA)
    return rollout.Acted(np.cos(np.arange(8))[:, None] * action_BA[:, None])

  return act


def test_a_process_killed_in_a_rollout_changes_no_row(capfd):
  """Its episodes begin again; episodes of the other process go on."""
  how = {"replan": 5, "method": "greedy", "ensemble": 0.01, "progress": False}
  with vector.VectorEnv(MT4, 2, max_steps=30) as envs:
    calm = rollout.run(envs, greedy(envs), JOBS, **how)
    assert capfd.readouterr().err == ""
    shaken = rollout.run(envs, greedy(envs, deaths=(2, 5)), JOBS, **how)
  assert calm.restarts == [0] * B and shaken.restarts == [0, 2, 0, 2, 0]
  assert shaken.rows == calm.rows and [row.calls for row in calm.rows] == [6] * B
  for found, wanted in zip(shaken.actions, calm.actions):
    np.testing.assert_array_equal(found, wanted)
  printed = capfd.readouterr().err
  assert printed.count("was killed by SIGKILL in task 'coffee-pull', seed") == 2
  assert printed.count("begun again: 2 episodes") == 2


def test_a_process_that_dies_at_every_try_is_an_error_that_names_its_episode():
  with vector.VectorEnv(MT4, 2) as envs:
    envs.start(JOBS)
    with pytest.raises(RuntimeError, match="SIGKILL in task 'coffee-pull', seed 1;.*begun 3 times"):
      for _ in range(3):
        kill(envs)
        state = envs.step(np.zeros((B, 1, 4)))
        assert state.steps.tolist()[1::2] == [0, 0]
    assert state.restarts.tolist() == [0, 2, 0, 2, 0] and not envs._workers


def test_a_process_that_dies_while_the_expert_looks_ahead_begins_again_in_the_next_step():
  with vector.VectorEnv(MT4, 2) as envs:
    first = envs.start(JOBS)
    envs.step(np.ones((B, 3, 4)))
    kill(envs)
    chunks_BCA = envs.expert_chunks(4)
    assert chunks_BCA[::2].any() and not chunks_BCA[1::2].any()
    state = envs.step(np.zeros((B, 2, 4)))
    assert state.steps.tolist() == [5, 0, 5, 0, 5] and state.restarts.tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(
      state.observation["state"][1::2], first.observation["state"][1::2]
    )
    assert envs.step(np.zeros((B, 2, 4))).steps.tolist() == [7, 2, 7, 2, 7]


class Failing(vector.Slots):
  """A simulator whose own exception comes out of the first step that there ever is."""

  def step(self, slot, actions_RA):
    path = pathlib.Path(os.environ["FAILED_ONCE"])
    if not path.exists():
      path.touch()
      import mujoco

      raise mujoco.FatalError("mj_step: the stack overflowed")
    return super().step(slot, actions_RA)


def test_an_exception_of_the_simulator_is_as_a_death(monkeypatch, tmp_path, capfd):
  monkeypatch.setenv("FAILED_ONCE", str(tmp_path / "failed"))
  worker = process.Worker
  here = lambda target, *args: worker(f"{__name__}:Failing", *args)
  monkeypatch.setattr(process, "Worker", here)
  with vector.VectorEnv(MT4, 1) as envs:
    envs.start([("box-close", 0)])
    state = envs.step(np.zeros((1, 2, 4)))
    assert (state.steps.tolist(), state.restarts.tolist()) == ([0], [1])
    assert envs.step(np.zeros((1, 2, 4))).steps.tolist() == [2]
  printed = capfd.readouterr().err
  assert "failed in task 'box-close', seed 0 with FatalError: mj_step: the stack" in printed


def test_workers_import_no_jax():
  with vector.VectorEnv(MT4, 1) as envs:
    envs.start([("box-close", 0)])
    pid = envs._workers[0]._process.pid
    if not os.path.exists(f"/proc/{pid}/maps"):
      pytest.skip("needs /proc")
    with open(f"/proc/{pid}/maps") as maps:
      loaded = maps.read()
  assert "mujoco" in loaded and "jaxlib" not in loaded
