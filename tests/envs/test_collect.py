"""Collections are functions of their request: any number of processes, killed or not."""

import fcntl
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from oat_jax.envs import env as env_lib

pytest.importorskip("metaworld", reason="the extra `sim` is not installed")
tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `train` is not installed")

from oat_jax.data import write  # noqa: E402
from oat_jax.envs import collect as collect_lib  # noqa: E402
from oat_jax.envs import process  # noqa: E402

MT4 = "metaworld/mt4"
ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {"seed": 0, "noise": 0.1, "progress": False}


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
  out = tmp_path_factory.mktemp("collected") / "mt4"
  totals = collect_lib.collect(MT4, 3, out, processes=2, **SETTINGS)
  return out, totals


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_episodes(folder):
  features = tfds.builder_from_directory(str(folder)).info.features
  for path in sorted(folder.glob("*.tfrecord-*")):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack_from("<Q", data, at)
      episode = features.deserialize_example_np(data[at + 12 : at + 12 + length])
      yield {**episode, "steps": list(episode["steps"])}
      at += length + 16


def launch(*args, **kwargs):
  return subprocess.Popen(
    [sys.executable, str(ROOT / "launch" / "collect.py"), *args],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )


def test_the_number_of_processes_changes_nothing(collected, tmp_path):
  out, totals = collected
  assert collect_lib.collect(MT4, 3, tmp_path / "a", processes=1, **SETTINGS) == totals
  assert contents(tmp_path / "a") == contents(out)
  assert sorted(os.listdir(tmp_path)) == ["a"]
  assert all(n["successes"] == 3 for n in totals.values())
  # A failure among the attempts, or the order of seeds would go untested.
  assert sum(n["attempts"] for n in totals.values()) > 12
  assert json.loads((out / "collection.json").read_text())["totals"] == totals


def test_stored_episodes_replay_from_their_seed(collected):
  out, totals = collected
  envs = {task: env_lib.make(MT4, task) for task in totals}
  seeds = {task: [] for task in totals}
  for episode in read_episodes(out):
    metadata, steps = episode["episode_metadata"], episode["steps"]
    task, seed = metadata["task"].decode(), int(metadata["seed"])
    seeds[task].append(seed)
    assert metadata["success"] and metadata["noise"] == np.float32(0.1)
    observation, info = envs[task].reset(seed=seed)
    for i, step in enumerate(steps):
      last = i == len(steps) - 1
      assert not info["success"]
      np.testing.assert_array_equal(step["observation"]["state"], observation["state"])
      np.testing.assert_array_equal(
        step["observation"]["proprioception"], observation["proprioception"]
      )
      assert (step["is_first"], step["is_last"], step["is_terminal"]) == (i == 0, last, last)
      assert step["reward"] == float(last) and step["discount"] == 1
      assert step["language_instruction"].decode() == envs[task].suite.instructions[task]
      observation, _, _, _, info = envs[task].step(step["action"])
    assert info["success"]
  for task, n in totals.items():
    assert len(seeds[task]) == 3 and seeds[task] == sorted(seeds[task])
    assert seeds[task][-1] == n["attempts"] - 1


def test_noise_is_on_the_action_executed_and_has_its_own_seed():
  env = env_lib.make(MT4, "coffee-pull")
  noisy, again, clean = (collect_lib.demonstrate(env, 5, noise) for noise in (0.1, 0.1, 0.0))
  other = collect_lib.demonstrate(env, 6, 0.1)

  def difference(episode):
    expert = env.expert()
    return np.stack([s["action"] - expert.act(s["observation"]) for s in episode["steps"]])

  assert not difference(clean).any()
  np.testing.assert_array_equal(difference(noisy), difference(again))
  assert 0.05 < difference(noisy).std() < 0.1  # less than 0.1, for actions are clipped
  assert np.abs(np.stack([step["action"] for step in noisy["steps"]])).max() <= 1
  assert not np.array_equal(difference(noisy)[0], difference(other)[0])


def test_a_killed_collection_continues(collected, tmp_path, monkeypatch):
  want, totals = collected
  out = tmp_path / "mt4"
  flags = ("--episodes=3", "--noise=0.1", f"--out={out}", "--processes=2")
  killed = launch(*flags)
  deadline = time.monotonic() + 60
  while len(list(tmp_path.glob("mt4.partial/*/*.record"))) < 4:
    assert killed.poll() is None and time.monotonic() < deadline
    time.sleep(0.02)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()  # returns when its children are gone too: they hold its stderr
  assert not out.exists()
  done = {(path.parent.name, int(path.stem)) for path in tmp_path.glob("mt4.partial/*/*.*")}
  (tmp_path / "mt4.partial" / "box-close" / "00000009.123").write_bytes(b"half")
  submitted = []
  submit = process.Worker.submit
  monkeypatch.setattr(
    process.Worker,
    "submit",
    lambda worker, calls: (submitted.extend(c.args for c in calls), submit(worker, calls)),
  )
  assert collect_lib.collect(MT4, 3, out, processes=1, **SETTINGS) == totals
  assert contents(out) == contents(want)
  assert submitted and not done.intersection(submitted)
  assert sorted(os.listdir(tmp_path)) == ["mt4"]


def test_what_lies_in_out_is_respected(collected, tmp_path, capsys, monkeypatch):
  out, totals = collected
  monkeypatch.setattr(process, "Worker", None)  # nothing may be simulated here
  before = contents(out)
  assert collect_lib.collect(MT4, 3, out, **SETTINGS) == totals
  assert "holds this collection already" in capsys.readouterr().out
  with pytest.raises(FileExistsError, match="episodes 3 there, 4 asked for; noise 0.1 there, 0.2"):
    collect_lib.collect(MT4, 4, out, seed=0, noise=0.2)
  assert contents(out) == before
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(FileExistsError, match="not a collection"):
    collect_lib.collect(MT4, 3, tmp_path)
  partial = tmp_path / "b.partial"
  partial.mkdir()
  (partial / "request.json").write_text(json.dumps({"suite": MT4, "episodes": 9}))
  with pytest.raises(FileExistsError, match="episodes 9 there, 3 asked for"):
    collect_lib.collect(MT4, 3, tmp_path / "b")
  with open(partial / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError, match="another process is collecting"):
      collect_lib.collect(MT4, 3, tmp_path / "b")


@pytest.mark.parametrize(
  "change, message",
  [
    ({"suite_name": "metaworld/mt5"}, "no suite"),
    ({"episodes": 0}, "episodes is 0"),
    ({"noise": float("nan")}, "noise is nan"),
    ({"seed": -1}, "seed is -1"),
    ({"cameras": ("side",)}, "no camera 'side'"),
    ({"processes": 0}, "processes is 0"),
  ],
)
def test_bad_requests_write_nothing(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    collect_lib.collect(**{"suite_name": MT4, "episodes": 1, "out": tmp_path / "a", **change})
  assert not os.listdir(tmp_path)


def test_an_expert_that_never_succeeds_is_an_error():
  with pytest.raises(RuntimeError, match="0 of 50 attempts at noise 9.0"):
    collect_lib._check_expert("box-close", 0, 50, 9.0)
  collect_lib._check_expert("box-close", 0, 49, 9.0)
  collect_lib._check_expert("box-close", 1, 50, 9.0)


def test_an_users_error_is_one_line(tmp_path):
  child = launch("--suite=metaworld/mt5", f"--out={tmp_path / 'a'}")
  _, stderr = child.communicate(timeout=60)
  assert child.returncode == 1
  assert stderr.startswith("ValueError: there is no suite 'metaworld/mt5'")
  assert stderr.count("\n") == 1
  assert not os.listdir(tmp_path)


def test_images_are_stored(tmp_path):
  try:
    env = env_lib.make(MT4, "coffee-pull", ("corner2",), 32)
    episode = collect_lib.demonstrate(env, 0, 0.0)
  except RuntimeError as error:
    pytest.skip(f"no off-screen OpenGL: {error}")
  features = collect_lib.features(env.suite, ("corner2",), 32)
  write.write(tmp_path / "a", features, [episode], name="images")
  (stored,) = read_episodes(tmp_path / "a")
  for got, want in zip(stored["steps"], episode["steps"], strict=True):
    image = got["observation"]["image_corner2"].astype(int)
    assert np.abs(image - want["observation"]["image_corner2"]).mean() < 6
  env.close()
