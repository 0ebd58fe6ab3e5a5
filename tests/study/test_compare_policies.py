"""The comparison of policies in miniature: one budget, one set of goals, what is said of them."""

import json
import shlex
import shutil

from matplotlib import image
import numpy as np
import pytest
import tiny

from oat_jax import config as config_lib
from oat_jax.envs import env as env_lib
from oat_jax.envs import vector
from oat_jax.evaluate import rollout
from oat_jax.study import compare_policies
from oat_jax.study import policies_report
from oat_jax.train import loop
from oat_jax.train import models
from oat_jax.train import signals

SUITE = "metaworld/mt4"
TASKS = ("box-close", "coffee-pull", "disassemble", "stick-pull")
A, EPISODES = 4, 3


def values(**changes):
  tokenizer = tiny.run_values("tokenizer", "", steps=3, evaluate_every=3, save_every=3)
  policy = tiny.run_values("policy", "", steps=2, evaluate_every=2, save_every=2)
  oat, ar = tokenizer["model"], policy["model"]
  return {
    "suite": SUITE,
    "collect": {"episodes": 2, "noise": 0.0, "seed": 0},
    "data": tokenizer["data"] | {"validation_fraction": 0.4},
    "tokenizer": tokenizer,
    "tokenizers": {"oat": oat, "plain": oat | {"nested_dropout": "none"}, "bin": {"name": "bin"}},
    "policy": policy,
    "methods": {
      "oat": {"tokenizer": "oat", "model": ar},
      "plain": {"tokenizer": "plain", "model": ar},
      "bin": {"tokenizer": "bin", "model": ar},
      "floor": {"model": {"name": "regression"} | tiny.REGRESSION},
    },
    "evaluate": {
      "episodes": EPISODES, "num_tokens": (1, 8), "replans": (4, 8), "mean_tokens": (4,),
      "max_steps": 8,
    },
    "seeds": (0, 1),
    "pairs": (("oat@8", "oat@1"), ("oat@8", "plain"), ("oat", "floor"), ("bin", "oat@8")),
  } | changes  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  out = tmp_path_factory.mktemp("policies") / "data"
  return tiny.write_dataset(out, tasks=TASKS, action_dim=A)


class Simulator:
  """Goals of even seeds are reached by anyone, others by who acts with 4 steps of each chunk."""

  started = []

  def __init__(self, suite_name, processes=None, *, max_steps, **settings):
    self.max_steps = max_steps

  def __enter__(self):
    return self

  def __exit__(self, *error):
    pass

  def start(self, pairs):
    self.started.append(list(pairs))
    self.even = np.array([seed % 2 == 0 for _, seed in pairs])
    self.steps = np.zeros(len(pairs), np.int32)
    return self._state(0)

  def step(self, actions_BRA, active_B):
    self.steps = self.steps + actions_BRA.shape[1]
    return self._state(actions_BRA.shape[1])

  def _state(self, R):
    done = self.steps >= self.max_steps
    observation = {"state": np.zeros((len(done), 2, 5), np.float32)}
    mask, again = np.ones((len(done), 2), bool), np.zeros(len(done), np.int32)
    return vector.VectorState(
      observation, mask, done, done & (self.even | (R == 4)), self.steps, again
    )


@pytest.fixture(scope="module")
def simulator():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vector, "VectorEnv", Simulator)
    patch.setattr(env_lib, "versions", lambda suite: {})
    yield


@pytest.fixture(scope="module")
def compared(data, simulator, tmp_path_factory):
  """One seed of all methods, two of two of them, in several calls."""
  out = tmp_path_factory.mktemp("policies") / "out"
  for methods, seeds in ((("oat", "floor"), (0, 1)), (("plain", "bin"), (0,))):
    stages = ("tokenizers", "policies", "evaluate")
    compare_policies.run(values(), out, data=data, methods=methods, seeds=seeds, stages=stages)
  assert not (out / "report").exists()
  compare_policies.run(values(), out, data=data, seeds=(0,), stages=("report",))
  return out


@pytest.fixture(scope="module")
def content(compared):
  return json.loads((compared / "report/policies.json").read_text())


def test_every_policy_has_one_budget_and_its_own_tokenizer(compared):
  runs = {
    (name, seed): models.load(compared / f"policies/{name}/seed{seed}").config
    for name, seed in [("oat", 0), ("oat", 1), ("floor", 0), ("floor", 1), ("plain", 0), ("bin", 0)]
  }
  for run in runs.values():
    assert (run.steps, run.batch_size, run.optimizer) == (2, 16, runs["oat", 0].optimizer)
  assert {run.seed for run in runs.values()} == {0, 1}
  of = lambda name, seed: runs[name, seed].tokenizer.removeprefix(f"{compared}/tokenizers/")
  assert of("oat", 1) == "oat/seed1" and of("bin", 0) == "bin/seed0" and not of("floor", 0)
  assert models.load(compared / "tokenizers/oat/seed1").config.seed == 1
  assert models.load(compared / "tokenizers/bin/seed0").config.steps == 1  # fitted


def test_what_is_compared_is_what_was_seen(content):
  settings = {(s["method"], s["num_tokens"], s["refinement"]): s for s in content["settings"]}
  # Prefixes where they are trained, all tokens elsewhere.
  assert set(settings) == {
    ("oat", 1, False), ("oat", 8, False), ("oat", 4, True), ("plain", 8, False),
    ("bin", 32, False), ("floor", 0, False),
  }  # fmt: skip
  for (_, K, refinement), each in settings.items():
    # Seeds 100000, 100001, 100002 of four tasks.
    assert [each["success"][R]["overall"]["k"] for R in ("4", "8")] == [12, 8]
    assert each["success"]["8"]["box-close"]["n"] == 3
    assert refinement or each["tokens"] == K
    assert each["act_ms"] > 0
  assert 1 <= settings["oat", 4, True]["tokens"] <= 8
  assert content["methods"]["bin"]["tokens"] == 32 and content["methods"]["floor"]["tokens"] == 0
  assert all(each["train_cpu_s"] > 0 for each in content["methods"].values())


def test_differences_are_paired_on_the_same_goals(content):
  found = [(d["first"], d["second"], d["replan"]) for d in content["differences"]]
  pairs = [
    ("oat 8 tokens", "oat 1 token"),
    ("oat 8 tokens", "plain 8 tokens"),
    ("oat 8 tokens", "floor"),
    ("bin 32 tokens", "oat 8 tokens"),
  ]
  assert found == [(*pair, R) for pair in pairs for R in (4, 8)]
  assert all(d["mean"] == 0 and d["goals"] == 12 for d in content["differences"])


def test_every_method_meets_the_same_goals(compared):
  assert all(pairs == Simulator.started[0] for pairs in Simulator.started)
  assert {seed for _, seed in Simulator.started[0]} == {100_000, 100_001, 100_002}


def test_the_page_and_its_pictures(compared):
  text = (compared / "report/policies.md").read_text()
  for name in ("oat", "plain", "bin", "floor", "oat, refinement"):
    assert f"| {name} |" in text
  assert "- oat 8 tokens less floor, R=8: +0 points (95 %: +0 to +0)" in text
  for file in ("success.png", "tokens.png", "milliseconds.png"):
    assert f"({file})" in text and image.imread(compared / "report" / file).std() > 0.05


def test_a_difference_is_the_first_less_the_second_and_each_seed_s():
  """One solves 3 of 4 goals with seed 0 and all with seed 1; the other half of them, then none."""

  def rows(method, seeds):
    episode = lambda seed, won: rollout.Episode(method, 8, 4, "push", seed, won, 5, 2, 8.0, 1.0)
    return {seed: [episode(*each) for each in enumerate(won)] for seed, won in seeds.items()}

  one, other = (policies_report.Setting(name, 8, False) for name in ("one", "other"))
  found = policies_report._differences(
    {
      one: rows("one", {0: [1, 1, 1, 0], 1: [1, 1, 1, 1]}),
      other: rows("other", {0: [1, 1, 0, 0], 1: [0, 0, 0, 0]}),
    },
    one,
    other,
  )
  assert [(each["first"], each["second"]) for each in found] == [("one 8 tokens", "other 8 tokens")]
  assert found[0]["by_seed"] == [0.25, 1.0] and found[0]["mean"] == pytest.approx(0.625)
  assert 0.25 <= found[0]["low"] <= 0.625 <= found[0]["high"] <= 1


def test_settings_that_are_missing_are_named(compared, data, simulator, tmp_path):
  """Of an evaluation that was stopped, and of a pair that was not evaluated."""
  out = tmp_path / "out"
  shutil.copytree(compared, out)
  path = out / "evaluations/oat/seed1/evaluation.json"
  content = json.loads(path.read_text())
  content["episodes"] = [
    row for row in content["episodes"] if (row["num_tokens"], row["replan"]) != (8, 8)
  ]
  path.write_text(json.dumps(content))
  run = lambda **changes: compare_policies.run(
    values(**changes), out, data=data, methods=("oat",), stages=("report",)
  )
  with pytest.raises(ValueError, match="'oat' of seed 1 lacks K=8 R=8; run stage 'evaluate'"):
    run()
  shutil.copy(compared / "evaluations/oat/seed1/evaluation.json", path)
  with pytest.raises(ValueError, match="'oat@3'; oat was evaluated with K of 1, 8"):
    run(pairs=(("oat@8", "oat@3"),))


def test_two_seeds_of_a_method_are_pooled(compared, data, simulator):
  compare_policies.run(values(), compared, data=data, methods=("oat", "floor"), stages=("report",))
  content = json.loads((compared / "report/policies.json").read_text())
  oat = next(s for s in content["settings"] if s["num_tokens"] == 8)
  assert oat["success"]["8"]["overall"]["n"] == 24 and oat["success"]["8"]["overall"]["k"] == 16
  assert content["methods"]["oat"]["seeds"] == [0, 1]
  assert {d["goals"] for d in content["differences"]} == {12}  # a goal's rows stay together


def test_what_is_done_is_not_done_again(compared, data, simulator, capsys):
  before = tiny.listing(compared / "policies/oat"), len(Simulator.started)
  compare_policies.run(
    values(), compared, data=data, methods=("oat",), seeds=(0,), stages=("policies", "evaluate")
  )
  assert (tiny.listing(compared / "policies/oat"), len(Simulator.started)) == before
  out = capsys.readouterr().out
  assert "is done: 2 steps" in out and "autoregressive R=4 K=8: evaluated already" in out


def test_a_stage_whose_needs_are_not_there_says_which(data, simulator, tmp_path):
  run = lambda *stages: compare_policies.run(
    values(), tmp_path, data=data, methods=("oat",), seeds=(0,), stages=stages
  )
  with pytest.raises(FileNotFoundError, match="is no working directory"):
    run("policies")
  run("tokenizers")
  with pytest.raises(ValueError, match="is at step 0 of 2; run the stage 'policies'"):
    run("evaluate")


def test_a_stopped_comparison_goes_on(data, simulator, tmp_path, monkeypatch):
  train, calls = loop.train, []

  def stops(config, workdir):
    calls.append(workdir.parent.name)
    if len(calls) == 2:
      raise signals.Interrupted("stopped")
    return train(config, workdir)

  run = lambda: compare_policies.run(
    values(), tmp_path, data=data, methods=("oat",), seeds=(0,), stages=("tokenizers", "policies")
  )
  monkeypatch.setattr(loop, "train", stops)
  with pytest.raises(KeyboardInterrupt):
    run()
  run()
  assert models.load(tmp_path / "policies/oat/seed0").step == 2
  assert calls == ["oat"] * 4  # the tokenizer, its policy; the tokenizer found done, its policy


def test_commands_for_a_cluster_do_what_one_call_does():
  lines = compare_policies.commands(values(), ["compare", "--out=a b"], methods=("oat", "floor"))
  parts = [shlex.split(line) for line in lines]
  assert all(part[:2] == ["compare", "--out=a b"] for part in parts)
  assert [part[2:] for part in parts] == [
    ["--stages=collect"],
    ["--methods=oat", "--seeds=0,1", "--stages=tokenizers"],
    ["--methods=oat", "--seeds=0", "--stages=policies,evaluate"],
    ["--methods=floor", "--seeds=0", "--stages=policies,evaluate"],
    ["--methods=oat", "--seeds=1", "--stages=policies,evaluate"],
    ["--methods=floor", "--seeds=1", "--stages=policies,evaluate"],
    ["--methods=oat,floor", "--seeds=0,1", "--stages=report"],
  ]


@pytest.mark.parametrize("flags", [["--observations=rgb"], ["--observations", "rgb"]])
def test_the_command_takes_the_config_of_what_is_observed(flags):
  code, out, err = tiny.command(
    "launch/compare.py", "policies", *flags, "--methods", "oat,regression", "--print_commands",
    "--config.policy.steps=7",
  )  # fmt: skip
  assert code == 0, err
  lines = out.splitlines()
  assert all("--config=configs/compare_policies.py:rgb --config.policy.steps=7" in x for x in lines)
  assert all("--out=runs/policies_rgb --suite=metaworld/mt4" in line for line in lines)
  assert len(lines) == 5 and "--methods=oat --seeds=0 --stages=policies,evaluate" in lines[2]


def test_two_ways_to_say_the_config_are_refused():
  config = f"--config={tiny.ROOT}/configs/compare_policies.py:mini"
  code, _, err = tiny.command("launch/compare.py", "policies", config, "--observations=rgb")
  assert code == 1 and "leave it or --config out" in err


def test_a_report_is_of_the_runs_and_evaluations_that_the_config_says(compared, data, simulator):
  report = lambda **changes: compare_policies.run(
    values(**changes), compared, data=data, methods=("floor",), seeds=(0,), stages=("report",)
  )
  policy = values()["policy"]
  with pytest.raises(ValueError, match="'floor' was trained {'steps': 2.*; the config says"):
    report(policy=policy | {"steps": 9})
  with pytest.raises(ValueError, match="is of another evaluation.*run stage 'evaluate' again"):
    report(evaluate=values()["evaluate"] | {"episodes": 4})
  with pytest.raises(ValueError, match="seed 0 lacks K=0 R=2; run stage 'evaluate'"):
    report(evaluate=values()["evaluate"] | {"replans": (2,)})


@pytest.mark.parametrize(
  ("changes", "how", "message"),
  [
    ({}, {"methods": ("oats",)}, "there is no method 'oats'; did you mean 'oat'"),
    ({}, {"stages": ("train",)}, "stage is 'train'; it must be one of"),
    ({"suite": "metaworld/mt5"}, {}, "there is no suite 'metaworld/mt5'"),
    ({"methods": {}}, {}, "config.methods is empty"),
    ({"methods": {"a": {"tokenizer": "oats", "model": {}}}}, {}, "methods.a.tokenizer is 'oats'"),
    ({"methods": {"a": {"modle": {}}}, "pairs": ()}, {}, "config.methods.a has no key 'modle'"),
    (
      {"methods": {"oat": {"tokenizer": "oat", "model": {"name": "regresion"}}}, "pairs": ()},
      {},
      "config.methods.oat: config.model.name is 'regresion'",
    ),
    ({"tokenizers": {"oat": {"name": "oat", "levels": (1,)}, "plain": {}, "bin": {}}},
     {"methods": ("oat",)}, "config.tokenizers.oat: config.model.levels"),
    ({"pairs": (("oat",),)}, {}, "config.pairs holds"),
    ({"pairs": (("oat", "dp"),)}, {}, "config.pairs is 'dp'; it must be one of: oat"),
    ({"pairs": (("oat@x", "floor"),)}, {}, "holds 'oat@x'; behind the @"),
    ({"evaluate": values()["evaluate"] | {"num_tokens": (0,)}}, {}, "evaluate.num_tokens is 0"),
    ({"evaluate": values()["evaluate"] | {"top_k": 3}}, {}, "top_k needs a temperature above 0"),
    ({"evaluate": values()["evaluate"] | {"mean_tokens": (9,)}}, {}, "tokens of oat is 9; it must"),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(
  changes, how, message, data, simulator, tmp_path
):
  with pytest.raises(ValueError, match=message):
    compare_policies.run(values(**changes), tmp_path / "out", data=data, **how)
  assert not (tmp_path / "out").exists()


def test_training_needs_no_simulator(data, tmp_path, monkeypatch):
  """Neither a suite that is known nor one that is installed, and no demonstrations of its own."""
  run = lambda stages, **changes: compare_policies.run(
    {k: v for k, v in values(**changes).items() if k != "collect"},
    tmp_path / "out",
    data=data,
    methods=("bin", "floor"),
    seeds=(0,),
    stages=stages,
  )
  hint = "or only train here: --stages=tokenizers,policies"
  with pytest.raises(ValueError, match=f"there is no suite 'kitchen/four'.*{hint}"):
    run(compare_policies.STAGES, suite="kitchen/four")
  monkeypatch.setattr(env_lib, "versions", lambda suite: (_ for _ in ()).throw(ImportError("no")))
  with pytest.raises(ImportError, match=f"no; {hint}"):
    run(compare_policies.STAGES)
  assert not (tmp_path / "out").exists()
  run(("tokenizers", "policies"), suite="kitchen/four")
  assert models.load(tmp_path / "out/policies/bin/seed0").step == 2


def test_demonstrations_are_collected_or_given(tmp_path):
  files = {k: v for k, v in values().items() if k != "collect"}
  with pytest.raises(ValueError, match="come from files, config.collect is not set; pass --data"):
    compare_policies.run(files, tmp_path / "out")
  with pytest.raises(ValueError, match="come from files"):
    compare_policies.commands(files, ["compare"])
  lines = compare_policies.commands(files, ["compare"], data="DIR", methods=("floor",), seeds=(0,))
  assert [line.split()[-1] for line in lines] == ["--stages=policies,evaluate", "--stages=report"]


def test_tokens_are_drawn_as_the_config_says(compared, data, simulator, tmp_path):
  out = tmp_path / "out"
  for part in ("tokenizers", "policies"):
    shutil.copytree(compared / part, out / part)
  drawn = {"temperature": 0.5, "top_k": 3}
  run = lambda how: compare_policies.run(
    values(evaluate=values()["evaluate"] | how),
    out,
    data=data,
    methods=("oat", "floor"),
    seeds=(0,),
    stages=("evaluate", "report") if how else ("report",),
  )
  run(drawn)
  facts = lambda name: json.loads((out / f"evaluations/{name}/seed0/evaluation.json").read_text())[
    "facts"
  ]
  assert facts("oat")["sampling"] == drawn
  assert facts("floor")["sampling"] == {"temperature": 0.0, "top_k": 0}  # it has no tokens
  with pytest.raises(ValueError, match="is of another evaluation.*'temperature': 0.5"):
    run({})


def test_an_evaluation_that_is_missing_names_its_method(data, simulator, tmp_path):
  compare_policies.run(
    values(), tmp_path, data=data, methods=("floor",), seeds=(0,), stages=("policies",)
  )
  with pytest.raises(FileNotFoundError, match="'floor' of seed 0 has no report; run stage 'evalu"):
    compare_policies.run(
      values(), tmp_path, data=data, methods=("floor",), seeds=(0,), stages=("report",)
    )


@pytest.mark.parametrize("variant", ["state", "rgb", "mini"])
def test_the_shipped_configs_freeze(variant):
  shipped = tiny.get_config("compare_policies.py", variant)
  config = config_lib.freeze(compare_policies.Config, shipped)
  runs = compare_policies.training_runs(config, tiny.ROOT, tuple(config.methods))
  assert len(runs) == (4 if variant == "rgb" else 16)
  budgets = {
    kind: {(r.steps, r.batch_size, r.optimizer) for r in runs if r.kind == kind}
    for kind in ("tokenizer", "policy")
  }
  assert all(len(each) == 1 for each in budgets.values())
  widths = {
    config.method(name).model["width"]
    for name in config.methods
    if "width" in config.method(name).model
  }
  assert len(widths) == 1
  compared = {
    int(K) for pair in config.pairs for _, at, K in (each.partition("@") for each in pair) if at
  }
  assert compared <= {*config.evaluate.num_tokens}


def test_a_setting_says_what_it_is():
  title = lambda *args: policies_report.Setting(*args).title
  assert title("oat", 1, False) == "oat 1 token" and title("dp", 0, False) == "dp"
  assert title("oat", 4, True) == "oat 4 tokens on average"
