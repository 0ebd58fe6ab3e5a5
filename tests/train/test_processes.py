"""Two real processes train as one does."""

import socket

import pytest
import tiny

from oat_jax.train import checkpoint


def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


@pytest.mark.parametrize("mesh", [(2, 1, 1), (1, 1, 2)])
def test_two_processes_equal_one(mesh, dataset, tmp_path):
  values = tiny.run_values("tokenizer", dataset, steps=4, evaluate_every=2, save_every=2)
  alone = tiny.start("launch/train.py", *tiny.arguments(values, tmp_path / "one"), **tiny.QUICK)
  arguments = tiny.arguments(values | {"mesh": mesh}, tmp_path / "two")
  arguments += [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
  pair = [
    tiny.start("launch/train.py", *arguments, f"--process_id={i}", **tiny.QUICK) for i in (0, 1)
  ]
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


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--num_processes=2"], "needs --coordinator=HOST:PORT"),
    (["--num_processes=2", "--process_id=2"], "--process_id=2 is outside 0..1"),
  ],
)
def test_a_group_that_cannot_be_is_an_error(flags, message, dataset, tmp_path):
  arguments = tiny.arguments(tiny.run_values("tokenizer", dataset), tmp_path / "run")
  code, _, err = tiny.command("launch/train.py", *arguments, *flags)
  assert code == 1 and len(err.splitlines()) == 1 and message in err
  assert not (tmp_path / "run").exists()
