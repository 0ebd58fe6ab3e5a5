"""Grids and their runs: names, budgets, what is done, and what is refused."""

import json
import shutil

import pytest
import sweeps
import tiny

from oat_jax import config as config_lib
from oat_jax.scaling import sweep
from oat_jax.scaling import sweep_table
from oat_jax.train import config as train_config
from oat_jax.train import models


def test_a_grid_is_all_combinations_with_names_of_their_own(tmp_path):
  runs = sweeps.expand(tmp_path)
  names = ["small_steps6_seed0", "small_steps6_seed1", "large_steps6_seed0", "large_steps6_seed1"]
  assert [run.name for run in runs] == names
  assert [run.config.model["width"] for run in runs] == [32, 32, 64, 64]
  assert [run.config.seed for run in runs] == [0, 1, 0, 1]
  assert [run.workdir for run in runs] == [tmp_path / "runs" / name for name in names]
  assert runs[2].source == "tiny.py:base,large" and runs[2].parameters == 64 * 64
  assert runs[2].flops == 6 * 64e3 * 16


def test_names_do_not_depend_on_what_else_is_in_the_grid(tmp_path):
  few = sweeps.expand(tmp_path, axes={"seed": (1,), "steps": (6,), "size": ("large",)})
  assert few[0].name in {run.name for run in sweeps.expand(tmp_path)}


def test_every_axis_sets_its_key(tmp_path):
  axes = {
    "size": ("small",), "data": (0.25,), "num_tokens": (2,), "codebook": ((4, 4),),
    "dropout": (0.1,), "passes": (2.0,), "seed": (3,),
  }  # fmt: skip
  (run,) = sweeps.expand(tmp_path, axes=axes, extra_axes={"dropout": "model.dropout"})
  assert run.name == "small_data0.25_num_tokens2_codebook4-4_dropout0.1_passes2_seed3"
  assert run.config.data.train_fraction == 0.25 and run.config.model["num_tokens"] == 2
  assert run.config.model["levels"] == [4, 4] and run.config.model["dropout"] == 0.1
  assert run.config.seed == 3
  # 100 windows, twice, in batches of 16; evaluated twice; a tenth of it is warm-up.
  assert run.config.steps == 12 and run.config.evaluate_every == run.config.save_every == 6
  assert run.config.optimizer.warmup_steps == 1
  assert "--config.model.levels=(4, 4)" in run.arguments


def test_a_budget_in_flops_is_spent_by_every_size(tmp_path):
  axes = {"size": ("small", "large"), "flops": (1e8,), "seed": (0,)}
  small, large = sweeps.expand(tmp_path, axes=axes)
  assert small.config.steps == round(1e8 / (32e3 * 16)) and large.config.steps < small.config.steps
  assert small.flops == pytest.approx(large.flops, rel=0.02)


def test_a_run_without_a_budget_has_its_configs_steps(tmp_path):
  (run,) = sweeps.expand(tmp_path, axes={"size": ("small",)})
  assert run.config.steps == 6


REFUSED = [
  ({"axes": {"sise": ("small",)}}, "holds 'sise'; did you mean 'size'"),
  (
    {"axes": {"depth": (1,)}},
    "config.axes holds 'depth'; axes are size, data, .* config.extra_axes",
  ),
  ({"axes": {}}, "config.axes is empty"),
  ({"axes": {"size": ()}}, "config.axes.size is empty: a grid of no runs"),
  ({"axes": {"seed": 3}}, "config.axes.seed is 3; it must be a sequence"),
  ({"axes": {"seed": (1, 1)}}, "config.axes.seed holds a value twice"),
  ({"axes": {"steps": (1,), "flops": (1.0,)}}, "steps and flops: a run has one budget"),
  ({"axes": {"steps": (2.5,)}}, "config.axes.steps holds 2.5; it must be a whole number above 0"),
  ({"axes": {"passes": (-1.0,)}}, "config.axes.passes holds -1.0; it must be a number above 0"),
  ({"axes": {"flops": (100.0,)}}, "one step takes 5.12e.05 FLOPs, more than its budget"),
  ({"set": {"seed": 7}}, "config.set has 'seed', which the sweep's axes"),
  ({"extra_axes": {"seed": "model.width"}}, "config.extra_axes.seed renames an axis"),
  ({"evaluations": 0}, "config.evaluations is 0"),
  ({"set": {"modle": {"width": 1}}}, "run small_steps6_seed0: .* no key 'modle.width'; did you"),
  (
    {"extra_axes": {"d": "model.dropuot"}, "axes": {"d": (0.1,)}},
    "no key 'model.dropuot'; did you mean",
  ),
  ({"axes": {"seed": ("one",)}}, "run seedone: config.seed is 'one'; expected int"),
  ({"axes": {"data": (1.5,)}}, "run data1.5: config.data.train_fraction is 1.5"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_sweep_that_makes_no_sense_is_refused(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    sweeps.expand(tmp_path, **changes)


def whole(run, **more):
  config = {
    **{"format_version": models.FORMAT_VERSION, "config": train_config.to_json(run.config)},
    **{"dataset_fingerprint": "data", "tokenizer": None},
  }
  sweeps.write(run.workdir, config, run.config.steps, **more)


def test_a_run_is_done_where_all_of_it_is_there(tmp_path):
  first, second, *others = sweeps.expand(tmp_path)
  whole(first)
  whole(second)
  shutil.rmtree(second.workdir / "checkpoints" / "6")
  (second.workdir / "checkpoints" / "3").mkdir()
  states = sweep.states([first, second, *others])
  assert [state.done for state in states] == [True, False, False, False]
  text = sweep_table.text([first, second, *others], states, {first.name: 1.0}, "")
  assert "1 of 4 runs are done; the others take" in text and "50 % saved" in text
  assert text.splitlines()[1].endswith("done") and text.splitlines()[4].endswith("to do")


def test_settings_that_change_no_result_do_not_make_another_run(tmp_path):
  (run,) = sweeps.expand(tmp_path, axes={"size": ("small",), "seed": (0,)})
  whole(run)
  (same,) = sweeps.expand(
    tmp_path, axes={"size": ("small",), "seed": (0,)}, set={"data": {"path": "/moved"}}
  )
  assert sweep.state(same).done


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    ("other", "it holds another run: config.batch_size: 16 there, 32 now"),
    ("config", "config.json is not a run's description"),
    ("no config", "holds checkpoints and no config.json"),
    ("no provenance", "provenance.json is missing"),
    ("no metrics", "metrics.jsonl cannot be read"),
    ("cut metrics", "metrics.jsonl has no evaluation of its last step 6"),
    ("torn metrics", "metrics.jsonl has no evaluation of its last step 6"),
    ("broken metrics", "metrics.jsonl cannot be read"),
    ("other data", "it holds another run: dataset_fingerprint: 'data' there, 'other' now"),
    ("other tokens", "it holds another run: tokenizer: '' there, 'abc' now"),
    ("beyond", "checkpoint 9 is beyond its last step"),
  ],
)
def test_a_directory_that_was_changed_by_hand_is_refused(tmp_path, damage, message):
  axes = {"size": ("small",), "seed": (0,)}
  (run,) = sweeps.expand(tmp_path, axes=axes)
  whole(run)
  lines = (run.workdir / "metrics.jsonl").read_text()
  if damage == "other":
    (run,) = sweeps.expand(tmp_path, axes=axes, set={"batch_size": 32})
  elif damage == "config":
    (run.workdir / "config.json").write_text("{")
  elif damage == "no config":
    (run.workdir / "config.json").unlink()
  elif damage == "no provenance":
    (run.workdir / "provenance.json").unlink()
  elif damage == "no metrics":
    (run.workdir / "metrics.jsonl").unlink()
  elif damage == "cut metrics":
    (run.workdir / "metrics.jsonl").write_text("".join(lines.splitlines(True)[:-1]))
  elif damage == "torn metrics":
    (run.workdir / "metrics.jsonl").write_text(lines[:-20])
  elif damage == "broken metrics":
    (run.workdir / "metrics.jsonl").write_text(lines[20:])
  elif damage == "other data":
    run = run._replace(dataset="other")
  elif damage == "other tokens":
    run = run._replace(tokenizer="abc")
  else:
    (run.workdir / "checkpoints" / "9").mkdir()
  with pytest.raises(ValueError, match="1 of 1 runs cannot be trusted") as error:
    sweep.states([run])
  assert message in str(error.value) and str(run.workdir) in str(error.value)


@pytest.mark.parametrize("file", sorted((tiny.ROOT / "configs" / "sweeps").glob("*.py")))
def test_every_shipped_sweep_expands(tmp_path, file):
  values = tiny.get_config(f"sweeps/{file.name}")
  config = config_lib.freeze(sweep.Config, values)

  def load(source):
    name, _, argument = source.removeprefix("configs/").partition(":")
    return tiny.get_config(name, argument)

  cost = lambda config: sweeps.size_of(config)._replace(windows=40_000)
  runs = sweep.expand(config, tmp_path, load, cost)
  assert len(runs) >= 12 and len({run.name for run in runs}) == len(runs)
  assert len({json.dumps(train_config.to_json(run.config)) for run in runs}) == len(runs)
