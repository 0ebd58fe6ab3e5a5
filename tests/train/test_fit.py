"""Fitted tokenizers are runs of one step, by one process or two; FAST carries a policy."""

import jax
import numpy as np
import pytest
from test_processes import start_group
import tiny

from oat_jax import batch as batch_lib
from oat_jax.train import checkpoint
from oat_jax.train import config as config_lib
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import models

MODELS = {"bin": {"name": "bin"}, "fast": {"name": "fast", "vocab_size": 512, "scale": 4.0}}


def run_config(dataset, name, **changes):
  values = tiny.run_values("tokenizer", dataset, **({"steps": 1} | changes))
  return config_lib.freeze(values | {"model": MODELS[name]})


@pytest.fixture(scope="module", params=MODELS)
def run(request, dataset, tmp_path_factory):
  """(config, working directory) of a fitted tokenizer."""
  config = run_config(dataset, request.param)
  return config, loop.train(config, tmp_path_factory.mktemp("fit") / request.param)


def test_the_working_directory_holds_a_fit_to_the_training_windows(run):
  config, workdir = run
  trained = models.load_tokenizer(workdir)
  assert trained.step == 1 and trained.config == config
  split = inputs.load(config.data, images=False)
  chunks = split.train(np.arange(len(split.train)))
  columns = (chunks[name] for name in ("actions", "action_mask", "dataset"))
  tokenizer = models.build(config, split.train.spec, split.statistics, None)
  assert tiny.to_bits(trained.params) == tiny.to_bits(tokenizer.fit(*columns))
  (row,) = tiny.metrics(workdir)
  held_out = inputs.evenly(split.validation, config.evaluate_windows)
  batch = held_out(np.arange(len(held_out)))
  N = trained.model.max_tokens
  errors_BN = jax.jit(trained.model.evaluate)(trained.params, batch)["mse"]
  found_N = [row[f"validation/mse_{k + 1}"] for k in range(N)]
  np.testing.assert_allclose(found_N, errors_BN.mean(0), rtol=1e-5)
  assert row["step"] == 1 and found_N[-1] < 0.1 * found_N[0]


def test_called_again_it_is_done(run, capsys):
  config, workdir = run
  before = tiny.listing(workdir)
  loop.train(config, workdir)
  assert f"{workdir} is done: fitted" in capsys.readouterr().out
  assert tiny.listing(workdir) == before


def test_settings_that_a_fit_does_not_have_are_errors(dataset, tmp_path):
  for changes, message in (
    ({"steps": 2}, "config.steps is 2; tokenizer 'bin' is fitted, not trained: set it to 1"),
    ({"init_from": "elsewhere"}, "init_from is set, but tokenizer 'bin' is fitted"),
  ):
    with pytest.raises(ValueError, match=message):
      loop.train(run_config(dataset, "bin", **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("run", ["fast"], indirect=True)
def test_a_policy_is_trained_on_tokens_that_the_host_encodes(run, dataset, tmp_path):
  _, workdir = run
  config = tiny.run_config("policy", dataset, steps=2, tokenizer=workdir)
  loop.train(config, tmp_path / "policy")
  rows, trained = tiny.metrics(tmp_path / "policy"), models.load(tmp_path / "policy")
  assert trained.step == 2 and all(np.isfinite(row.get("train/loss", 0)) for row in rows)
  tokenizer, known = trained.tokenizer, trained.params["tokenizer"]["statistics"]
  assert tokenizer is not None and tokenizer.host_encode
  fitted = checkpoint.load_params(workdir)[1]
  assert tiny.to_bits(trained.params["tokenizer"]) == tiny.to_bits(fitted)
  batch, act = batch_lib.fake(trained.spec, 2), jax.jit(trained.model.act)
  for K in (1, tokenizer.max_tokens):
    actions_BCA, info = act(trained.params, batch, jax.random.key(0), K)
    num_tokens_B = np.asarray(info["num_tokens"])  # fewer than K where a row has ended
    assert (num_tokens_B >= 1).all() and (num_tokens_B <= K).all()
    assert np.isfinite(actions_BCA).all()
    assert (actions_BCA >= known["min"]).all() and (actions_BCA <= known["max"]).all()


@pytest.mark.parametrize("run", ["bin"], indirect=True)
def test_two_processes_fit_as_one_does(run, dataset, tmp_path):
  _, alone = run
  pair = start_group(
    [
      f"--config={tiny.ROOT}/configs/tokenizer_bin.py:mt4",
      f"--config.data.path={dataset}",
      "--config.data.task=episode_metadata/task",
      "--config.data.action_horizon=8",
      "--config.batch_size=16",
      "--config.mesh=(2, 1, 1)",
      "--config.evaluate_windows=20",
      f"--workdir={tmp_path}/run",
    ]
  )
  for process in pair:
    code, out, err = tiny.finish(process)
    assert code == 0, f"{out}\n{err}"
  workdirs = alone, tmp_path / "run"
  (one, of_one), (two, of_two) = map(checkpoint.load_params, workdirs)
  assert one == two == 1 and tiny.to_bits(of_one) == tiny.to_bits(of_two)
  (expected,), (row,) = map(tiny.metrics, workdirs)
  assert row == pytest.approx(expected, rel=1e-4)
