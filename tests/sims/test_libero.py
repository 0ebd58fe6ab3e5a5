"""LIBERO's own scenes behind the contract, in the environment that `make sim-libero` makes."""

import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest

from oat_jax.envs import env as env_lib
from oat_jax.envs import vector

if importlib.util.find_spec("libero") is None:
  pytest.skip("`make sim-libero` makes an environment with LIBERO", allow_module_level=True)
room = importlib.import_module("oat_jax.envs.libero")

SUITES = ("libero/spatial", "libero/object", "libero/goal", "libero/10", "libero/90")
STOVE = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it"
DRAWER = "open_the_middle_drawer_of_the_cabinet"
# A kitchen with a stove that shows whether it is on, a table with a cabinet, the floor.
EPISODES = [("libero/10", STOVE), ("libero/goal", DRAWER), ("libero/object", None)]
CAMERAS = ("agentview", "robot0_eye_in_hand")


def make(suite, task=None, *args):
  return env_lib.make(suite, task or env_lib.suite(suite).tasks[0], *args)


@pytest.fixture(scope="module")
def goal():
  return make("libero/goal", DRAWER)


def run(env, actions):
  return [env.step(action)[0]["state"] for action in actions]


def random_actions(steps, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (steps, 7)).astype(np.float32)


def test_tasks_and_sentences_are_liberos_own(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))  # to load initial states
  benchmark = importlib.import_module("libero.libero.benchmark")
  for name in SUITES:
    suite, own = env_lib.suite(name), benchmark.get_benchmark(name.replace("/", "_"))()
    assert suite.tasks == tuple(own.get_task_names())
    assert [suite.instructions[task.name] for task in own.tasks] == [t.language for t in own.tasks]
    assert suite.name == name and len(suite.tasks) == (90 if name == "libero/90" else 10)


def test_every_task_has_its_scene_and_50_initial_states():
  for name in SUITES:
    folder = name.replace("/", "_")
    for task in env_lib.suite(name).tasks:
      assert (room._FILES / "bddl_files" / folder / f"{task}.bddl").exists()
      states = room.init_states(room._FILES / "init_files" / folder / f"{task}.pruned_init")
      assert states.shape[0] == 50 and states.dtype == np.float64 and np.isfinite(states).all()
      assert len(np.unique(states, axis=0)) == 50


def test_a_file_of_initial_states_runs_no_code(tmp_path):
  class Evil:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "made"),)

  def write(name, value):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
      archive.writestr("archive/data.pkl", pickle.dumps(value))
    return tmp_path / name

  with pytest.raises(ValueError, match="asks for posix.mkdir; only arrays"):
    room.init_states(write("evil", Evil()))
  assert not (tmp_path / "made").exists()
  with pytest.raises(ValueError, match="expected an array of 50 initial states, found list"):
    room.init_states(write("list", [1, 2]))


@pytest.mark.parametrize("suite, task", EPISODES)
def test_an_episode_repeats_and_comes_back_from_a_snapshot(suite, task):
  env, other = make(suite, task), make(suite, task)
  actions = random_actions(25)
  assert env.observation_space.contains(env.reset(seed=3)[0])
  first = [env.reset(seed=3)[0]["state"], *run(env, actions)]
  snapshot = pickle.loads(pickle.dumps(env.snapshot()))
  want, after = run(env, random_actions(20, 1)), env.snapshot()
  env.reset(seed=60)
  run(env, actions)  # another episode in between leaves no trace
  np.testing.assert_array_equal([env.reset(seed=3)[0]["state"], *run(env, actions)], first)
  for either in (env, other):  # the other one was never reset
    either.restore(snapshot)
    np.testing.assert_array_equal(run(either, random_actions(20, 1)), want)
    # Observations are rounded to float32: small departures show only in the physics.
    np.testing.assert_array_equal(either.snapshot().physics, after.physics)
    assert either.snapshot().steps == 45
  assert not np.array_equal(env.reset(seed=4)[0]["state"], first[0])


def test_an_episode_is_that_of_a_simulator_made_anew(goal):
  """LIBERO's evaluations load the scene again for every episode; here it is kept."""
  bddl = room._FILES / "bddl_files/libero_goal" / f"{DRAWER}.bddl"
  fresh = room.env_wrapper.ControlEnv(
    str(bddl), use_camera_obs=False, has_offscreen_renderer=False, hard_reset=True
  )
  goal.reset(seed=7)
  np.random.seed(7)
  fresh.env.reset()
  fresh.set_init_state(goal._init_states[7])
  for _ in range(10):
    fresh.step([0] * 6 + [-1])
  for action in random_actions(15):
    goal.step(action)
    fresh.step(action)
  np.testing.assert_array_equal(fresh.get_sim_state(), goal._inner.sim.get_state().flatten())


def test_the_first_observation_is_of_a_settled_scene(goal):
  goal.reset(seed=2)
  data = goal._inner.sim.data
  assert data.time == pytest.approx(10 / 20)
  arm, objects = np.abs(data.qvel[:9]), np.abs(data.qvel[9:])
  assert arm.max() < 0.05 and objects.max() < 0.05
  begun = goal._init_states[2]
  moved = np.abs(data.qpos - begun[1 : 1 + len(data.qpos)])
  assert moved.max() > 1e-3  # it had to


def test_the_state_is_hand_axis_angle_fingers(goal):
  goal.reset(seed=1)
  state_S = goal.step(np.array([0.5, -0.5, 0.3, 0.2, 0.4, -0.6, -1]))[0]["state"]
  body = goal._inner.sim.model.body_name2id("robot0_right_hand")
  turn = goal._inner.sim.data.body_xmat[body].reshape(3, 3)
  angle = np.linalg.norm(state_S[3:6])
  axis = state_S[3:6] / angle
  K = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
  rodrigues = np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K
  np.testing.assert_allclose(rodrigues, turn, atol=1e-4)
  site = goal._inner.sim.data.get_site_xpos("gripper0_right_grip_site")
  np.testing.assert_allclose(state_S[:3], site, atol=1e-6)
  assert 0 < state_S[6] <= 0.0401 and -0.0401 <= state_S[7] < 0


def test_actions_move_the_hand_along_the_worlds_axes_and_close_the_gripper(goal):
  before = goal.reset(seed=1)[0]["state"]
  for axis in range(3):
    begun = goal.reset(seed=1)[0]["state"]
    action = np.zeros(7)
    action[axis], action[6] = 0.5, -1
    for _ in range(5):
      state = goal.step(action)[0]["state"]
    moved = state[:3] - begun[:3]
    assert moved[axis] > 0.02 and np.abs(np.delete(moved, axis)).max() < 0.01
    assert state[6] - state[7] == pytest.approx(before[6] - before[7], abs=5e-3)
  for _ in range(10):
    state = goal.step(np.array([0, 0, 0, 0, 0, 0, 1]))[0]["state"]
  assert state[6] - state[7] < 0.02


def test_success_is_liberos_own_check(goal):
  goal.reset(seed=0)
  still = np.array([0, 0, 0, 0, 0, 0, -1])
  _, reward, terminated, truncated, info = goal.step(still)
  assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
  before = goal.snapshot()
  joint = "wooden_cabinet_1_middle_level"
  goal._inner.sim.data.set_joint_qpos(
    joint, goal._inner.sim.model.jnt_range[goal._inner.sim.model.joint_name2id(joint)].min()
  )
  assert goal.step(still)[1:3] == (1.0, True)
  goal.blind = True
  assert goal.step(still)[1:3] == (0.0, False)
  goal.blind = False
  assert goal.step(still)[1:3] == (1.0, True)
  goal.restore(before)
  assert goal.step(still)[1:3] == (0.0, False)
  goal._steps = goal.suite.max_steps - 1
  assert goal.step(still)[3] and goal.suite.max_steps == 300


def test_images_are_liberos_own_turned_by_180_degrees():
  task = env_lib.suite("libero/10").tasks[2]
  try:
    env = env_lib.make("libero/10", task, CAMERAS, 64)
    observation, _ = env.reset(seed=0)
  except RuntimeError as error:
    pytest.skip(f"no off-screen OpenGL: {error}")
  own = room.env_wrapper.OffScreenRenderEnv(
    bddl_file_name=str(room._FILES / "bddl_files/libero_10" / f"{task}.bddl"),
    camera_heights=64,
    camera_widths=64,
  )
  own.env.reset()
  own.env.sim.model.body_pos[:] = env._inner.sim.model.body_pos
  own.env.sim.model.body_quat[:] = env._inner.sim.model.body_quat
  raw = own.regenerate_obs_from_state(env._inner.sim.get_state().flatten())
  env.renders = False
  without = env.step(np.zeros(7))[0]
  env.renders = True
  assert env.step(np.zeros(7))[0].keys() - without.keys() == {f"image_{c}" for c in CAMERAS}
  env.close()
  for camera in CAMERAS:
    image = observation[f"image_{camera}"]
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.std() > 20
    apart = np.abs(image.astype(int) - raw[f"{camera}_image"][::-1, ::-1])
    assert apart.mean() < 0.5, f"{camera}: {apart.mean()}"


def test_episodes_share_simulators_and_processes():
  tasks = env_lib.suite("libero/spatial").tasks[:2]
  jobs = [(tasks[0], 0), (tasks[1], 1), (tasks[0], 51)]
  chunks = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 7)).astype(np.float32)
  with vector.VectorEnv("libero/spatial", 1, observation_steps=2) as envs:
    envs.start(jobs)
    states = [envs.step(chunk) for chunk in chunks]
  for b, (task, seed) in enumerate(jobs):
    env = make("libero/spatial", task)
    env.reset(seed=seed)
    alone = [run(env, chunk[b])[-2:] for chunk in chunks]
    for state, want in zip(states, alone):
      np.testing.assert_array_equal(state.observation["state"][b], want)
  assert not states[-1].done.any()
  with pytest.raises(ValueError, match="no scripted expert"):
    with vector.VectorEnv("libero/spatial", 1) as envs:
      envs.start(jobs[:1])
      envs.expert_chunks(4)


def test_bad_input_is_named(goal, monkeypatch):
  with pytest.raises(ValueError, match="no task 'open'; its tasks are open_the_middle_drawer"):
    make("libero/goal", "open")
  with pytest.raises(ValueError, match="no camera 'corner2'; its cameras are .*agentview"):
    make("libero/goal", DRAWER, ("corner2",))
  with pytest.raises(ValueError, match="image_size is 0"):
    make("libero/goal", DRAWER, (), 0)
  goal.reset(seed=0)
  with pytest.raises(ValueError, match=r"shape \(4,\); expected \(7,\)"):
    goal.step(np.zeros(4))
  with pytest.raises(ValueError, match="step 0: action .* is not finite"):
    goal.step(np.full(7, np.nan))
  other = make("libero/object")
  for call in (lambda: other.step(np.zeros(7)), other.snapshot):
    with pytest.raises(RuntimeError, match="reset the environment before"):
      call()
  with pytest.raises(ValueError, match=f"of task '{DRAWER}'; this environment has"):
    other.restore(goal.snapshot())
  monkeypatch.setattr(room, "_NEEDED", ("nowhere.xml",))
  with pytest.raises(FileNotFoundError, match="(?s)in none of .*make sim-libero.*huggingface"):
    make("libero/goal", DRAWER)


def test_importing_asks_nothing_and_leaves_nothing_behind(tmp_path):
  code = (
    "import os, sys\nfrom oat_jax.envs import libero\nprint(os.environ.get('MUJOCO_GL'),"
    " 'torch' in sys.modules)"
  )
  environment = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"} | {"HOME": str(tmp_path)}
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == "None False\n" and done.stderr == "", done
  assert not (tmp_path / ".libero").exists()
