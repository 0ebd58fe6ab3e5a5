"""The quickstart's report in Markdown."""

from collections.abc import Mapping
from typing import Any

from oat_jax.evaluate import report


def quickstart(summary: Mapping[str, Any]) -> str:
  """Returns the text of report.md from the content of summary.json."""
  R, C = summary["replan"], summary["action_horizon"]
  difference = summary["success_most_less_fewest_tokens"]
  half = summary["reconstruction_last_less_half"]
  mse = summary["reconstruction_mse"]
  floors = {str(R): summary["regression_success"], **summary["regression_success_other_replan"]}
  latency = summary["act_ms"]
  lines = [
    f"# Ordered action tokens in {summary['suite']}",
    "",
    summary["what"],
    "",
    f"Total {summary['seconds_total'] / 60:.0f} minutes. Success rates have 95 % Wilson intervals; "
    "goals of seeds that no demonstration used.",
    "",
    f"## Success by tokens generated ({R} of {C} steps executed)",
    "",
    report.table(summary["success"]),
    "",
    f"Most tokens against fewest, on the same goals: {report.points(difference)}.",
    "",
    *_row(
      "tokens K", "milliseconds per chunk, p50", {K: f"{x['p50']:.2f}" for K, x in latency.items()}
    ),
    "",
    "![anytime curve](anytime.png)",
    "",
  ]
  for other, rates in summary["success_other_replan"].items():
    lines += [f"### {other} of {C} steps executed", "", report.table(rates), ""]
  lines += ["## The floor: regression of the chunk with an MLP", ""]
  lines.append(report.table(_by_first(floors), first="steps executed"))
  lines += [
    "",
    "## The ceiling: the expert's own chunks, encoded and decoded",
    "",
    f"The expert itself: {report.percent(summary['expert_success'])}.",
    "",
    report.table(summary["ceiling_by_task"]),
    "",
    "## The tokenizer",
    "",
    *_row("tokens K", "held-out MSE", {K: f"{value:.4f}" for K, value in mse.items()}),
    "",
    f"All tokens against half of them, on the same episodes: {half['mean']:+.4f} "
    f"(95 %: {half['low']:+.4f} to {half['high']:+.4f}). "
    f"{summary['code_usage']} codes used on held-out windows.",
    "",
    "![reconstruction error](reconstruction.png)",
    "",
    "![a chunk, coarse to fine](chunk.png)",
    "",
    "## Training",
    "",
    "![training curves](training.png)",
    "",
    "Versions: "
    + ", ".join(f"{name} {value}" for name, value in summary["versions"].items())
    + ".",
    "",
  ]
  return "\n".join(lines)


def _row(first: str, name: str, values: Mapping[str, str]) -> list[str]:
  """A Markdown table of one row."""
  return [
    f"| {first} | " + " | ".join(values) + " |",
    "|---" * (len(values) + 1) + "|",
    f"| {name} | " + " | ".join(values.values()) + " |",
  ]


def _by_first(floors: Mapping[str, Any]) -> dict[str, Any]:
  """{R: {task: {K: rate}}} of a method without tokens -> {task: {R: rate}}, for `report.table`."""
  tasks = next(iter(floors.values()))
  one = lambda by_k: next(iter(by_k.values()))
  return {task: {R: one(rates[task]) for R, rates in floors.items()} for task in tasks}
