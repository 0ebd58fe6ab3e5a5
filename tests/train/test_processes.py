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
    group.append(tiny.start("launch/train.py", *arguments, *flags, **tiny.quick(), **told))
  return group


@pytest.mark.parametrize(
  ("mesh", "by"), [((2, 1, 1), "slurm"), ((1, 1, 2), "mpi"), ((2, 1, 2), "flags")]
)
def test_a_group_equals_one(mesh, by, dataset, tmp_path):
  """Groups of 2 and 4."""
  start_two = lambda arguments: start_group(arguments, math.prod(mesh), by)
  values = tiny.run_values("tokenizer", dataset, steps=4, evaluate_every=2, save_every=2)
  alone = tiny.start("launch/train.py", *tiny.arguments(values, tmp_path / "one"), **tiny.quick())
  pair = start_two(tiny.arguments(values | {"mesh": mesh}, tmp_path / "two"))
  for process in (alone, *pair):
    code, out, err = tiny.finish(process)
    assert code == 0, f"{out}\n{err}"
  one, two = (tiny.metrics(tmp_path / name) for name in ("one", "two"))
  assert len(one) == len(two) == 6
  for a, b in zip(one, two):
    assert b == pytest.approx(a, rel=1e-4)
    assert b.get("train/loss", 0) == pytest.approx(a.get("train/loss", 0), rel=1e-5)
  step, params = checkpoint.load_params(tmp_path / "two")
  assert step == 4
  known = tiny.to_bits(checkpoint.load_params(tmp_path / "one")[1]["statistics"])
  assert tiny.to_bits(params["statistics"]) == known
  # From the checkpoint of step 2 the other number of processes goes on with the same stream.
  for name in ("one", "two"):
    shutil.copytree(tmp_path / name, tmp_path / f"{name}_half")
    shutil.rmtree(tmp_path / f"{name}_half/checkpoints/4")
  pair = start_two(tiny.arguments(values | {"mesh": mesh}, tmp_path / "one_half"))
  alone = tiny.start(
    "launch/train.py", *tiny.arguments(values, tmp_path / "two_half"), **tiny.quick()
  )
  for process in (alone, *pair):
    code, out, err = tiny.finish(process)
    assert code == 0, f"{out}\n{err}"
    assert ("at step 2\n" in out) == (process in (alone, pair[0])), out  # one says it for all
  for name in ("one_half", "two_half"):
    for a, b in zip(one, tiny.metrics(tmp_path / name), strict=True):
      assert b == pytest.approx(a, rel=1e-4)


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


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--num_processes=2", "--process_id=0"], "needs --coordinator=HOST:PORT"),
    (["--num_processes=2", "--process_id=2"], "--process_id=2 is outside 0..1"),
    (["--num_processes=2"], "--process_id=-1 is outside 0..1"),
    (["--process_id=1"], "--process_id is given without --num_processes"),
    (["--num_processes=2", "--distributed"], "leaves to jax what --num_processes says"),
  ],
)
def test_a_group_that_cannot_be_is_an_error(flags, message, dataset, tmp_path):
  arguments = tiny.arguments(tiny.run_values("tokenizer", dataset), tmp_path / "run")
  code, _, err = tiny.command("launch/train.py", *arguments, *flags)
  assert code == 1 and len(err.splitlines()) == 1 and message in err
  assert not (tmp_path / "run").exists()
