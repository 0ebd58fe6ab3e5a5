"""The loop: what a working directory holds, what crosses to the host."""

import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.data import pipeline
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import models
from oat_jax.train import speed


@pytest.fixture(scope="module")
def policy_workdir(dataset, tokenizer_workdir, tmp_path_factory):
  config = tiny.run_config("policy", dataset, tokenizer=tokenizer_workdir, steps=3)
  return loop.train(config, tmp_path_factory.mktemp("policy") / "run")


def test_a_working_directory_holds_all_that_acting_needs(policy_workdir, tokenizer_workdir):
  names = {path.name for path in policy_workdir.iterdir()}
  assert {"config.json", "checkpoints", "metrics.jsonl"} <= names
  trained = models.load(policy_workdir)
  assert trained.step == 3 and trained.config.kind == "policy"
  assert trained.spec.task_names == ("lift", "push")
  # The tokenizer travels inside, to the last bit, statistics included.
  source = models.load(tokenizer_workdir)
  assert tiny.to_bits(trained.params["tokenizer"]) == tiny.to_bits(source.params)
  made = batch_lib.fake(trained.spec, 2)
  chunk_BCA, info = jax.jit(trained.model.act)(trained.params, made, jax.random.key(0), 4)
  assert np.isfinite(chunk_BCA).all() and (chunk_BCA <= source.params["statistics"]["max"]).all()
  again_BCA = trained.tokenizer.decode(trained.params["tokenizer"], info["tokens_BN"], 4)
  np.testing.assert_allclose(chunk_BCA, again_BCA, atol=1e-5)


def test_statistics_are_the_training_split_s_only(dataset, tokenizer_workdir):
  trained = models.load(tokenizer_workdir)
  split = inputs.load(trained.config.data)
  for name, rows in split.statistics["actions"].items():
    np.testing.assert_array_equal(trained.params["statistics"][name], rows)
  # All windows' own steps, as the batches give them, have just this mean.
  batch = split.train(np.arange(len(split.train)))
  np.testing.assert_allclose(
    trained.params["statistics"]["mean"][0], batch["actions"][:, 0].mean(0), rtol=1e-4, atol=1e-6
  )
  assert len(split.train) + len(split.validation) == 160 and len(split.validation) == 20


def test_the_description_rebuilds_the_configuration(policy_workdir):
  text = (policy_workdir / "config.json").read_text()
  content = json.loads(text)
  assert content["format_version"] == models.FORMAT_VERSION
  trained = models.load(policy_workdir)
  inner, fingerprint = models.load(trained.config.tokenizer), content["dataset_fingerprint"]
  assert models.describe(trained.config, trained.spec, inner, fingerprint) == content
  newer = content | {"format_version": 99}
  (policy_workdir / "config.json").write_text(json.dumps(newer))
  with pytest.raises(
    ValueError, match=f"format version 99; this oat_jax reads version {models.FORMAT_VERSION}"
  ):
    models.load(policy_workdir)
  (policy_workdir / "config.json").write_text(text)


def test_validation_rows_show_every_prefix(policy_workdir, tokenizer_workdir):
  rows = [r for r in tiny.metrics(tokenizer_workdir) if "validation/mse_1" in r]
  assert [row["step"] for row in rows] == [2]
  assert all(np.isfinite(rows[0][f"validation/mse_{K}"]) for K in range(1, 9))
  assert 1 <= rows[0]["validation/distinct_tokens"] <= 1000
  rows = [r for r in tiny.metrics(policy_workdir) if "validation/cross_entropy_1" in r]
  assert all(f"validation/chunk_mse_{K}" in rows[-1] for K in range(1, 9))


def test_nothing_crosses_to_the_host_between_logs(dataset, tmp_path, monkeypatch):
  steps, gets = [], []
  compile_step, device_get = speed.compile_step, jax.device_get

  def spy(*args):
    compiled = compile_step(*args)

    def step(state, batch):
      with pytest.raises(Exception, match="isallowed"):  # the loop's guard is on
        jnp.add(np.ones(3), 1)
      steps.append(compiled)
      return compiled.run(state, batch)

    return compiled._replace(run=step)

  monkeypatch.setattr(speed, "compile_step", spy)
  monkeypatch.setattr(jax, "device_get", lambda x: gets.append(len(steps)) or device_get(x))
  config = tiny.run_config("tokenizer", dataset, log_every=4, evaluate_every=5, save_every=9)
  loop.train(config, tmp_path / "run")
  assert len(steps) == 6
  assert set(gets) == {4, 6}  # log; log and save at the end


def test_a_finished_run_is_left_as_it_is(policy_workdir, capsys):
  before = tiny.listing(policy_workdir)
  loop.train(models.load(policy_workdir).config, policy_workdir)
  assert "is done: 3 steps" in capsys.readouterr().out
  assert tiny.listing(policy_workdir) == before


def test_harmless_settings_may_change_between_calls(dataset, tmp_path):
  loop.train(tiny.run_config("regression", dataset, steps=2), tmp_path / "run")
  changed = tiny.run_config("regression", dataset, steps=2, log_every=7, keep=5, mesh=(-1, 1, 1))
  loop.train(changed, tmp_path / "run")


def test_tokens_computed_once_train_as_tokens_computed_in_the_step(
  dataset, tokenizer_workdir, tmp_path
):
  settings = {"tokenizer": tokenizer_workdir, "steps": 3, "model": {"refinement": False}}
  loop.train(tiny.run_config("policy", dataset, **settings), tmp_path / "once")
  in_step = tiny.run_config("policy", dataset, **settings, precompute=False)
  loop.train(in_step, tmp_path / "each")
  for one, other in zip(tiny.metrics(tmp_path / "once"), tiny.metrics(tmp_path / "each")):
    assert one == pytest.approx(other, rel=1e-4)


def test_a_run_that_was_moved_is_the_same_run(dataset, tokenizer_workdir, tmp_path, capsys):
  """Paths and harmless settings change; the policy trained over the tokenizer goes on."""
  copies = {name: tmp_path / name for name in ("data", "tokenizer")}
  shutil.copytree(dataset, copies["data"])
  shutil.copytree(tokenizer_workdir, copies["tokenizer"])
  settings = {"steps": 2, "log_every": 2}
  config = tiny.run_config("policy", dataset, tokenizer=str(tokenizer_workdir), **settings)
  loop.train(config, tmp_path / "policy")
  moved = tiny.run_config("tokenizer", copies["data"], steps=2, log_every=2)
  loop.train(moved, copies["tokenizer"])  # done already; its description is written anew
  before = models.digest(models.load(tokenizer_workdir))
  assert models.digest(models.load(copies["tokenizer"])) == before
  config = tiny.run_config("policy", copies["data"], tokenizer=str(copies["tokenizer"]), **settings)
  loop.train(config, tmp_path / "policy")
  assert f"{tmp_path / 'policy'} is done: 2 steps" in capsys.readouterr().out


def test_waiting_for_data_is_seen(dataset, tmp_path, monkeypatch):
  make = pipeline.make_pipeline

  def slow(*args, **settings):
    for batch in make(*args, **settings):
      time.sleep(0.2)
      yield batch

  monkeypatch.setattr(pipeline, "make_pipeline", slow)
  loop.train(tiny.run_config("regression", dataset, steps=6, log_every=3), tmp_path / "run")
  rows = [
    json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  ]
  waits = [row["train/input_wait"] for row in rows if "train/input_wait" in row]
  assert len(waits) == 2 and 0.5 < waits[1] <= 1
