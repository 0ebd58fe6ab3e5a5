"""A run that was stopped and resumed equals a run that never was, bit for bit."""

import signal

import jax
import pytest
import tiny

from oat_jax.train import checkpoint
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import metrics
from oat_jax.train import models
from oat_jax.train import optimizer
from oat_jax.train import signals
from oat_jax.train import state as state_lib

# Dropout, noise and a schedule that ends with the run: all that could depend on a restart.
CHANGES = {
  "tokenizer": {"model": {"dropout": 0.3}},
  "policy": {"model": {"dropout": 0.3, "observation": tiny.OBSERVATION | {"noise": 0.1}}},
}


def saved_state(config, workdir):
  """Every leaf of the newest checkpoint's state, and its data."""
  split = inputs.load(config.data)
  tokenizer = models.load_tokenizer(config.tokenizer) if config.tokenizer else None
  inner = None if tokenizer is None else tokenizer.tokenizer
  model = models.build(config, split.train.spec, split.statistics, inner)
  args = () if tokenizer is None else (tokenizer.params,)
  tx = optimizer.make(config.optimizer, config.steps)
  init = lambda: model.init(jax.random.key(config.seed), *args)
  like, _ = state_lib.create(init, model.axes(), tx, tiny.mesh())
  checkpointer = checkpoint.Checkpointer(workdir, 2)
  state, data = checkpointer.restore(checkpointer.latest_step(), like)
  checkpointer.close()
  return tiny.to_bits(state), data


def stop_at(monkeypatch, step, number=signal.SIGTERM):
  """Sends this process a signal while a step's row is written, as any moment of a step is."""
  log = metrics.Writer.log

  def and_stop(self, at, values, prefix, *args, **settings):
    log(self, at, values, prefix, *args, **settings)
    if at == step and prefix == "train":  # the last step has a row of validation, too
      signal.raise_signal(number)

  monkeypatch.setattr(metrics.Writer, "log", and_stop)


@pytest.mark.parametrize("kind", list(CHANGES))
def test_resumed_equals_never_stopped(kind, dataset, tokenizer_workdir, tmp_path, monkeypatch):
  changes = {"tokenizer": str(tokenizer_workdir)} if kind == "policy" else {}
  changes |= {"optimizer": {"schedule": "cosine"}} | CHANGES[kind]
  config = tiny.run_config(kind, dataset, **changes)
  loop.train(config, tmp_path / "whole")
  with monkeypatch.context() as patch:
    stop_at(patch, 2)
    with pytest.raises(signals.Interrupted, match="stopped by a signal at step 3; saved"):
      loop.train(config, tmp_path / "parts")
  assert tiny.metrics(tmp_path / "parts")[-1]["step"] == 3
  loop.train(config, tmp_path / "parts")

  whole, parts = (saved_state(config, tmp_path / name) for name in ("whole", "parts"))
  assert whole[1] == parts[1] and whole[1]["step"] == 6
  assert whole[0].keys() == parts[0].keys()
  assert [path for path in whole[0] if whole[0][path] != parts[0][path]] == []
  assert tiny.metrics(tmp_path / "whole") == tiny.metrics(tmp_path / "parts")
  rows = tiny.metrics(tmp_path / "whole")
  assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_a_signal_at_the_last_step_is_not_lost(dataset, tmp_path, monkeypatch, capsys):
  config = tiny.run_config("regression", dataset, steps=2)
  with monkeypatch.context() as patch:
    stop_at(patch, 2)
    with pytest.raises(signals.Interrupted, match="at the last step; .*run is whole"):
      loop.train(config, tmp_path / "run")
  loop.train(config, tmp_path / "run")
  assert "is done: 2 steps" in capsys.readouterr().out
