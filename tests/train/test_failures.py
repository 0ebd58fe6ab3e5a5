"""Steps that are not finite: passed over up to a limit, and what led to the last one is kept."""

import jax
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.train import checkpoint
from oat_jax.train import loop

MODEL = {"observation": tiny.OBSERVATION}


def batches():
  """Three, of which the second holds a number that nothing survives."""
  made = [batch_lib.fake(tiny.spec(), 8, seed) for seed in range(3)]
  made[1]["actions"] = np.full_like(made[1]["actions"], np.nan)
  return made


def run(rows, **changes):
  model = tiny.policy(name="regression")
  return tiny.train_steps(model, (), rows, tiny.optimizer_config(**changes))


def test_a_step_that_is_passed_over_changes_nothing_but_the_count():
  first, _, third = batches()
  state, rows = run(batches(), max_failures=1)
  wanted, _ = run([first, third])
  assert tiny.to_bits(state.params) == tiny.to_bits(wanted.params)
  assert tiny.to_bits(state.opt_state) == tiny.to_bits(wanted.opt_state)
  assert state.step == 3 and [row["failures"] for row in rows] == [0, 1, 1]
  assert np.isnan(rows[1]["loss"]) and np.isfinite(rows[2]["loss"])


def test_one_too_many_leaves_the_state_as_it_was_before_it():
  state, rows = run(batches(), max_failures=0)
  wanted, _ = run(batches()[:1])
  assert state.step == 1 and [row["failures"] for row in rows] == [0, 1, 1]
  for name in ("params", "ema_params", "opt_state"):
    assert tiny.to_bits(getattr(state, name)) == tiny.to_bits(getattr(wanted, name))


def diverging(dataset, **optimizer):
  """A run whose parameters are too large to compute with after a step or two."""
  wild = {"learning_rate": 1e30, "clip": 1e30, "warmup_steps": 1} | optimizer
  return tiny.run_config(
    "regression", dataset, steps=6, log_every=3, save_every=6, evaluate_every=6, optimizer=wild
  )


def test_the_run_ends_with_the_batch_and_the_state_before_it(dataset, tmp_path):
  with pytest.raises(FloatingPointError, match="not finite at step .*; its batch is in ") as told:
    loop.train(diverging(dataset), tmp_path / "run")
  saved, params = checkpoint.load_params(tmp_path / "run")
  assert f"at step {saved + 1}," in str(told.value) and f"is checkpoint {saved}" in str(told.value)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params["network"]))
  (file,) = (tmp_path / "run/failures").iterdir()
  assert file.name == f"step_{saved + 1}_process_0.npz"
  with np.load(file) as batch:
    assert {"observation.state", "actions", "action_mask", "dataset"} <= set(batch)
    assert batch["actions"].shape == (16, 8, 3) and np.isfinite(batch["actions"]).all()


def test_such_a_run_goes_on_with_more_patience(dataset, tmp_path, capsys):
  for _ in range(2):  # again at the same step: its checkpoint is there already
    with pytest.raises(FloatingPointError, match="after 0 such steps"):
      loop.train(diverging(dataset), tmp_path / "run")
  assert "could not be written" not in capsys.readouterr().err
  loop.train(diverging(dataset, max_failures=100), tmp_path / "run")
  assert checkpoint.steps(tmp_path / "run")[-1] == 6


def test_failures_may_be_passed_over_to_the_end(dataset, tmp_path, capsys):
  loop.train(diverging(dataset, max_failures=100), tmp_path / "run")
  assert checkpoint.steps(tmp_path / "run") == [6]
  counts = [
    row["train/failures"] for row in tiny.metrics(tmp_path / "run") if "train/failures" in row
  ]
  assert 0 < counts[0] < counts[-1] <= 6
