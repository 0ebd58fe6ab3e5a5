"""What is said about episodes: rates with intervals, paired differences, JSON and Markdown."""

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any

import numpy as np
from scipy import stats

from oat_jax import files
from oat_jax.evaluate.rollout import Episode

RESAMPLES = 10_000


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


def paired_difference(first: Sequence[Episode], second: Sequence[Episode]) -> dict[str, float]:
  """Returns success in `first` less success in `second`, paired by goal.

  The interval is a 95 % bootstrap percentile interval over goals (Efron, 1979), of `RESAMPLES` from
  a fixed seed: rows of one goal, e.g. of several training seeds, are drawn together, because they
  are not independent.

  Args:
    first, second: rows of two settings, of one report or of two, on the same goals.

  Returns:
    {"mean", "low", "high", "goals"}.

  Raises:
    ValueError: the goals of the two are not the same.
  """
  by_goal: tuple[dict[tuple[str, int], list[bool]], ...] = ({}, {})
  for rows, goals in zip((first, second), by_goal):
    for row in rows:
      goals.setdefault((row.task, row.seed), []).append(row.success)
  one, other = by_goal
  unpaired = sorted(one.keys() ^ other.keys())
  if unpaired or not one:
    raise ValueError(
      f"goals of {len(one)} and {len(other)} (task, seed) cannot be paired"
      + (f": {unpaired[0]} is in one of the two only" if unpaired else "")
    )
  difference_N = np.asarray([np.mean(one[goal]) - np.mean(other[goal]) for goal in sorted(one)])
  N, rng = len(difference_N), np.random.default_rng(0)
  # A part at a time, for the sake of memory.
  parts = np.array_split(np.arange(RESAMPLES), 10)
  means = [difference_N[rng.integers(0, N, (len(part), N))].mean(1) for part in parts]
  low, high = np.percentile(np.concatenate(means), [2.5, 97.5]).tolist()
  return {"mean": float(difference_N.mean()), "low": low, "high": high, "goals": N}


def differences(rows: Sequence[Episode]) -> list[dict[str, Any]]:
  """Returns `paired_difference` within each method, with the names of `first` and `second`.

  For every R, most tokens against each fewer; and with most tokens, the first R against each other.
  """
  by_setting: dict[tuple[str, int, int], list[Episode]] = {}
  for row in rows:
    by_setting.setdefault((row.method, row.replan, row.num_tokens), []).append(row)
  most: dict[tuple[str, int], int] = {}
  for method, R, K in by_setting:
    most[method, R] = max(K, most.get((method, R), 0))
  pairs = [((m, R, most[m, R]), (m, R, K)) for m, R, K in by_setting if K < most[m, R]]
  for method in dict.fromkeys(row.method for row in rows):
    first, *others = [(m, R, K) for (m, R), K in most.items() if m == method]
    pairs += [(first, other) for other in others]
  return [
    {"first": name(*one), "second": name(*other)}
    | paired_difference(by_setting[one], by_setting[other])
    for one, other in pairs
  ]


def name(method: str, R: int, K: int) -> str:
  """Returns what a setting is called, e.g. "autoregressive R=8 K=4"."""
  return f"{method} R={R}" + f" K={K}" * bool(K)


def paired_interval(differences_N: np.ndarray) -> dict[str, float]:
  """Returns the mean of paired differences of errors with its 95 % t interval."""
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


def effort(rows: Sequence[Episode]) -> str:
  """Returns a Markdown table of what episodes of one method and R took: a row for each K."""
  lines = [
    "| tokens K | tokens a call | calls an episode | policy ms a batched call |",
    "|---|---|---|---|",
  ]
  for K in sorted({row.num_tokens for row in rows}):
    chosen = [(row.tokens, row.calls, row.policy_ms) for row in rows if row.num_tokens == K]
    tokens, calls, ms = np.mean(chosen, axis=0)
    lines.append(f"| {K or '-'} | {tokens:.2f} | {calls:.1f} | {ms:.2f} |")
  return "\n".join(lines)


def write(out: str | os.PathLike, rows: Sequence[Episode], facts: dict[str, Any]) -> dict[str, Any]:
  """Writes `evaluation.json`, with a row an episode, and `evaluation.md`; returns rates by R.

  Args:
    out: a directory, made if missing.
    rows: of one or several methods.
    facts: what was evaluated and how: versions, checkpoint, suite, sampling, and `act_ms`, {K:
      {"p50", "p95"}} of acting for one episode.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  summary: dict[str, Any] = {}
  text = [
    "# Evaluation",
    "",
    *_checkpoint(facts),
    "```json",
    json.dumps(facts, indent=2),
    "```",
    "",
  ]
  for method in dict.fromkeys(row.method for row in rows):
    for replan in sorted({row.replan for row in rows if row.method == method}):
      chosen = [row for row in rows if row.method == method and row.replan == replan]
      summary.setdefault(method, {})[str(replan)] = rates(chosen)
      text += [f"## {method}, {replan} steps executed of each chunk", "", table(rates(chosen)), ""]
      text += [effort(chosen), ""]
  text += ["Success rates with 95 % Wilson intervals.", ""]
  found = differences(rows)
  if found:
    text += ["## Differences of success, paired by goal, with 95 % bootstrap intervals", ""]
    text += [f"- {each['first']} less {each['second']}: {points(each)}" for each in found] + [""]
  if facts.get("act_ms"):
    text += ["## Milliseconds from observation to chunk, batch 1, warm", ""]
    text += ["| tokens K | mean | p50 | p95 |", "|---|---|---|---|"]
    for K, ms in facts["act_ms"].items():
      cells = " | ".join(f"{ms[name]:.2f}" for name in ("mean", "p50", "p95"))
      text.append(f"| {'-' if K == '0' else K} | {cells} |")
    text.append("")
  content = {"facts": facts, "success": summary, "differences": found}
  content["episodes"] = [row._asdict() for row in rows]
  files.write_text(out / "evaluation.json", json.dumps(content, indent=1) + "\n")
  files.write_text(out / "evaluation.md", "\n".join(text))
  return summary


def _checkpoint(facts: dict[str, Any]) -> list[str]:
  """Says, in Markdown, which checkpoint this is and how it was chosen."""
  checkpoint = facts.get("checkpoint")
  if checkpoint is None:
    return []
  said = f"Checkpoint of step {facts['step']}, chosen: {checkpoint['chosen']}"
  if "success" not in checkpoint:
    return [f"{said}.", ""]
  first, episodes = checkpoint["first_seed"], checkpoint["episodes_per_task"]
  rates = [f"step {step}: {percent(rate)}" for step, rate in checkpoint["success"].items()]
  return [
    f"{said} of seeds {first}..{first + episodes - 1} (R={checkpoint['replan']}, "
    f"K={checkpoint['num_tokens'] or '-'}): {', '.join(rates)}.",
    "",
  ]


def episodes(content: Any) -> list[Episode]:
  """Returns the rows that the content of an evaluation.json holds.

  Raises:
    ValueError: it is no report, or one of another version, with other columns.
  """
  try:
    rows = [dict(row) for row in content["episodes"]]
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError("evaluation.json is not a report") from error
  for row in rows:
    if row.keys() != set(Episode._fields):
      raise ValueError(
        f"its episodes have the columns {', '.join(row)}; this oat_jax writes "
        f"{', '.join(Episode._fields)}"
      )
  return [Episode(**row) for row in rows]
