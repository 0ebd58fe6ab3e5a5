"""Runs of a sweep side by side on this machine."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import sweeps
import tiny

from oat_jax.scaling import local
from oat_jax.scaling import sweep


@pytest.fixture(autouse=True)
def often(monkeypatch):
  monkeypatch.setattr(local, "POLL_S", 0.05)


def test_all_runs_are_run_once_the_costliest_first(tmp_path, capsys):
  runs = sweeps.expand(tmp_path)
  command = sweeps.plan(tmp_path, runs)
  assert local.run(runs, tmp_path, command, jobs=2) == {}
  started = sweeps.starts(tmp_path)
  assert sorted(started) == sorted(run.name for run in runs)
  assert {name.partition("_")[0] for name in started[:2]} == {"large"}
  assert all(state.done for state in sweep.states(runs))
  assert "large_steps6_seed0: mse_4" in capsys.readouterr().out
  assert local.run(runs, tmp_path, command, jobs=2) == {}
  assert sweeps.starts(tmp_path) == started
  log = (tmp_path / "logs" / "small_steps6_seed0.log").read_text()
  assert log.startswith("$ ") and "--config=tiny.py:base,small" in log


def test_a_run_that_fails_is_tried_again_up_to_a_limit(tmp_path, capsys):
  runs = sweeps.expand(tmp_path)
  ends = {"small_steps6_seed0": [1, 0], "large_steps6_seed1": [3]}
  failed = local.run(runs, tmp_path, sweeps.plan(tmp_path, runs, ends), jobs=2, retries=1)
  assert failed == {"large_steps6_seed1": "exit code 3, something went wrong"}
  count = sweeps.starts(tmp_path).count
  assert [count(run.name) for run in runs] == [2, 1, 1, 2]
  assert [state.done for state in sweep.states(runs)] == [True, True, True, False]
  said = capsys.readouterr().out
  assert "small_steps6_seed0: exit code 1, something went wrong; tried again (1 of 1)" in said
  assert "large_steps6_seed1: exit code 3, something went wrong; given up" in said


def test_a_run_that_ends_well_and_leaves_nothing_has_failed(tmp_path):
  runs = sweeps.expand(tmp_path, axes={"size": ("small",)})
  command = [sys.executable, "-c", "pass"]
  failed = local.run(runs, tmp_path, command, retries=0)
  assert failed == {"small": "it ended and is not done"}


def test_a_signal_ends_all_runs_and_says_how_to_go_on(tmp_path):
  runs = sweeps.expand(tmp_path)
  command = sweeps.plan(tmp_path, runs, seconds=60)

  def stop():
    while len(sweeps.starts(tmp_path)) < 2:
      time.sleep(0.05)
    time.sleep(0.2)  # until they heed signals
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=stop).start()
  begin = time.monotonic()
  with pytest.raises(KeyboardInterrupt, match="4 of 4 runs are not done.* the same command goes"):
    local.run(runs, tmp_path, command, jobs=2)
  assert time.monotonic() - begin < 30
  assert not any(state.running for state in sweep.states(runs))
  sweeps.plan(tmp_path, runs)
  assert local.run(runs, tmp_path, command, jobs=2) == {}


def test_a_sweep_that_was_killed_goes_on_and_repeats_nothing(tmp_path):
  """Its runs outlive it; the next call waits for them."""
  runs = sweeps.expand(tmp_path)
  command = sweeps.plan(tmp_path, runs, seconds=4)
  program = (
    "import pathlib, sweeps; from oat_jax.scaling import local; "
    f"out = pathlib.Path({str(tmp_path)!r}); "
    f"local.run(sweeps.expand(out), out, {command!r}, jobs=2)"
  )
  path = f"{tiny.ROOT}:{tiny.ROOT}/tests:{tiny.ROOT}/tests/scaling"
  killed = subprocess.Popen([sys.executable, "-c", program], env=tiny.environment(PYTHONPATH=path))
  while len(sweeps.starts(tmp_path)) < 2:
    time.sleep(0.05)
  killed.kill()
  killed.wait()
  sweeps.plan(tmp_path, runs)
  assert local.run(runs, tmp_path, command, jobs=2) == {}
  assert sorted(sweeps.starts(tmp_path)) == sorted(run.name for run in runs)


def test_two_sweeps_in_one_directory_are_refused(tmp_path):
  runs = sweeps.expand(tmp_path)
  with open(tmp_path / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match=f"another sweep runs in {tmp_path}"):
      local.run(runs, tmp_path, sweeps.plan(tmp_path, runs))
  assert sweeps.starts(tmp_path) == []


def test_runs_share_the_cores_and_the_gpus(monkeypatch):
  cores = sorted(os.sched_getaffinity(0))
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
  places = local._places(4)
  assert [place[1]["CUDA_VISIBLE_DEVICES"] for place in places] == ["2", "5", "2", "5"]
  assert {place[1]["XLA_PYTHON_CLIENT_MEM_FRACTION"] for place in places} == {"0.400"}
  assert set().union(*(place[0] for place in places)) == set(cores)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  assert [place[1] for place in local._places(2)] == [{}, {}]
