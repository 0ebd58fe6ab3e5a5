"""The comparison of tokenizers in miniature: what its report says, and what is not done twice."""

import json
import re

from comparison import A
from comparison import values
import jax
from matplotlib import image
import numpy as np
import pytest
from scipy import stats
import tiny

from oat_jax.data import pipeline
from oat_jax.envs import env as env_lib
from oat_jax.envs import vector
from oat_jax.study import compare
from oat_jax.study import compare_markdown
from oat_jax.study import compare_report
from oat_jax.study import measure
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import models

EXAMPLE = "examples.linear_tokenizer"
METHODS = ("oat", "bin")
SEEDS = {"oat": ["0", "1"], "bin": ["0"], EXAMPLE: ["3"]}  # one, where there is nothing random
N_BIN = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny.write_dataset(tmp_path_factory.mktemp("compare") / "data", action_dim=A)


class Simulator:
  """Every episode succeeds where what is executed is what the expert wants, to one tenth."""

  started = []

  def __init__(self, suite_name, processes=None, *, max_steps, **settings):
    self.max_steps = max_steps

  def __enter__(self):
    return self

  def __exit__(self, *error):
    pass

  def expert_chunks(self, steps, active_B):
    return np.full((len(active_B), steps, A), 0.5, np.float32)

  def start(self, pairs):
    self.started.append(list(pairs))
    self.near, self.steps = np.ones(len(pairs), bool), np.zeros(len(pairs), np.int32)
    return self._state()

  def step(self, actions_BRA, active_B):
    self.near &= (np.abs(actions_BRA - 0.5) < 0.1).all((1, 2))
    self.steps = self.steps + actions_BRA.shape[1]
    return self._state()

  def _state(self):
    done = self.steps >= self.max_steps
    mask = np.ones((len(done), 2), bool)
    again = np.zeros(len(done), np.int32)
    return vector.VectorState({}, mask, done, done & self.near, self.steps, again)


@pytest.fixture(scope="module")
def simulator():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vector, "VectorEnv", Simulator)
    patch.setattr(env_lib, "versions", lambda suite: {})
    yield


@pytest.fixture(scope="module")
def compared(data, simulator, tmp_path_factory):
  """The directory of oat, bin and one by a module's path; vq is left out."""
  out = tmp_path_factory.mktemp("compare") / "out"
  run = lambda *methods, **how: compare.run(values(), data, out, methods=methods, **how)
  assert run(EXAMPLE, seeds=(3,), stages=("train",)) == out / "report"
  assert not (out / "report").exists()
  run(EXAMPLE, seeds=(3,), suite="metaworld/mt4", stages=("model", "ceiling"))
  run(*METHODS, suite="metaworld/mt4", stages=("train", "ceiling"))
  run("oat", suite="metaworld/mt4", stages=("model", "report"))
  return out


@pytest.fixture(scope="module")
def content(compared):
  return json.loads((compared / "report" / "comparison.json").read_text())


def test_every_method_is_there_with_each_of_its_seeds(content):
  assert {name: list(each["by_seed"]) for name, each in content["methods"].items()} == SEEDS
  assert content["missing"] == ["vq: not run"]
  assert content["methods"][EXAMPLE]["facts"]["steps"] == 4  # the learned ones' budget
  assert content["methods"]["bin"]["facts"]["steps"] == 1
  for name, each in content["methods"].items():
    assert min(each["seconds"]["tokenizer"].values()) > 0
    assert list(each["ceiling"]) == SEEDS[name][:1]
  assert list(content["methods"]["oat"]["model"]["by_seed"]) == ["0"]
  assert set(content["methods"]["oat"]["seconds"]["model"]) == {"cpu", "wall"}
  assert [each["methods"] for each in content["measured"]] == [["bin", EXAMPLE, "oat"]]
  assert list(content["methods"][EXAMPLE]["model"]["by_seed"]) == ["3"]
  assert content["methods"]["bin"]["model"] is None


def test_figures_are_means_over_seeds(content):
  each = content["methods"]["oat"]
  for name in ("mse", "drift", "worst_dimension_mse", "tokens_per_chunk"):
    mean = np.mean([figures[name] for figures in each["by_seed"].values()])
    assert each["mean"][name] == pytest.approx(mean)
  curves = [figures["prefixes"]["mse"] for figures in each["by_seed"].values()]
  assert not np.allclose(*curves)
  np.testing.assert_allclose(each["mean"]["prefixes"]["mse"], np.mean(curves, 0))
  assert each["rises"] == [bool((np.diff(curve) > 0).any()) for curve in curves]


def test_what_is_measured_is_what_the_tokenizer_does(compared, content, data):
  trained = models.load(compared / "oat" / "seed1" / "tokenizer")
  windows = inputs.evenly(inputs.load(trained.config.data, images=False).validation, 20)
  batch, valid_B = next(pipeline.epoch(windows, len(windows)))
  assert valid_B.all()
  found = jax.jit(trained.model.evaluate)(trained.params, batch)
  figures = content["methods"]["oat"]["by_seed"]["1"]
  np.testing.assert_allclose(figures["prefixes"]["mse"], found["mse"].mean(0), rtol=1e-5)
  # The errors that pairs are compared by: each held-out episode's own windows.
  path = compared / "oat" / "seed1" / "tokenizer.json"
  by_episode = json.loads(path.read_text())["by_episode"]
  episode_B = windows.windows.episode_W[windows.indices]
  assert list(by_episode) == ["1", "2", "4", "8"] and len(np.unique(episode_B)) > 1
  for K, errors in by_episode.items():
    mse_B = found["mse"][:, int(K) - 1]
    wanted = [mse_B[episode_B == episode].mean() for episode in np.unique(episode_B)]
    np.testing.assert_allclose(errors, wanted, rtol=1e-5)
  assert figures["mse"] == figures["prefixes"]["mse"][-1]
  assert figures["tokens_per_chunk"] == 8
  assert figures["bits_per_chunk"] == pytest.approx(8 * np.log2(1000))
  assert figures["codes"]["used"] == len(np.unique(found["tokens"]))
  weights = sum(x.size for x in jax.tree.leaves(trained.params["network"]))
  assert content["methods"]["oat"]["facts"]["parameters"] == weights
  assert figures["worst_dimension_mse"] >= figures["mse"] * 0.99
  assert set(figures["cpu_us"]) == {"encode", "decode"}
  assert all(cost > 0 for costs in figures["cpu_us"].values() for cost in costs.values())
  bins = content["methods"]["bin"]["mean"]
  assert bins["tokens_per_chunk"] == N_BIN and bins["bits_per_chunk"] == N_BIN * 8
  assert bins["mse"] < 1e-4 < figures["mse"]
  for each in content["methods"].values():
    for shares in each["mean"]["decodable"].values():
      assert shares == {"decodable": 1, "finite": 1, "in_range": 1}


def test_units_are_the_same_whatever_a_tokenizer_normalises_by(compared):
  trained = models.load(compared / "bin" / "seed0" / "tokenizer")
  windows = inputs.evenly(inputs.load(trained.config.data, images=False).validation, 20)
  units = {name: np.asarray(trained.params["statistics"][name]) for name in ("offset", "scale")}
  once = measure.tokenizer(trained, windows, units, 4)["figures"]
  few = trained._replace(tokenizer=trained.tokenizer._replace(budgets=(1, 16, 32)))
  twice = measure.tokenizer(few, windows, units | {"scale": 2 * units["scale"]}, 4)["figures"]
  assert twice["mse"] == pytest.approx(4 * once["mse"], rel=1e-4)
  assert twice["drift"] == pytest.approx(2 * once["drift"], rel=1e-4)
  # Between two budgets the bits are those of the lower one.
  bits = [each["prefixes"]["bits"] for each in (once, twice)]
  assert [[each[K - 1] for K in (1, 15, 16, 32)] for each in bits] == [
    [8, 120, 128, 256],
    [8, 8, 128, 256],
  ]


def test_the_bits_of_a_policy_are_its_cross_entropy(compared, content):
  trained = models.load(compared / "oat" / "seed0" / "model")
  windows = inputs.evenly(inputs.load(trained.config.data, images=False).validation, 20)
  batch, _ = next(pipeline.epoch(windows, len(windows)))
  score = jax.jit(lambda params, batch: trained.model.evaluate(params, batch)["cross_entropy"])
  nats_BN = np.asarray(score(trained.params, batch))
  model = content["methods"]["oat"]["model"]["mean"]
  assert model["bits"] == pytest.approx(nats_BN.sum(1).mean() / np.log(2), rel=1e-4)
  assert model["sampled_mse"] > content["methods"]["bin"]["mean"]["mse"]


def test_pairs_are_compared_on_the_same_episodes(compared, content):
  pairs = {(pair["first"], pair["second"]): pair for pair in content["pairs"]}
  # vq was not run: the best of bin and it is bin.
  assert set(pairs) == {("oat@8", "oat@4"), ("oat@8", f"bin@{N_BIN}")}
  pair = pairs["oat@8", "oat@4"]
  by_episode = [
    json.loads((compared / "oat" / f"seed{seed}" / "tokenizer.json").read_text())["by_episode"]
    for seed in (0, 1)
  ]
  eight, four = (np.mean([each[K] for each in by_episode], 0) for K in ("8", "4"))
  assert pair["difference"]["mean"] == pytest.approx((eight - four).mean())
  interval = stats.ttest_rel(eight, four).confidence_interval(0.95)
  assert pair["difference"]["low"] == pytest.approx(interval.low)
  assert pair["difference"]["high"] == pytest.approx(interval.high)
  mse_N = content["methods"]["oat"]["mean"]["prefixes"]["mse"]
  assert pair["mse"] == pytest.approx([mse_N[7], mse_N[3]])
  assert pair["ratio"] == pytest.approx(mse_N[7] / mse_N[3])
  assert set(pair["ratio_by_seed"]) == {"0", "1"}
  assert set(pairs["oat@8", f"bin@{N_BIN}"]["ratio_by_seed"]) == {"0"}


def test_the_best_of_several_is_the_one_with_the_lowest_error():
  def measured(*mse):
    by_episode = {str(K + 1): [value] for K, value in enumerate(mse)}
    figures = {"prefixes": {"mse": list(mse)}}
    facts = {"max_tokens": len(mse)}
    return {0: {"tokenizer": {"figures": figures, "facts": facts, "by_episode": by_episode}}}

  found = {"a": measured(3, 2), "b": measured(1)}
  assert compare_report.best(found, "a|b|none") == ("b", 1)
  assert compare_report.best(found, "a@1|none") == ("a", 1)
  assert compare_report.best(found, "a") == ("a", 2)
  assert compare_report.best(found, "b@2|none") is None


def test_the_ceiling_runs_every_prefix_of_a_learned_tokenizer_and_the_expert_once(content):
  rates = {name: content["methods"][name]["ceiling"]["0"] for name in METHODS}
  # A fitted tokenizer needs all of its tokens.
  assert {name: list(by_k) for name, by_k in rates.items()} == {
    "oat": ["1", "8"],
    "bin": [str(N_BIN)],
  }
  assert content["expert"]["k"] == content["expert"]["n"] == 4
  assert rates["bin"][str(N_BIN)]["k"] == 4 and rates["oat"]["1"]["k"] == 0
  example = 1 + 1  # a call of its own: expert, and K=1 of its 4 tokens
  assert len(Simulator.started) == example + 1 + 2 + 1
  assert all(pairs == Simulator.started[0] for pairs in Simulator.started)


def test_the_text_shows_the_figures(compared, content):
  text = (compared / "report" / "comparison.md").read_text()
  for name, each in content["methods"].items():
    assert f"| {name} |" in text and f"{each['mean']['mse']:.3g}" in text
  assert "**Missing:** vq: not run." in text and "The expert itself: 100 % (51-100)." in text
  assert "Every decoded chunk was finite" in text and "Means of up to 2 seeds" in text
  names = re.findall(r"!\[.+?\]\((.+?)\)", text)
  pictures = [path.name for path in (compared / "report").glob("*.png")]
  assert {*names, "table.png"} == set(pictures) and len(names) == 4
  for name in names:
    pixels_HWC = image.imread(compared / "report" / name)
    assert 300 < min(pixels_HWC.shape[:2]) and max(pixels_HWC.shape[:2]) < 3000
  rows = [line for line in text.splitlines() if line.startswith("| oat |")]
  assert len(rows) == 5 and "nan" not in text
  # CPU seconds say nothing where something else computes.
  seconds = content["methods"]["oat"]["seconds"]["tokenizer"]
  for clock, cpu_only in (("CPU", True), ("wall", False)):
    machine = content["measured"][0]["machine"] | {"cpu_only": cpu_only}
    elsewhere = content | {"measured": [{"machine": machine}]}
    heads, table = compare_markdown.main_table(elsewhere)
    cells = next(row for row in table if row[0] == "oat")
    assert (heads[-1], cells[-1]) == (f"train {clock} s", f"{seconds[clock.lower()]:.0f}")


def files(out):
  """{file: time of its last change} of all that is not the report."""
  paths = [p for p in out.glob("*/seed*/**/*") if p.is_file() and p.name != ".lock"]
  changed = {p: p.stat().st_mtime_ns for p in paths if p.name != "config.json"}
  assert len(changed) > 50
  return changed


def test_a_second_call_trains_and_measures_nothing(compared, content, data, capsys, monkeypatch):
  before, episodes = files(compared), len(Simulator.started)
  monkeypatch.setattr(loop, "_steps", None)
  monkeypatch.setattr(measure, "tokenizer", None)
  monkeypatch.setattr(measure, "model", None)
  again = lambda *methods, **how: compare.run(
    values(), data, compared, methods=methods, suite="metaworld/mt4", **how
  )
  again(*METHODS, stages=("train", "ceiling"))
  again("oat", stages=("model", "report"))
  assert files(compared) == before and len(Simulator.started) == episodes
  assert capsys.readouterr().out.count("measured already") == 3 + 1
  again = json.loads((compared / "report" / "comparison.json").read_text())
  assert again == content


def test_the_report_of_other_methods_keeps_these(compared, content, data):
  how = {"suite": "metaworld/mt4", "stages": ("report",)}
  compare.run(values(), data, compared, methods=("bin",), **how)
  again = json.loads((compared / "report" / "comparison.json").read_text())
  assert again["methods"] == content["methods"]


def test_measurements_of_other_windows_are_not_mixed_in(compared, data):
  with pytest.raises(ValueError, match="holds no tokenizer measured on these.*bin, .*, oat"):
    compare.run(values(windows=10), data, compared, stages=("report",))


@pytest.fixture
def measured(compared):
  """What tells the measurements that are there from others."""
  of = json.loads((compared / "oat" / "seed0" / "tokenizer.json").read_text())["of"]
  return {name: value for name, value in of.items() if name != "model"}


@pytest.mark.parametrize(
  ("part", "changes", "stale"),
  [
    ("ceiling", {"episodes": 2}, {"oat", "bin", EXAMPLE}),
    ("ceiling", {"max_steps": 9}, {"oat", "bin", EXAMPLE}),
    ("ceiling", {"replan": 2}, {"oat", "bin", EXAMPLE}),
    # bin is run with all of its tokens only; the example has 4, and was run with 1.
    ("ceiling", {"num_tokens": ()}, {"oat", EXAMPLE}),
    ("ceiling", {"num_tokens": (8,)}, {EXAMPLE}),
    ("modelability", {"steps": 3}, {"oat", EXAMPLE}),
    ("modelability", {"batch_size": 8}, {"oat", EXAMPLE}),
    ("suite", "metaworld/other", {"oat", "bin", EXAMPLE}),
  ],
)
def test_what_was_run_by_another_plan_is_left_out(
  part, changes, stale, compared, content, measured
):
  changed = content[part] | changes if isinstance(changes, dict) else changes
  found, others, left_out = compare_report.read(compared, measured, content | {part: changed})
  name = {"modelability": "model"}.get(part, "ceiling")
  first = {method: int(seeds[0]) for method, seeds in SEEDS.items()}
  assert not others and set(left_out) == {(method, name, first[method]) for method in stale}
  there = {method for method in SEEDS if found[method][first[method]][name] is not None}
  assert there == ({"oat", EXAMPLE} if name == "model" else set(SEEDS)) - stale


def test_the_report_says_what_is_of_another_plan(compared, data):
  changed = values(modelability=tiny.run_values("policy", "", steps=3))
  how = {"methods": ("oat",), "suite": "metaworld/mt4", "stages": ("report",)}
  compare.run(changed, data, compared, **how)
  again = json.loads((compared / "report" / "comparison.json").read_text())
  why = "is of another tokenizer or plan, or not whole"
  parts = (f"{EXAMPLE}: the model of seed 3", "oat: the model of seed 0")
  assert again["missing"] == ["vq: not run", *(f"{part} {why}" for part in parts)]


def test_tokenizers_of_another_recipe_are_left_out(compared, content, measured, data):
  plans = json.loads(json.dumps(content["plans"]))
  assert set(plans) == {"oat", "bin", "vq"} and plans["oat"]["steps"] == 4
  plans["oat"]["model"]["width"] = 48
  found, others, stale = compare_report.read(compared, measured, content | {"plans": plans})
  assert set(found) == {"bin", EXAMPLE} and not others
  assert stale == [("oat", "tokenizer", 0), ("oat", "tokenizer", 1)]
  longer = values()["methods"]
  longer["oat"]["steps"] = 6
  changed = values(methods=longer)
  how = {"suite": "metaworld/mt4", "stages": ("report",)}
  try:
    compare.run(changed, data, compared, methods=("bin",), **how)
    again = json.loads((compared / "report" / "comparison.json").read_text())
  finally:
    compare.run(values(), data, compared, methods=("oat",), **how)
  why = "was trained by another plan than the config's: choose another OUT"
  assert again["missing"][:3] == [
    "vq: not run",
    *(f"oat: the tokenizer of seed {seed} {why}" for seed in (0, 1)),
  ]


def test_a_changed_replan_is_another_drift(compared, data):
  with pytest.raises(ValueError, match="holds no tokenizer measured on these"):
    changed = values(ceiling=values()["ceiling"] | {"replan": 2})
    compare.run(changed, data, compared, stages=("report",))


def test_parts_of_another_tokenizer_are_left_out(compared, content, measured):
  path = compared / "oat" / "seed0" / "tokenizer.json"
  kept = path.read_text()
  try:
    path.write_text(kept.replace(json.loads(kept)["of"]["model"], "0" * 16))
    found, others, stale = compare_report.read(compared, measured, content)
  finally:
    path.write_text(kept)
  assert found["oat"][0]["model"] is found["oat"][0]["ceiling"] is None and not others
  assert stale == [("oat", "model", 0), ("oat", "ceiling", 0)]
  assert found["bin"][0]["ceiling"]


def test_a_ceiling_takes_budgets_that_the_tokenizer_has():
  budgets = compare_report.ceiling_budgets
  assert budgets((1, 2, 4), True, (1, 4, 8)) == [1, 4]
  assert budgets((1, 2, 4), True, (8,)) == [4]
  assert budgets((1, 2, 4, 8, 16, 32), True, ()) == [1, 2, 4, 8, 16]
  assert budgets(tuple(range(1, 129)), False, (1, 8)) == [128]


def test_one_data_for_all_runs_and_the_first_seed_where_none_is_named(data, tmp_path):
  seen = {}
  changes = {"data": values()["data"] | {"action_horizon": 4}, "same_tokens": {"vq": "oat"}}
  with pytest.MonkeyPatch.context() as patch:
    # Every call is kept: the job, what it is measured on, and the policy.
    keep = lambda name: lambda job, *rest: seen.setdefault(name, []).append((job, rest))
    patch.setattr(compare, "_train", keep("train"))
    patch.setattr(compare, "_model", keep("model"))
    compare.run(values(**changes), data, tmp_path, seeds=(3, 1, 4), stages=("train", "model"))
  assert {job.run.data.action_horizon for job, _ in seen["train"]} == {4}
  assert len(seen["train"]) == 3 + 1 + 3
  modelled = [(job.method, job.seed) for job, _ in seen["model"]]
  assert modelled == [("oat", 3), ("bin", 0)]
  assert {rest[1].data.action_horizon for _, rest in seen["model"]} == {4}
  assert seen["model"][0][1][1].data.path == str(data)


def test_another_dataset_is_another_directory(compared, tmp_path):
  other = tiny.write_dataset(tmp_path / "other", action_dim=A, seed=7)
  with pytest.raises(ValueError, match="holds another run(.|\n)*dataset_fingerprint"):
    compare.run(values(), other, compared, methods=("oat",), stages=("train",))


def test_without_a_suite_there_is_no_ceiling(data, tmp_path, capsys):
  compare.run(values(), data, tmp_path, methods=("bin",), stages=("train", "ceiling", "report"))
  assert "names no suite with a scripted expert" in capsys.readouterr().out
  content = json.loads((tmp_path / "report" / "comparison.json").read_text())
  assert content["methods"]["bin"]["ceiling"] == {} and content["expert"] is None
  assert "bin: no model of seed 0" in content["missing"]
  assert "## Ceiling" not in (tmp_path / "report" / "comparison.md").read_text()


def test_a_fitted_tokenizer_by_its_path_is_compared(data, tmp_path):
  name = "oat_jax.tokenizers.binning"
  compare.run(values(), data, tmp_path, methods=(name,), stages=("train", "report"))
  content = json.loads((tmp_path / "report" / "comparison.json").read_text())
  assert list(content["methods"]) == [name] and content["plans"][name]["steps"] == 1
