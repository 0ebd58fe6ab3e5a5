"""Two real processes train as one does, and stop and go on together."""

import contextlib
import math
import random
import shutil
import signal
import socket

import pytest
import tiny

from oat_jax.train import checkpoint


def free_port():
  """A port among those that jax chooses from for SLURM and Open MPI."""
  for port in random.sample(range(61440, 65535), 100):
    with contextlib.suppress(OSError), socket.socket() as probe:
      probe.bind(("127.0.0.1", port))
      return port
  raise OSError("no port is free")


def start_group(arguments, count=2, by="flags"):
  """Starts a group as a user or a launcher does, which tells its processes by variables."""
  port = free_port()
  group = []
  for i in range(count):
    flags, told = [], {}
    if by == "flags":
      flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}"]
    elif by == "slurm":
      told = {
        "SLURM_JOB_ID": str(port - 61440),  # jax takes the port from it, among the last 4096
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(i),
        "SLURM_LOCALID": str(i),
      }
    else:
      told = {
        "OMPI_MCA_orte_hnp_uri": f"{(port - 61440) * 4096}.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(i),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
      }
    group.append(tiny.start("launch/train.py", *arguments, *flags, **told))
  return group


def test_groups_equal_one(dataset, tmp_path):
  """Groups of 2 and 4, from the beginning and from a checkpoint of other numbers of them."""
  values = tiny.run_values("tokenizer", dataset, steps=4, evaluate_every=2, save_every=2)

  def run(name, mesh=(1, 1, 1), by=""):
    """Returns what processes of one run printed and its metrics, when all of them have ended."""
    arguments = tiny.arguments(values | {"mesh": mesh}, tmp_path / name)
    if by:
      group = start_group(arguments, math.prod(mesh), by)
    else:
      group = [tiny.start("launch/train.py", *arguments)]
    printed = []
    for code, out, err in map(tiny.finish, group):
      assert code == 0, f"{out}\n{err}"
      printed.append(out)
    rows = tiny.metrics(tmp_path / name)
    assert len(rows) == 6 and rows[-1]["step"] == 4
    for a, b in zip(one or rows, rows):
      assert b == pytest.approx(a, rel=1e-4)
      assert b.get("train/loss", 0) == pytest.approx(a.get("train/loss", 0), rel=1e-5)
    return printed, rows

  def half(name):
    """Copies a run as it was after step 2; returns the copy's name."""
    shutil.copytree(tmp_path / name, tmp_path / f"{name}_half")
    shutil.rmtree(tmp_path / f"{name}_half/checkpoints/4")
    return f"{name}_half"

  one: list = []
  one = run("one")[1]
  known = tiny.to_bits(checkpoint.load_params(tmp_path / "one")[1]["statistics"])
  for name, mesh, by in (("two", (2, 1, 1), "slurm"), ("four", (2, 1, 2), "flags")):
    run(name, mesh, by)
    step, params = checkpoint.load_params(tmp_path / name)
    assert step == 4 and tiny.to_bits(params["statistics"]) == known
  # From the checkpoint of step 2 another number of processes goes on with the same stream.
  for name, mesh, by in (("one", (1, 1, 2), "mpi"), ("four", (1, 1, 1), "")):
    printed, _ = run(half(name), mesh, by)
    said = ["at step 2\n" in out for out in printed]
    assert said == [True] + [False] * (len(printed) - 1), printed  # one says it for all


def test_sigterm_to_one_process_stops_both_and_they_go_on_bit_for_bit(dataset, tmp_path):
  values = tiny.run_values(
    "tokenizer", dataset, mesh=(2, 1, 1), steps=60, log_every=5, evaluate_every=60, save_every=60
  )
  whole, parts = (tiny.arguments(values, tmp_path / name) for name in ("whole", "parts"))
  uninterrupted, stopped = start_group(whole), start_group(parts)
  for line in stopped[0].stdout:
    if "loss" in line:
      break
  stopped[1].send_signal(signal.SIGTERM)
  for process in stopped:
    code, _, err = tiny.finish(process)
    assert code == 130 and "stopped by a signal at step" in err, err
  step, _ = checkpoint.load_params(tmp_path / "parts")
  assert f"at step {step};" in err and 5 <= step < 60
  for process in start_group(parts) + uninterrupted:
    code, _, err = tiny.finish(process)
    assert code == 0, err
  ends = [checkpoint.load_params(tmp_path / name) for name in ("whole", "parts")]
  assert ends[0][0] == ends[1][0] == 60
  assert tiny.to_bits(ends[0][1]) == tiny.to_bits(ends[1][1])


def test_a_group_that_cannot_be_is_an_error(dataset, tmp_path):
  arguments = tiny.arguments(tiny.run_values("tokenizer", dataset), tmp_path / "run")
  flags = ["--num_processes=2", "--process_id=0"]
  code, _, err = tiny.command("launch/train.py", *arguments, *flags)
  assert code == 1 and len(err.splitlines()) == 1 and "needs --coordinator=HOST:PORT" in err
  assert not (tmp_path / "run").exists()
