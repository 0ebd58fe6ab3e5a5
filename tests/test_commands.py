"""Launch files explain themselves and say a user's error in one line; shipped configs all load."""

import dataclasses
import json
import os
import pathlib
import re

import pytest
import tiny

LAUNCH = sorted(p.name for p in (tiny.ROOT / "launch").glob("*.py") if p.name != "command.py")
# Parts of the others, without variants of their own.
PARTS = ("data.py", "ladder.py", "paper.py")
CONFIGS = sorted(p.name for p in (tiny.ROOT / "configs").glob("*.py") if p.name not in PARTS)


def documented(name):
  """Variants that a config's docstring lists or uses in its command."""
  text = (tiny.ROOT / "configs" / name).read_text().split('"""')[1]
  listed = re.findall(r"^  (\w+)  +\S", text.partition("\nVariants")[2], re.M)
  return list(dict.fromkeys(re.findall(rf"configs/{name}:(\w+)", text) + listed))


VARIANTS = [(name, variant) for name in CONFIGS for variant in documented(name)]


@pytest.mark.parametrize("file", LAUNCH)
def test_help_shows_an_example_and_every_flag(file):
  code, out, err = tiny.command(f"launch/{file}", "--help")
  assert (code, err) == (0, "")
  assert f"python launch/{file}" in out
  text = (tiny.ROOT / "launch" / file).read_text()
  own = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', text)
  if file == "serve.py":  # a command of the package as well
    text = (tiny.ROOT / "oat_jax/serve/run.py").read_text()
    own = re.findall(r'add\("--([\w-]+)"', text)
  assert own and all(re.search(rf"--(\[no\])?{name}\b", out) for name in own)


def test_every_config_documents_a_variant():
  assert len(CONFIGS) >= 4 and all(documented(name) for name in CONFIGS)
  assert documented("quickstart.py") == ["mt4", "mt4_long", "mini"]


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_every_documented_variant_freezes_and_makes_its_models(name, variant):
  from oat_jax import config as config_lib
  from oat_jax.study import compare
  from oat_jax.study import compare_policies
  from oat_jax.study import quickstart
  from oat_jax.train import config as train_config

  values = tiny.get_config(name, variant)
  if name == "quickstart.py":
    config = config_lib.freeze(quickstart.Config, values)
    assert config.evaluate.headline_replan in config.evaluate.replans
    runs = [config.tokenizer, config.policy, config.regression]
  elif name == "compare.py":
    config = config_lib.freeze(compare.Config, values)
    runs = [config.modelability, *compare.training_runs(config, (), "data").values()]
  elif name.startswith(("compare_policies", "paper_")):
    config = config_lib.freeze(compare_policies.Config, values)
    runs = compare_policies.training_runs(config, tiny.ROOT, tuple(config.methods))
  else:
    runs = [train_config.freeze(values)]
    written = json.dumps(train_config.to_json(runs[0]))
    assert json.dumps(train_config.to_json(train_config.freeze(json.loads(written)))) == written
  for run in runs:
    make(run)


def make(run):
  """Makes the model, without parameters: its values are checked by its own Config."""
  from oat_jax import policies
  from oat_jax import tokenizers

  sizes = {"observation_steps": run.data.observation_steps}
  sizes |= {"action_horizon": run.data.action_horizon, "action_dim": 4, "state_dim": 39}
  spec = tiny.spec(**sizes)
  if run.kind == "tokenizer":
    made = tokenizers.make(run.model, spec)
    assert made.max_tokens == run.model.get("num_tokens", run.data.action_horizon * 4)
  else:
    over_tokens = run.model["name"] == "autoregressive"
    inner = (
      tokenizers.make(tiny.get_config("tokenizer_oat.py").model, spec) if over_tokens else None
    )
    assert policies.make(run.model, spec, None, inner).spec == spec


def test_every_setting_of_the_data_can_be_given_on_the_command_line():
  from oat_jax import config as config_lib
  from oat_jax.train import config as train_config

  values = tiny.get_config("data.py")
  assert set(values) == {field.name for field in dataclasses.fields(train_config.Data)}
  defaults = dataclasses.asdict(train_config.Data(task="episode_metadata/task"))
  frozen = dataclasses.asdict(config_lib.freeze(train_config.Data, values))
  assert frozen | {"mixture": dict(frozen["mixture"])} == defaults


# Settings of a policy that mean nothing to a tokenizer, and the other way about.
OF_POLICIES = {"tokenizer", "precompute", "image_rate"}
OF_TOKENIZERS = {"fit_windows"}


@pytest.mark.parametrize("name", [n for n in CONFIGS if n.startswith(("policy_", "tokenizer_"))])
def test_every_setting_of_a_run_can_be_given_on_the_command_line(name):
  from oat_jax.train import config as train_config

  values = tiny.get_config(name)
  others = OF_POLICIES if values.kind == "tokenizer" else OF_TOKENIZERS
  for given, settings in (
    (values, train_config.Config),
    (values.optimizer, train_config.Optimizer),
    (values.plan, train_config.Plan),
  ):
    missing = {field.name for field in dataclasses.fields(settings)} - set(given)
    assert missing <= others | {"language_dim"}, name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_default_variant_is_the_first_documented(name):
  assert tiny.get_config(name).to_dict() == tiny.get_config(name, documented(name)[0]).to_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_an_unknown_variant_is_an_error_that_lists_all(name):
  with pytest.raises(ValueError, match="unknown variant 'nope'") as error:
    tiny.get_config(name, "nope")
  assert all(re.search(rf"\b{variant}\b", str(error.value)) for variant in documented(name))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A dataset of MetaWorld's action width, and a tokenizer and a policy trained on it."""
  from oat_jax.train import loop

  root = tmp_path_factory.mktemp("runs")
  data = tiny.write_dataset(root / "data", action_dim=4)
  loop.train(tiny.run_config("tokenizer", data, steps=1), root / "tokenizer")
  config = tiny.run_config("policy", data, tokenizer=root / "tokenizer", steps=1)
  loop.train(config, root / "policy")
  return root


def refused(file, *args):
  """Runs a command that must fail; returns its one line of error."""
  code, _, err = tiny.command(f"launch/{file}.py", *args)
  assert code == 1, err
  assert err.endswith("\n") and len(err.splitlines()) == 1, err
  return err


CONFIG = "--config=configs/tokenizer_oat.py"
ERRORS = {
  "evaluate: no working directory": (
    ("evaluate", "--workdir={runs}/nothing"),
    "nothing is no working directory of a run: it has no config.json",
  ),
  "evaluate: num_tokens 0": (
    ("evaluate", "--workdir={runs}/policy", "--num_tokens=0"),
    "num_tokens is 0; it must be in 1..8",
  ),
  "evaluate: num_tokens 9": (
    ("evaluate", "--workdir={runs}/policy", "--num_tokens=8,9"),
    "num_tokens is 9; it must be in 1..8",
  ),
  "evaluate: no num_tokens": (
    ("evaluate", "--workdir={runs}/policy", "--num_tokens="),
    "num_tokens",
  ),
  "evaluate: replan 0": (
    ("evaluate", "--workdir={runs}/policy", "--replan=0"),
    "replan is 0; it must be in 1..8",
  ),
  "evaluate: replan beyond the chunk": (
    ("evaluate", "--workdir={runs}/policy", "--replan=8,9"),
    "replan is 9; it must be in 1..8",
  ),
  "evaluate: episodes 0": (
    ("evaluate", "--workdir={runs}/policy", "--replan=8", "--episodes=0"),
    "episodes is 0; it must be at least 1",
  ),
  "evaluate: unknown suite": (
    ("evaluate", "--workdir={runs}/policy", "--suite=metaworld/mt5"),
    "there is no suite 'metaworld/mt5'; known are ",
  ),
  "evaluate: unknown step": (
    ("evaluate", "--workdir={runs}/policy", "--step=7"),
    "holds no checkpoint of step 7; there are [1]",
  ),
  "evaluate: a tokenizer for a policy": (
    ("evaluate", "--workdir={runs}/tokenizer", "--replan=8"),
    "holds a tokenizer, which does not act; its ceiling can be run",
  ),
  "train: a policy for a tokenizer": (
    (
      "train",
      "--config=configs/policy_oat.py:mt4",
      "--config.data.path={runs}/data",
      "--config.tokenizer={runs}/policy",
      "--workdir={new}",
    ),
    "policy holds a policy; a tokenizer's working directory is needed",
  ),
  "train: unknown key": (
    ("train", f"{CONFIG}:mt4", "--config.model.widht=3", "--workdir={new}"),
    "'widht' Did you mean \"width\"",
  ),
  "train: wrong type": (
    ("train", f"{CONFIG}:mt4", "--config.steps=many", "--workdir={new}"),
    "config.steps=many",
  ),
  "train: unknown variant": (
    ("train", f"{CONFIG}:nope", "--workdir={new}"),
    "ValueError: unknown variant 'nope'; there are mt4, robosuite, bridge and published",
  ),
  "train: no such config": (
    ("train", "--config=configs/nope.py:mt4", "--config.steps=3", "--workdir={new}"),
    "No such file or directory: 'configs/nope.py'",
  ),
  "train: no data": (
    ("train", f"{CONFIG}:mt4", "--workdir={new}"),
    "config.data.path is empty; pass --config.data.path=DIR",
  ),
  "train: no working directory": (("train", f"{CONFIG}:mt4"), "--workdir"),
  "collect: unknown flag": (
    ("collect", "--out={new}", "--episode=3"),
    "Unknown command line flag 'episode'. Did you mean: episodes",
  ),
  "collect: positional argument": (
    ("collect", "--out={new}", "extra"),
    "unexpected argument 'extra'; settings are given as --name=value",
  ),
  "benchmark: unknown section": (
    ("benchmark", "nope", "--out={new}"),
    "section is 'nope'; it must be one of: train, act, data",
  ),
  "benchmark: no section": (
    ("benchmark", "--out={new}"),
    "the argument SECTION is missing; see --help",
  ),
  "quickstart: unknown stage": (
    ("quickstart", "--out={new}", "--stages=collect,nope"),
    "stage is 'nope'; it must be one of: collect, tokenizer, policy, regression, evaluate, report",
  ),
  "quickstart: a stage before its time": (
    ("quickstart", "--out={new}", "--stages=report"),
    "tokenizer is at step 0 of 3000; run the stage 'tokenizer' to its end first",
  ),
  "quickstart: unknown variant": (
    ("quickstart", "--config=configs/quickstart.py:nope", "--out={new}"),
    "unknown variant 'nope'; there are mt4, mt4_long and mini",
  ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_users_error_is_one_line_and_leaves_nothing(case, runs, tmp_path):
  (file, *args), text = ERRORS[case]
  new = tmp_path / "new"
  assert text in refused(file, *(arg.format(runs=runs, new=new) for arg in args))
  assert not new.exists()
  assert not list(runs.glob("*/report"))


@pytest.mark.parametrize("file", ["collect", "evaluate"])
def test_without_a_simulator_the_extra_is_named(file, runs, tmp_path):
  """As in an environment without metaworld: neither the module nor its metadata are found."""
  hidden = tmp_path / "hidden"
  hidden.mkdir()
  (hidden / "sitecustomize.py").write_text(
    "import importlib.metadata as metadata, sys\n"
    "sys.modules['metaworld'] = None\n"
    "find = metadata.version\n"
    "def version(name):\n"
    "  if name == 'metaworld':\n"
    "    raise metadata.PackageNotFoundError(name)\n"
    "  return find(name)\n"
    "metadata.version = version\n"
  )
  path = os.pathsep.join([str(hidden), tiny.environment()["PYTHONPATH"]])
  args = {"collect": ["--episodes=1"], "evaluate": [f"--workdir={runs}/policy", "--replan=8"]}
  new = tmp_path / "new"
  code, _, err = tiny.command(f"launch/{file}.py", *args[file], f"--out={new}", PYTHONPATH=path)
  assert code == 1 and len(err.splitlines()) == 1, err
  assert "metaworld/mt4 is not installed" in err and "pip install 'oat-jax[sim]'" in err
  assert not new.exists() and not list(tmp_path.glob("new*"))


def test_debug_shows_the_traceback(tmp_path):
  code, _, err = tiny.command("launch/collect.py", f"--out={tmp_path}", "extra", "--debug")
  assert code == 1 and "Traceback" in err and "unexpected argument 'extra'" in err


def test_launch_files_stay_thin():
  lines = {
    file: len(pathlib.Path(tiny.ROOT, "launch", file).read_text().splitlines()) for file in LAUNCH
  }
  assert {file: count for file, count in lines.items() if count > 70} == {}
