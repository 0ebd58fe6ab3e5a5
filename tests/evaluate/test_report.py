"""What reports say: Wilson and paired intervals, tables, files that are whole or not there."""

import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from oat_jax import files
from oat_jax.evaluate import report
from oat_jax.evaluate import rollout


def episode(success, task="lift", seed=0, num_tokens=1, replan=8, method="policy"):
  return rollout.Episode(method, num_tokens, replan, task, seed, success, 10, 2, 4.5, 1.25)


def rows():
  """K=8 solves all of "push" and half of "lift", K=1 a quarter of "lift"."""
  out = []
  for seed in range(4):
    out.append(episode(seed < 1, "lift", seed, 1))
    out.append(episode(seed < 2, "lift", seed, 8))
    out.append(episode(False, "push", seed, 1))
    out.append(episode(True, "push", seed, 8))
  return out


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (Wilson score).
@pytest.mark.parametrize(
  "k, n, low, high",
  [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0000, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_rates_have_wilson_intervals(k, n, low, high):
  found = report.rate([True] * k + [False] * (n - k))
  assert (found["k"], found["n"], found["rate"]) == (k, n, k / n)
  assert found["low"] == pytest.approx(low, abs=5e-5)
  assert found["high"] == pytest.approx(high, abs=5e-5)


def test_a_rate_needs_an_episode():
  with pytest.raises(ValueError, match="at least one episode"):
    report.rate([])


def test_rates_count_by_task_and_tokens():
  found = report.rates(rows())
  assert list(found) == ["overall", "lift", "push"]
  counts = {task: {K: (v["k"], v["n"]) for K, v in by_k.items()} for task, by_k in found.items()}
  assert counts == {
    "overall": {"1": (1, 8), "8": (6, 8)},
    "lift": {"1": (1, 4), "8": (2, 4)},
    "push": {"1": (0, 4), "8": (4, 4)},
  }


def test_paired_intervals_are_those_of_a_paired_t_test():
  rng = np.random.default_rng(0)
  a, b = rng.normal(0, 1, 30), rng.normal(0.3, 1, 30)
  expected = stats.ttest_rel(a, b).confidence_interval(0.95)
  found = report.paired_interval(a - b)
  assert found["mean"] == pytest.approx((a - b).mean())
  assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


def of(K, some=None):
  return [row for row in (some or rows()) if row.num_tokens == K]


def test_differences_pair_the_goals():
  """Goals are paired by task and seed, whatever the rows' order."""
  shuffled = [rows()[i] for i in np.random.default_rng(0).permutation(16)]
  found = report.paired_difference(of(8), of(1))
  assert (found["mean"], found["goals"]) == (5 / 8, 8)
  assert report.paired_difference(of(8, shuffled), of(1, shuffled)) == found
  turned = report.paired_difference(of(1), of(8))
  assert turned["mean"] == -5 / 8
  assert (turned["low"], turned["high"]) == pytest.approx((-found["high"], -found["low"]), abs=0.13)


def test_bootstrap_intervals_are_those_of_drawing_goals_again():
  """Against scipy's, whose draws are its own; of 60 goals a tenth gets worse, half gets better."""
  gains = [-1] * 6 + [1] * 30 + [0] * 24
  first = [episode(gain >= 0, "lift", seed) for seed, gain in enumerate(gains)]
  second = [episode(gain <= 0, "lift", seed) for seed, gain in enumerate(gains)]
  found = report.paired_difference(first, second)
  theirs = stats.bootstrap(
    (np.asarray(gains),), np.mean, n_resamples=10_000, method="percentile", rng=1
  ).confidence_interval
  assert found["mean"] == pytest.approx(24 / 60)
  assert (found["low"], found["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.018)
  assert report.paired_difference(first, second) == found  # its draws are fixed


def test_rows_of_one_goal_are_drawn_together():
  """Three training seeds that do the same on every goal say no more than one of them."""
  thrice = lambda K: [row for row in of(K) for _ in range(3)]
  once = report.paired_difference(of(8), of(1))
  assert report.paired_difference(thrice(8), thrice(1)) == pytest.approx(once)
  # And they are averaged: of two seeds one solves it.
  half = [episode(True, seed=0), episode(False, seed=0)]
  assert report.paired_difference(half, [episode(False, seed=0)])["mean"] == 0.5


def test_goals_that_are_not_the_same_are_not_paired():
  with pytest.raises(
    ValueError, match=r"goals of 8 and 7 .*\('push', 3\) is in one of the two only"
  ):
    report.paired_difference(of(8), of(1)[:-1])
  with pytest.raises(ValueError, match="goals of 0 and 0"):
    report.paired_difference([], [])


def test_a_report_compares_its_settings():
  """Most tokens with each fewer at every R, and the first R with the others at most tokens."""
  both = [*rows(), *(row._replace(replan=16, success=False) for row in rows())]
  found = [(x["first"], x["second"], x["mean"]) for x in report.differences(both)]
  assert found == [
    ("policy R=8 K=8", "policy R=8 K=1", 5 / 8),
    ("policy R=16 K=8", "policy R=16 K=1", 0.0),
    ("policy R=8 K=8", "policy R=16 K=8", 6 / 8),
  ]
  assert report.differences([episode(True, num_tokens=0)]) == []


def test_one_pair_has_no_width():
  assert report.paired_interval(np.asarray([1.0])) == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_tables_have_a_row_for_each_k_and_a_column_for_each_task():
  assert report.table(report.rates(rows())).splitlines() == [
    "| tokens K | overall | lift | push |",
    "|---|---|---|---|",
    "| 1 | 12 % (2-47) | 25 % (5-70) | 0 % (0-49) |",
    "| 8 | 75 % (41-93) | 50 % (15-85) | 100 % (51-100) |",
  ]


def test_methods_without_tokens_show_a_dash():
  table = report.table(report.rates([episode(True, num_tokens=0)]), first="steps")
  assert table.splitlines()[0] == "| steps | overall | lift |"
  assert table.splitlines()[2].startswith("| - | 100 %")


def test_a_report_holds_every_episode_and_rate(tmp_path):
  content = [
    *rows(),
    *(row._replace(replan=16) for row in rows()),
    episode(True, num_tokens=0, method="expert"),
  ]
  rate = report.rate([True, False])
  checkpoint = {"chosen": "by success on selection goals", "success": {"5": rate, "7": rate}}
  checkpoint |= {"first_seed": 50, "episodes_per_task": 10, "replan": 8, "num_tokens": 4}
  facts = {"suite": "fake/two", "step": 7, "checkpoint": checkpoint}
  facts |= {"act_ms": {"1": {"mean": 1.5, "p50": 1.234, "p95": 2.345}}}
  summary = report.write(tmp_path / "new" / "report", content, facts)
  written = json.loads((tmp_path / "new" / "report" / "evaluation.json").read_text())
  assert written["facts"] == facts
  assert written["success"] == summary
  assert report.episodes(written) == content
  assert written["differences"] == report.differences(content)
  assert {method: set(by_replan) for method, by_replan in summary.items()} == {
    "policy": {"8", "16"},
    "expert": {"8"},
  }
  assert summary["policy"]["16"] == report.rates(rows())
  text = (tmp_path / "new" / "report" / "evaluation.md").read_text()
  for part in (
    "fake/two",
    "75 % (41-93)",
    "- policy R=8 K=8 less policy R=8 K=1: +62 points (95 %: +",
    "## expert",
    "| 8 | 4.50 | 2.0 | 1.25 |",
    "| 1 | 1.50 | 1.23 | 2.35 |",
    "Checkpoint of step 7, chosen: by success on selection goals of seeds 50..59 (R=8, K=4): "
    "step 5: 50 % (9-91), step 7: 50 % (9-91).",
  ):
    assert part in text


def test_rows_with_other_columns_are_refused_by_name():
  old = {"method": "policy", "num_tokens": 1, "replan": 8, "task": "lift", "seed": 0}
  with pytest.raises(
    ValueError, match="columns method, num_tokens, replan, task, seed; this.*calls"
  ):
    report.episodes({"episodes": [old]})
  for content in (None, [], {}, {"episodes": 3}):
    with pytest.raises(ValueError, match="not a report"):
      report.episodes(content)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "evaluation.json"
  files.write_text(path, "old")

  def fails(self, text):
    with open(self, "w") as file:
      file.write(text[:2])
    raise OSError("no space left on device")

  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, "write_text", fails)
    with pytest.raises(OSError, match="no space"):
      files.write_text(path, "new and longer")
  assert path.read_text() == "old"
  files.write_text(path, "new and longer")
  assert path.read_text() == "new and longer"
  assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]
