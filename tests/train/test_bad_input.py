"""Bad input: an error that says it, nothing half-written; through the command it is one line."""

import fcntl
import json
import shutil

import numpy as np
import pytest
import tiny

from oat_jax.train import config as config_lib
from oat_jax.train import loop


def refused(arguments, workdir, *parts):
  """Runs launch/train.py and checks all but the message, which must contain the parts."""
  before = tiny.listing(workdir)
  code, out, err = tiny.command("launch/train.py", *arguments)
  assert code == 1, out + err
  lines = err.splitlines()
  assert len(lines) == 1 and "Traceback" not in err, err
  for part in parts:
    assert str(part) in err
  assert tiny.listing(workdir) == before
  return err


def refused_run(kind, dataset, workdir, *parts, **changes):
  """Trains in this process, as launch/train.py does; returns the error, which holds the parts."""
  before = tiny.listing(workdir)
  with pytest.raises((ValueError, OSError)) as error:
    loop.train(tiny.run_config(kind, dataset, **changes), workdir)
  for part in parts:
    assert str(part) in str(error.value)
  assert tiny.listing(workdir) == before
  return str(error.value)


def test_a_dataset_that_is_not_there(tmp_path):
  workdir = tmp_path / "run"
  refused_run("tokenizer", tmp_path / "none", workdir, tmp_path / "none", "no such")
  refused_run("tokenizer", "", workdir, "config.data.path is empty", "--config.data.path=DIR")


def test_a_dataset_that_is_empty(tmp_path):
  (tmp_path / "data").mkdir()
  refused_run("tokenizer", tmp_path / "data", tmp_path / "run", "data: the directory is empty")


def test_a_dataset_that_is_not_tfds(tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "data/episodes.h5").write_bytes(b"x")
  parts = (tmp_path / "data", "features.json", "episodes.h5")
  refused_run("tokenizer", tmp_path / "data", tmp_path / "run", *parts)


def test_actions_wider_than_the_configuration(dataset, tmp_path):
  config = tiny.run_config("tokenizer", dataset, data={"action_dim": 2})
  with pytest.raises(ValueError, match="actions have 3 dimensions, action_dim is 2"):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_actions_wider_than_the_command_line_says(dataset, tmp_path):
  values = tiny.run_values("tokenizer", dataset, data={"action_dim": 2})
  arguments = tiny.arguments(values, tmp_path / "run")
  refused(arguments, tmp_path / "run", "3 dimensions", "action_dim is 2")


def test_a_working_directory_of_another_run_through_the_command(
  dataset, tokenizer_workdir, tmp_path
):
  shutil.copytree(tokenizer_workdir, tmp_path / "run")
  arguments = tiny.arguments(tiny.run_values("tokenizer", dataset, seed=4), tmp_path / "run")
  refused(arguments, tmp_path / "run", "holds another run", "config.seed: 0 there, 4 now")


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_actions_that_are_no_numbers(bad, tmp_path):
  data = tiny.write_dataset(tmp_path / "data", bad=bad)
  parts = ("tfrecord-00000-of-00001", "record 7", f"'steps/action' is {bad} at step 19")
  refused_run("tokenizer", data, tmp_path / "run", *parts)


def test_fewer_episodes_than_the_split_needs(tmp_path):
  data = tiny.write_dataset(tmp_path / "data", episodes=1, tasks=("lift",))
  refused_run("tokenizer", data, tmp_path / "run", "validation_fraction", "only 1 episode")


def test_fewer_windows_than_a_batch_needs(dataset, tmp_path):
  parts = ("140 windows", "batch_size is 500")
  refused_run("tokenizer", dataset, tmp_path / "run", *parts, batch_size=500)


def test_the_working_directory_of_another_run(dataset, tokenizer_workdir, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(tokenizer_workdir, workdir)
  changes = {"steps": 2, "seed": 4, "model": {"width": 64}, "log_every": 9}
  err = refused_run("tokenizer", dataset, workdir, "holds another run", **changes)
  assert "config.seed: 0 there, 4 now" in err and "config.model.width: 32 there, 64 now" in err
  assert "log_every" not in err  # harmless


def test_a_working_directory_whose_dataset_has_changed(dataset, tmp_path):
  data, workdir = tmp_path / "data", tmp_path / "run"
  shutil.copytree(dataset, data)
  # A run that can still go on: its steps are said in the description.
  config = tiny.run_config("regression", data, steps=3)
  loop.train(config, workdir)
  shutil.rmtree(data)
  tiny.write_dataset(data, seed=7)
  with pytest.raises(ValueError, match="fingerprint"):
    loop.train(config, workdir)
  assert (workdir / "checkpoints/3").is_dir()


def test_a_directory_that_holds_something_else(dataset, tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  (workdir / "thesis.tex").write_text("years of work")
  refused_run("tokenizer", dataset, workdir, "not empty and holds no run")
  (workdir / "config.json").write_text("{}")
  refused_run("tokenizer", dataset, workdir, "not empty and holds no run")


def test_two_runs_in_one_directory_at_once(dataset, tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  with open(workdir / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # as the first of two that start together does
    refused_run("tokenizer", dataset, workdir, "in use by another process")


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"data": {"action_horizon": 4}}, ("action_horizon 8", "data has 4")),
    ({"data": {"path": "wide"}}, ("action_dim 3", "data has 4")),
    ({"data": {"path": "other"}}, ("other statistics", "of dimension")),
  ],
)
def test_a_tokenizer_that_does_not_fit(changes, parts, dataset, tokenizer_workdir, tmp_path):
  if changes["data"].get("path") == "wide":
    changes = {"data": {"path": str(tiny.write_dataset(tmp_path / "wide", action_dim=4))}}
  elif "path" in changes["data"]:
    data = tmp_path / "other"
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(np, "cos", lambda x: 3 * np.sin(x))  # actions three times as large
      tiny.write_dataset(data)
    changes = {"data": {"path": str(data)}}
  parts = (tokenizer_workdir, *parts)
  changes |= {"tokenizer": tokenizer_workdir}
  refused_run("policy", dataset, tmp_path / "run", *parts, **changes)


def test_a_tokenizer_that_is_none(dataset, tmp_path):
  workdir = tmp_path / "run"
  refused_run("policy", dataset, workdir, "set config.tokenizer to its working directory")
  missing = {"tokenizer": tmp_path / "none"}
  refused_run("policy", dataset, workdir, tmp_path / "none", "no config.json", **missing)
  loop.train(tiny.run_config("regression", dataset, steps=1), tmp_path / "policy")
  with pytest.raises(ValueError, match="holds a policy; a tokenizer's working directory is needed"):
    loop.train(tiny.run_config("policy", dataset, tokenizer=tmp_path / "policy"), workdir)
  assert not workdir.exists()


def test_an_init_from_that_is_none(dataset, tmp_path):
  parts = (tmp_path / "none", "no config.json")
  refused_run("tokenizer", dataset, tmp_path / "run", *parts, init_from=str(tmp_path / "none"))


def test_a_mesh_that_does_not_fit(dataset, tmp_path):
  workdir = tmp_path / "run"
  refused_run("tokenizer", dataset, workdir, "needs 2 devices; there are 1", mesh=(2, 1, 1))
  refused_run("tokenizer", dataset, workdir, "one of which may be -1", mesh=(1, 1))


def test_configuration_keys_and_values_that_do_not_exist(dataset, tmp_path):
  workdir = tmp_path / "run"
  plain = tiny.arguments(tiny.run_values("tokenizer", dataset), workdir)
  refused([*plain, "--config.nope=1"], workdir, "nope")
  refused([*plain, "--config.optimizer.learning_rat=1"], workdir, "learning_rat")
  refused([*plain, "--config.steps=many"], workdir, "steps", "many")
  refused([*plain, "--config.steps=0"], workdir, "config.steps is 0; it must be at least 1")
  refused([*plain, "--config.model.name=oatt"], workdir, "'oatt'", "oat")
  refused([*plain, "--config.optimizer.schedule=linear"], workdir, "'linear'", "constant, cosine")
  refused([*plain, "more"], workdir, "unexpected argument 'more'", "--name=value")
  shipped = f"--config={tiny.ROOT}/configs/tokenizer_oat.py:mt5"
  refused([shipped, f"--workdir={workdir}"], workdir, "mt5", "mt4, robosuite, bridge and published")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"keep_best": "mse_80"},
      "config.keep_best is 'mse_80'; did you mean 'mse_8'? there are mse_1",
    ),
    (
      {"keep_best": "mse_8", "save_every": 3, "evaluate_every": 2},
      "save_every 3 is no multiple of",
    ),
  ],
)
def test_a_best_that_nothing_measures(changes, message, dataset, tmp_path):
  with pytest.raises(ValueError) as error:
    loop.train(tiny.run_config("tokenizer", dataset, **changes), tmp_path / "run")
  assert message in str(error.value) and not (tmp_path / "run").exists()


def test_a_store_of_objects_is_no_working_directory(dataset, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="gs:/.*bucket/run is no folder.*all processes share"):
    loop.train(tiny.run_config("tokenizer", dataset), "gs://bucket/run")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("part", "name", "near"),
  [
    ("", "batchsize", "batch_size"),
    ("optimizer", "learnin_rate", "learning_rate"),
    ("model", "num_token", "num_tokens"),
  ],
)
def test_a_configuration_s_keys_that_do_not_exist(part, name, near, dataset, tmp_path):
  values = tiny.run_values("tokenizer", dataset)
  (values[part] if part else values)[name] = 1
  with pytest.raises(ValueError, match=f"has no key '{name}'; did you mean '{near}'[?]"):
    loop.train(config_lib.freeze(values), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_configuration_file_with_a_key_that_does_not_exist(dataset, tmp_path):
  values, workdir, file = tiny.run_values("tokenizer", dataset), tmp_path / "run", tmp_path / "a.py"
  values["optimizer"]["learnin_rate"] = 1
  file.write_text(
    "import json\nfrom ml_collections import ConfigDict\n"
    f"def get_config():\n  return ConfigDict(json.loads({json.dumps(values)!r}))\n"
  )
  text = "has no key 'learnin_rate'; did you mean 'learning_rate'?"
  refused([f"--config={file}", f"--workdir={workdir}"], workdir, text)
