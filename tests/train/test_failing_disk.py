"""A full disk and a damaged checkpoint cost the steps since the last whole one, and no more."""

import contextlib
import json
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax.train import checkpoint
from oat_jax.train import loop
from oat_jax.train import metrics
from oat_jax.train import state as state_lib


def state(step):
  x = jax.random.normal(jax.random.key(step), (300, 300))
  return state_lib.TrainState(jnp.int32(step), jnp.int32(0), {"a": x}, {"a": x + 1}, {"m": x})


@contextlib.contextmanager
def full():
  """As a full disk: no file can grow beyond 20 kB."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(workdir):
  """Of checkpoints, largest first."""
  found = [path for path in workdir.rglob("*") if path.is_file()]
  return sorted(found, key=lambda path: -path.stat().st_size)


def test_what_a_full_disk_does_not_take_is_said_and_tried_again(tmp_path, capsys):
  with contextlib.closing(checkpoint.Checkpointer(tmp_path, 2)) as saved:
    saved.save(1, state(1), {"step": 1})
    assert saved.settle()
    with full():
      saved.save(2, state(2), {"step": 2})
      assert not saved.settle()
      assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]  # no remains
      saved.save(3, state(3), {"step": 3})
      assert not saved.settle()
    saved.save(4, state(4), {"step": 4})
    assert saved.settle()
    err = capsys.readouterr().err
  for step in (2, 3):
    assert f"checkpoint {step} could not be written" in err and "checkpoint 1 is kept" in err
  assert checkpoint.steps(tmp_path) == [1, 4]
  np.testing.assert_array_equal(checkpoint.load_params(tmp_path)[1]["a"], state(4).ema_params["a"])


def test_a_run_whose_last_checkpoint_is_not_written_says_so(dataset, tmp_path):
  """It trains on to its end; with room, the same command ends it."""
  config = tiny.run_config("tokenizer", dataset, steps=4, save_every=2)
  with (
    full(),
    pytest.raises(OSError, match="last checkpoint is not written; make room.*from step 0"),
  ):
    loop.train(config, tmp_path / "run")
  assert tiny.metrics(tmp_path / "run")[-1]["step"] == 4
  loop.train(config, tmp_path / "run")
  assert checkpoint.steps(tmp_path / "run")[-1] == 4


def test_metrics_that_a_full_disk_does_not_take_end_no_run(tmp_path, capsys):
  writer = metrics.Writer(tmp_path, 10, 0)
  (tmp_path / "metrics.jsonl").write_text("x" * 20_000)
  with full():
    writer.log(3, {"loss": 1.0}, "train", ("loss",))
  writer.log(4, {"loss": 1.0}, "train", ("loss",))
  writer.close()
  out, err = capsys.readouterr()
  assert "metrics of step 3 could not be written" in err and "[     3/10] train" in out


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_is_left_for_the_one_before(dataset, tmp_path, capsys, damage):
  config = lambda steps: tiny.run_config("tokenizer", dataset, steps=steps, save_every=2)
  run, whole = tmp_path / "run", tmp_path / "whole"
  loop.train(config(6), whole)
  loop.train(config(4), run)
  description = json.loads((run / "config.json").read_text())
  description["config"]["steps"] = 6  # as if it had been stopped at step 4
  (run / "config.json").write_text(json.dumps(description))
  victim = files(run / "checkpoints/4")[0]
  if damage == "missing":
    victim.unlink()
  else:
    os.truncate(victim, victim.stat().st_size // 2)
  loop.train(config(6), run)
  out, err = capsys.readouterr()
  assert "checkpoint 4 cannot be read" in err and "goes on from 2" in err
  assert f"resuming {run} at step 2" in out and (run / "unreadable/4").exists()
  one, other = (checkpoint.load_params(each)[1] for each in (run, whole))
  assert tiny.to_bits(one) == tiny.to_bits(other)


def test_where_no_checkpoint_can_be_read_all_are_left(tmp_path):
  with contextlib.closing(checkpoint.Checkpointer(tmp_path, 2)) as saved:
    for step in (1, 2):
      saved.save(step, state(step), {"step": step})
  for step in (1, 2):
    files(tmp_path / "checkpoints" / str(step))[0].unlink()
  before = tiny.listing(tmp_path)
  with pytest.raises(ValueError, match="none of its checkpoints can be read: 2: .*; 1: "):
    checkpoint.newest_readable(tmp_path)
  assert tiny.listing(tmp_path) == before
  assert checkpoint.newest_readable(tmp_path / "empty") == 0
