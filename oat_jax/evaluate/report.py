"""What is said about episodes: rates with intervals, paired differences, JSON and Markdown."""

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any

import numpy as np
from scipy import stats

from oat_jax.evaluate.rollout import Episode


def rate(successes: Sequence[bool]) -> dict[str, float]:
  """Returns the success rate k/n with its 95 % Wilson interval, all in 0 .. 1."""
  k, n = int(np.sum(successes)), len(successes)
  if not n:
    raise ValueError("a rate needs at least one episode")
  interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
  return {"rate": k / n, "k": k, "n": n, "low": float(interval.low), "high": float(interval.high)}


def rates(rows: Sequence[Episode]) -> dict[str, dict[str, dict[str, float]]]:
  """Returns {"overall" or task: {K: rate}} of the rows of one method and one replan interval."""
  tasks = list(dict.fromkeys(row.task for row in rows))
  budgets = sorted({row.num_tokens for row in rows})
  pick = lambda task, K: [
    row.success for row in rows if row.num_tokens == K and task in ("overall", row.task)
  ]
  return {task: {str(K): rate(pick(task, K)) for K in budgets} for task in ["overall", *tasks]}


def paired_difference(rows: Sequence[Episode], more: int, fewer: int) -> dict[str, float]:
  """Returns success at K = `more` less at `fewer`, paired by goal, with a 95 % t interval."""
  by_goal = {(row.num_tokens, row.task, row.seed): float(row.success) for row in rows}
  goals = sorted({(row.task, row.seed) for row in rows})
  return paired_interval(
    np.asarray([by_goal[more, *goal] - by_goal[fewer, *goal] for goal in goals])
  )


def paired_interval(differences_N: np.ndarray) -> dict[str, float]:
  """Returns the mean of paired differences with its 95 % t interval."""
  mean, count = float(np.mean(differences_N)), len(differences_N)
  half = 0.0
  if count > 1:
    half = float(stats.t.ppf(0.975, count - 1) * np.std(differences_N, ddof=1) / np.sqrt(count))
  return {"mean": mean, "low": mean - half, "high": mean + half}


def percent(value: dict[str, float]) -> str:
  """Formats a rate as "52 % (42-62)"."""
  return f"{100 * value['rate']:.0f} % ({100 * value['low']:.0f}-{100 * value['high']:.0f})"


def points(difference: dict[str, float]) -> str:
  """Formats a paired difference of rates as "+24 points (95 %: +12 to +36)"."""
  mean, low, high = (100 * difference[name] for name in ("mean", "low", "high"))
  return f"{mean:+.0f} points (95 %: {low:+.0f} to {high:+.0f})"


def table(by_task: dict[str, dict[str, dict[str, float]]], first: str = "tokens K") -> str:
  """Returns a Markdown table of `rates`: a row for each K, a column for each task."""
  tasks = list(by_task)
  lines = [f"| {first} | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
  for K in by_task["overall"]:
    cells = " | ".join(percent(by_task[task][K]) for task in tasks)
    lines.append(f"| {'-' if K == '0' else K} | {cells} |")
  return "\n".join(lines)


def write(out: str | os.PathLike, rows: Sequence[Episode], facts: dict[str, Any]) -> dict[str, Any]:
  """Writes `evaluation.json`, with a row an episode, and `evaluation.md`; returns rates by R.

  Args:
    out: a directory, made if missing.
    rows: of one or several methods.
    facts: what was evaluated and how: versions, checkpoint, suite, sampling, latency.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  summary: dict[str, Any] = {}
  text = ["# Evaluation", "", "```json", json.dumps(facts, indent=2), "```", ""]
  for method in dict.fromkeys(row.method for row in rows):
    for replan in sorted({row.replan for row in rows if row.method == method}):
      chosen = [row for row in rows if row.method == method and row.replan == replan]
      summary.setdefault(method, {})[str(replan)] = rates(chosen)
      text += [f"## {method}, {replan} steps executed of each chunk", "", table(rates(chosen)), ""]
      budgets = sorted({row.num_tokens for row in chosen})
      if len(budgets) > 1:
        difference = paired_difference(chosen, budgets[-1], budgets[0])
        text += [
          f"K={budgets[-1]} against K={budgets[0]}, on the same goals: {points(difference)}.",
          "",
        ]
  text.append("Success rates with 95 % Wilson intervals.")
  content = {"facts": facts, "success": summary, "episodes": [row._asdict() for row in rows]}
  write_text(out / "evaluation.json", json.dumps(content, indent=1) + "\n")
  write_text(out / "evaluation.md", "\n".join(text) + "\n")
  return summary


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  temporary.replace(path)
