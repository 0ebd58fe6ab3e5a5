"""From a sweep's table to its report, and what no law may be fitted to."""

import json

import numpy as np
import pytest
import tables

from oat_jax.scaling import law_report
from oat_jax.scaling import law_table


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("law")
  summary = law_report.write(
    tables.write(folder / "t.csv", tables.rows_of()), folder / "out", resamples=40
  )
  return folder / "out", summary


def test_a_report_has_its_numbers_figures_and_words(written):
  out, summary = written
  names = ("bits", "compute", "exponents", "frontier", "residuals", "variables")
  assert {path.name for path in out.iterdir()} == {
    *(f"{name}.png" for name in names),
    *("fit.json", "report.md"),
  }
  assert json.loads((out / "fit.json").read_text()) == summary
  text = (out / "report.md").read_text()
  assert all(f"({name}.png)" in text for name in names)
  assert "32 runs of 61,234 to 2,040,000 parameters on 2,500 to 20,000" in text
  assert "nan" not in text and "inf" not in text.replace("information", "")


def test_the_law_of_each_prefix_and_that_with_bits_hold_the_truth(written):
  summary = written[1]
  assert list(summary["laws"]) == ["1", "4", "8"] and summary["num_tokens"] == 8
  exponents = summary["laws"]["8"]["exponents"] | summary["law_with_bits"]["exponents"]
  for name, truth in (("parameters", 0.45), ("windows", 0.5), ("bits", 0.7)):
    assert exponents[name]["low"] < truth < exponents[name]["high"]
  assert summary["cost"]["passes"] == pytest.approx(20, rel=0.01)
  assert summary["cost"]["rho"] == pytest.approx(1, rel=0.01)
  assert [case["held_out"] for case in summary["held_out"] if "why" not in case]
  assert any("E is not identified" in each for each in summary["warnings"]) == (
    "E" in summary["laws"]["8"]["not_identified"]
  )


def test_a_policy_of_one_seed_and_three_fractions_is_read_with_care(tmp_path):
  rows = tables.rows_of("policy", windows=tables.WINDOWS[1:], seeds=(0,), prefixes=(8,))
  summary = law_report.write(tables.write(tmp_path / "t.csv", rows), tmp_path / "out", resamples=30)
  assert summary["metric"] == "cross_entropy" and summary["law_with_bits"] is None
  assert any("no run is repeated" in each for each in summary["warnings"])
  assert "leaves 2 values of windows" in summary["held_out"][1]["why"]
  told = set(summary["laws"]["8"]["exponents"]) - set(summary["laws"]["8"]["not_identified"])
  text = (tmp_path / "out" / "report.md").read_text()
  assert ("frontier.png" in text) == (len(told) == 2)
  if len(told) < 2:  # no number where there is none to trust
    assert "not identified" in text and "The best N grows" not in text


def test_the_last_step_is_taken_or_that_of_the_least_loss(tmp_path):
  rows = tables.rows_of(prefixes=(8,))
  for row in rows:
    if row["step"] == row["steps"]:
      row["loss"] *= 2  # it overfits
  table = law_table.read(tables.write(tmp_path / "t.csv", rows))
  last, least = (law_table.select(table, at=at) for at in law_table.AT)
  assert (last["step"] == last["steps"]).all() and (least["step"] < least["steps"]).all()
  assert (least["loss"] < last["loss"]).all() and len(last["run"]) == len(least["run"]) == 32
  assert len(np.unique(last.groups())) == 16


def test_parquet_is_read_as_csv_is(tmp_path):
  pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  rows = tables.rows_of()
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
  ours = law_table.read(tmp_path / "t.parquet")
  theirs = law_table.read(tables.write(tmp_path / "t.csv", rows))
  assert ours.keys() == theirs.keys()
  assert all((ours[name] == theirs[name]).all() for name in ours)


def of_a_column(name, value, at=0):
  def change(rows):
    rows[at][name] = value
    return rows

  return change


def other_codebook(rows):
  twin = [dict(row, run="other", axes='{"codes": 512}') for row in rows[:6]]
  return [*rows, *twin]


@pytest.mark.parametrize(
  "change, how, message",
  [
    (of_a_column("evaluation_set", "beef"), {}, r"2 evaluation sets.*beef \(e.g. run 60k_2500_0\)"),
    (of_a_column("kind", "policy"), {}, "mixes policy and tokenizer"),
    (
      of_a_column("loss", "nan", at=5),
      {},
      r"not positive finite.*run 60k_2500_0, step 781, K=8: nan",
    ),
    (of_a_column("loss", "much"), {}, "row 1: loss is 'much', not a number"),
    (other_codebook, {}, "the runs have 2 values of codes: .* choose by where"),
    (lambda rows: rows, {"metric": "psnr"}, "no losses of metric 'psnr', only of mse"),
    (lambda rows: rows, {"num_tokens": 3}, "num_tokens is 3; the table has K = 1, 4, 8"),
    (lambda rows: rows, {"data": "bytes"}, "data is 'bytes'; there are windows, examples"),
    (lambda rows: rows, {"at": "best"}, "at is 'best'; there are last, least"),
    (lambda rows: rows[:12], {}, "parameters is 61,234 in all"),
    (lambda rows: [dict(row, steps=10**6) for row in rows], {}, "no run has come to its end"),
    (lambda rows: [{"run": "a", "loss": 1}], {}, "has no column kind, size"),
  ],
)
def test_what_is_no_table_of_a_law_is_refused(tmp_path, change, how, message):
  path = tables.write(tmp_path / "t.csv", change(tables.rows_of()))
  with pytest.raises(ValueError, match=message):
    law_report.write(path, tmp_path / "out", resamples=5, **how)
  assert not (tmp_path / "out").exists()


def test_an_empty_table_is_refused(tmp_path):
  (tmp_path / "t.csv").write_text("run,loss\n")
  with pytest.raises(ValueError, match="has no rows"):
    law_table.read(tmp_path / "t.csv")


def test_runs_that_have_not_ended_are_left_out_and_named(tmp_path):
  rows = [
    row for row in tables.rows_of() if row["run"] != "2m_20000_1" or row["step"] < row["steps"]
  ]
  selected = law_table.select(law_table.read(tables.write(tmp_path / "t.csv", rows)))
  assert "2m_20000_1" not in selected["run"] and len(set(selected["run"])) == 31
  assert "1 run(s) have not come to their end" in selected.warnings[0]
  assert "2m_20000_1" in selected.warnings[0]


def with_codes(rows, codes, run=""):
  placed = [json.dumps(json.loads(row["axes"]) | {"codes": codes}) for row in rows]
  return [dict(row, axes=axes, run=run + row["run"]) for row, axes in zip(rows, placed)]


def test_a_table_of_several_codebooks_is_fitted_at_one(tmp_path):
  rows = tables.rows_of(prefixes=(8,))
  twins = [dict(row, parameters=row["parameters"] + 512, loss=2 * row["loss"]) for row in rows]
  both = [*with_codes(rows, [8, 5]), *with_codes(twins, [4, 4], "twin ")]
  path = tables.write(tmp_path / "t.csv", both)
  with pytest.raises(ValueError, match=r"2 values of codes: \[4, 4\], \[8, 5\].* choose by where"):
    law_table.select(law_table.read(path))
  chosen = law_table.select(law_table.read(path), where=["codes=[8,5]"])
  assert len(chosen["run"]) == 32 and not any("twin" in run for run in chosen["run"])
  with pytest.raises(ValueError, match="no run has codes 7; the table has"):
    law_table.select(law_table.read(path), where=["codes=7"])


def test_a_run_that_is_there_twice_is_refused(tmp_path):
  rows = tables.rows_of(prefixes=(8,))
  path = tables.write(tmp_path / "t.csv", [*rows, dict(rows[3], loss=9.0)])
  with pytest.raises(ValueError, match="has two rows of step .*: the table mixes two sweeps"):
    law_table.select(law_table.read(path))


def test_repeats_share_a_group_wherever_their_loss_is_least(tmp_path):
  rows = [dict(row, loss=row["loss"] * (1 + row["seed"] * (row["step"] == row["steps"])))
          for row in tables.rows_of(prefixes=(8,))]  # fmt: skip
  selected = law_table.select(
    law_table.read(tables.write(tmp_path / "t.csv", rows)), "", "examples", "least"
  )
  assert len(set(selected["step"])) > 4 and len(set(selected.groups())) == 16


def test_a_prefix_that_no_law_fits_leaves_the_others(tmp_path):
  rows = [
    dict(row, loss=0.07 if row["K"] == 1 else row["loss"])
    for row in tables.rows_of(prefixes=(1, 8))
  ]
  summary = law_report.write(tables.write(tmp_path / "t.csv", rows), tmp_path / "out", resamples=20)
  assert set(summary["laws"]) == {"8"}
  assert any(
    text.startswith("there is no law of K = 1: all 32 losses") for text in summary["warnings"]
  )
