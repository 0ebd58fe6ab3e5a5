"""What reports say: Wilson and paired intervals, tables, files that are whole or not there."""

import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from oat_jax.evaluate import report
from oat_jax.evaluate import rollout


def episode(success, task="lift", seed=0, num_tokens=1, replan=8, method="policy"):
  return rollout.Episode(method, num_tokens, replan, task, seed, success, 10)


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


def test_differences_pair_the_goals():
  """Goals are paired by task and seed, whatever the rows' order."""
  per_goal = [0, 1, 0, 0, 1, 1, 1, 1]
  expected = report.paired_interval(np.asarray(per_goal))
  shuffled = [rows()[i] for i in np.random.default_rng(0).permutation(16)]
  assert report.paired_difference(rows(), 8, 1) == pytest.approx(expected)
  assert report.paired_difference(shuffled, 8, 1) == pytest.approx(expected)
  assert expected["mean"] == 5 / 8
  assert report.paired_difference(rows(), 1, 8)["mean"] == -5 / 8


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
  facts = {"suite": "fake/two", "step": 7}
  summary = report.write(tmp_path / "new" / "report", content, facts)
  written = json.loads((tmp_path / "new" / "report" / "evaluation.json").read_text())
  assert written["facts"] == facts
  assert written["success"] == summary
  assert [rollout.Episode(**row) for row in written["episodes"]] == content
  assert {method: set(by_replan) for method, by_replan in summary.items()} == {
    "policy": {"8", "16"},
    "expert": {"8"},
  }
  assert summary["policy"]["16"] == report.rates(rows())
  text = (tmp_path / "new" / "report" / "evaluation.md").read_text()
  for part in (
    "fake/two",
    "75 % (41-93)",
    "K=8 against K=1, on the same goals: +62 points",
    "## expert",
  ):
    assert part in text


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "evaluation.json"
  report.write_text(path, "old")

  def fails(self, text):
    with open(self, "w") as file:
      file.write(text[:2])
    raise OSError("no space left on device")

  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, "write_text", fails)
    with pytest.raises(OSError, match="no space"):
      report.write_text(path, "new and longer")
  assert path.read_text() == "old"
  report.write_text(path, "new and longer")
  assert path.read_text() == "new and longer"
  assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]
