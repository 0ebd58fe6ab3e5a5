"""From working directories to a table of losses."""

import csv
import json

import pytest
import sweeps

from oat_jax.scaling import collect


@pytest.fixture
def runs(tmp_path):
  runs = sweeps.expand(tmp_path)
  sweeps.plan(tmp_path, runs)
  told = json.loads((tmp_path / "told.json").read_text())
  for i, run in enumerate(runs[:3]):
    sweeps.write(run.workdir, told[run.name]["config"], 6, loss=0.1 * (i + 1))
  return runs


def test_a_row_for_each_run_evaluation_and_prefix(runs, tmp_path):
  rows, missing = collect.collect(runs)
  assert missing == [runs[3].name]
  assert len(rows) == 3 * 2 * 4 and set(rows[0]) == set(collect.COLUMNS)
  row = next(r for r in rows if (r["run"], r["step"], r["K"]) == (runs[1].name, 6, 2))
  assert row["loss"] == pytest.approx(0.2 / 2 + 1 / 6) and row["bits"] == 20
  assert (row["kind"], row["size"], row["seed"]) == ("tokenizer", "small", 1)
  assert (row["parameters"], row["windows"], row["steps"]) == (1024, 400, 6)
  assert row["examples"] == 6 * 16 and row["flops"] == 6 * 512
  assert json.loads(row["axes"]) == {"size": "small", "steps": 6, "seed": 1}
  assert json.loads(row["config"])["seed"] == 1
  assert row["code"] == "oat_jax 0.1.0 abc, jax 0.10" and row["device"] == "1 x cpu"
  collect.write(tmp_path / "t.csv", rows)
  with open(tmp_path / "t.csv", newline="") as file:
    read = list(csv.DictReader(file))
  assert [float(r["loss"]) for r in read] == [r["loss"] for r in rows]
  assert json.loads(read[0]["config"]) == json.loads(rows[0]["config"])


def test_a_parquet_file_holds_the_same(runs, tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  rows, _ = collect.collect(runs)
  collect.write(tmp_path / "t.parquet", rows)
  assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == rows


def test_losses_of_different_evaluation_sets_are_not_mixed(runs, tmp_path):
  told = json.loads((tmp_path / "told.json").read_text())
  sweeps.write(runs[0].workdir, told[runs[0].name]["config"], 6, evaluation_set="another")
  with pytest.raises(ValueError, match="measured on 2 evaluation sets") as error:
    collect.collect(runs)
  assert f"another: {runs[0].name}" in str(error.value)


def test_nothing_to_collect_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="none of the 4 runs is done"):
    collect.collect(sweeps.expand(tmp_path))


def test_cross_entropy_of_a_prefix_is_the_mean_of_its_tokens():
  values = {"cross_entropy_1": 3.0, "cross_entropy_2": 1.0, "chunk_mse_1": 0.5, "chunk_mse_2": 0.2}
  found = collect.losses({"step": 3} | values | {"distinct_tokens": 4.0, "token_accuracy_1": 0.1})
  assert found == [
    ("chunk_mse", 1, 0.5), ("chunk_mse", 2, 0.2),
    ("cross_entropy", 1, 3.0), ("cross_entropy", 2, 2.0),
  ]  # fmt: skip
  assert collect.losses({"chunk_mse": 0.4}) == [("chunk_mse", 0, 0.4)]
