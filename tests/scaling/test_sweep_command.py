"""The commands of a sweep, on real runs."""

import json
import re

import pytest
import tables
import tiny

from oat_jax.scaling import collect
from oat_jax.scaling import sweep
from oat_jax.study import scaling
from oat_jax.train import provenance

SWEEP = """
from ml_collections import ConfigDict

def get_config():
  data = {{"path": "{data}", "action_horizon": 8}}
  return ConfigDict({{
    "run": "{root}/configs/tokenizer_oat.py:mt4",
    "set": {{"batch_size": 16, "evaluate_windows": 20, "model": {{"patch": 2}}, "data": data}},
    "axes": {{"size": ("60k",), "data": (0.5, 1.0), "passes": (0.5,)}},
    "extra_axes": {{}},
    "evaluations": 2,
  }})
"""


def load(source):
  file, _, argument = source.partition(":")
  return tiny.get_config(file, argument)


@pytest.fixture(scope="module")
def swept(dataset, tmp_path_factory):
  """(directory, the sweep's values, what `run` printed)."""
  out = tmp_path_factory.mktemp("sweep")
  file = out / "tiny_sweep.py"
  file.write_text(SWEEP.format(data=dataset, root=tiny.ROOT))
  args = ("launch/sweep.py", "run", f"--config={file}", f"--out={out}", "--jobs=2")
  code, printed, err = tiny.command(*args, **tiny.quick())
  assert code == 0, err
  return out, tiny.get_config(str(file)), printed


def test_runs_are_as_they_were_planned(swept, capsys):
  out, values, printed = swept
  assert "all 2 runs are done" in printed
  work = scaling.Sweep(values, out, load)
  work.plan()
  said = capsys.readouterr().out
  assert "2 of 2 runs are done" in said and "?" not in said
  half, whole = work.runs
  assert 0 < half.windows < whole.windows and half.config.steps < whole.config.steps
  for run in work.runs:
    facts = provenance.read(run.workdir)
    assert facts["parameters"] == run.parameters and facts["windows"] == run.windows
    assert facts["flops_per_step"] * run.config.steps == pytest.approx(run.flops)
    row = sweep.evaluations(run.workdir)[-1]
    assert row["step"] == run.config.steps and row["mse_8"] > 0


def test_losses_are_collected_with_what_made_them(swept, capsys):
  out, values, _ = swept
  scaling.Sweep(values, out, load).collect(out / "table.csv")
  assert "of 2 of 2 runs" in capsys.readouterr().out
  rows, missing = collect.collect(scaling.Sweep(values, out, load).runs)
  assert not missing and {row["K"] for row in rows} == set(range(1, 9))
  assert len({row["evaluation_set"] for row in rows}) == 1
  assert rows[0]["bits"] == pytest.approx(9.97, abs=0.01)
  assert json.loads(rows[0]["config"])["data"]["train_fraction"] == 0.5


def test_hours_of_what_has_not_run_can_be_measured_or_planned(swept, tmp_path, capsys):
  _, values, _ = swept
  work = scaling.Sweep(values, tmp_path, load)
  work.plan()
  said = capsys.readouterr().out
  assert "0 of 2 runs are done" in said and "--measure times steps here" in said
  work.plan(measure=True)
  said = capsys.readouterr().out
  assert said.count("timing steps of a tokenizer of width 32") == 1
  assert "device-hours (as steps take here" in said
  work.plan(topology="h100:1")
  assert "device-hours (planned for h100:1, at peak figures)" in capsys.readouterr().out


def test_counting_takes_no_accelerator_from_the_runs(swept):
  out = swept[0]
  args = ("launch/sweep.py", "plan", f"--config={out / 'tiny_sweep.py'}", f"--out={out}")
  code, printed, err = tiny.command(*args, JAX_PLATFORMS="cuda")  # which is not here
  assert code == 0, err
  assert "2 of 2 runs are done" in printed


def test_a_law_is_fitted_by_the_command(tmp_path):
  tables.write(tmp_path / "table.csv", tables.rows_of(prefixes=(8,)))
  args = ("launch/sweep.py", "fit", f"--out={tmp_path}", "--resamples=100")
  code, out, err = tiny.command(*args, OPENBLAS_NUM_THREADS="1")
  assert code == 0, err
  assert re.search(r"β of windows 0\.\d\d \(.*95 % intervals", out)
  assert (tmp_path / "report" / "report.md").exists()
  (tmp_path / "table.csv").write_text("run,kind\n")
  code, _, err = tiny.command(*args)
  assert code == 1 and err.count("\n") == 1


def test_a_user_is_told_what_is_wrong(tmp_path):
  code, _, err = tiny.command("launch/sweep.py", "run", f"--out={tmp_path}")
  assert code == 1 and "--config is missing" in err
