"""The comparison's report in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from oat_jax.evaluate import report

_BUDGETS = (1, 2, 4, 8)  # columns of errors; all tokens are the last one


def text(content: Mapping[str, Any], figures: Sequence[tuple[str, str]]) -> str:
  """Returns the text of comparison.md from the content of comparison.json.

  Args:
    content: the figures.
    figures: (caption, file) of each picture.
  """
  methods, held = content["methods"], content["held_out"]
  seeds = max(len(each["by_seed"]) for each in methods.values())
  lines = [
    "# Action tokenizers compared",
    "",
    f"{content['train']['windows']:,} windows to train on; measured on {held['measured']:,} of "
    f"{held['windows']:,} held-out windows ({held['episodes']} episodes), chunks of "
    f"{content['action_horizon']} steps of {content['action_dim']} actions. Errors are on steps "
    "before the episode's end, in units in which a dimension's range over the training windows is "
    "-1 to 1, where it has one. "
    + (f"Means of up to {seeds} seeds (lowest-highest)." if seeds > 1 else "One seed."),
    "",
  ]
  if content["missing"]:
    lines += ["**Missing:** " + "; ".join(content["missing"]) + ".", ""]
  sections = (_errors, _prefixes, _pairs, _model, _ceiling, _cost)
  for section in sections:
    lines += section(content)
  for caption, file in figures:
    lines += [f"![{caption}]({file})", ""]
  for each in content["measured"]:
    whose = f" of {', '.join(each['methods'])}" if len(content["measured"]) > 1 else ""
    machine, versions = each["machine"], (" ".join(item) for item in each["versions"].items())
    lines += [
      f"Machine{whose}: {machine['cores']} cores, {machine['devices']}. "
      f"Versions: {', '.join(versions)}.",
      "",
    ]
  return "\n".join(lines)


def main_table(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Returns heads and rows: all tokens of every method, and what they cost."""
  clock = "cpu" if all(each["machine"]["cpu_only"] for each in content["measured"]) else "wall"
  rows = []
  for name, each in content["methods"].items():
    codes, facts, seconds = each["mean"]["codes"], each["facts"], each["seconds"]["tokenizer"]
    rows.append([
      name,
      f"{each['mean']['tokens_per_chunk']:.4g}",
      f"{each['mean']['bits_per_chunk']:.0f}",
      _ranged(each, "mse"),
      _number(each["mean"]["worst_dimension_mse"]),
      _number(each["mean"]["drift"]),
      f"{codes['used']:.0f} of {codes['used'] / codes['share']:.0f}" if codes["share"] else "0",
      f"{codes['used_a_position']:.0f}",
      f"{codes['perplexity_a_position']:.0f}",
      f"{facts['parameters']:,}" if facts["learned"] else "-",
      f"{facts['steps']}" if facts["learned"] else "fitted",
      "-" if seconds is None else f"{seconds[clock]:.0f}",
    ])  # fmt: skip
  heads = ["method", "tokens", "bits", "MSE", "worst dimension", "drift", "codes used"]
  heads += ["at a position", "perplexity", "parameters", "steps"]
  heads.append({"cpu": "train CPU s", "wall": "train wall s"}[clock])
  return heads, rows


def _errors(content: Mapping[str, Any]) -> list[str]:
  executed = next(iter(content["methods"].values()))["facts"]["executed"]
  return [
    "## All tokens",
    "",
    *_table(*main_table(content)),
    "",
    "Bits are tokens times log2 of the vocabulary. Drift is the rms of the error that has added up "
    f"behind {executed} executed steps. Codes used: at all positions together; at a position, as "
    "perplexity: the mean over positions, since ids may mean another thing at each. Parameters: "
    "trained ones, and codebooks with their moving averages. Seconds include reading and "
    "compilation; CPU seconds are those of all threads.",
    "",
  ]


def _prefixes(content: Mapping[str, Any]) -> list[str]:
  rows = []
  for name, each in content["methods"].items():
    mse_N = each["mean"]["prefixes"]["mse"]
    cells = [_number(mse_N[K - 1]) if K <= len(mse_N) else "-" for K in _BUDGETS]
    rises = ("never", "yes")[any(each["rises"])]
    ordered = "yes" if each["facts"]["ordered"] else "-"
    rows.append([name, ordered, *cells, _number(mse_N[-1]), rises])
  heads = ["method", "trained for prefixes", *(f"K={K}" for K in _BUDGETS), "all", "ever rises"]
  return ["## MSE of the first K tokens", "", *_table(heads, rows), ""]


def _pairs(content: Mapping[str, Any]) -> list[str]:
  rows = []
  for pair in content["pairs"]:
    low, high = (f"{pair['difference'][name]:+.3g}" for name in ("low", "high"))
    seeds = " ".join(f"{ratio:.2f}" for ratio in pair["ratio_by_seed"].values())
    rows.append([
      f"{pair['first']} / {pair['second']}",
      *map(_number, pair["mse"]),
      f"{pair['ratio']:.3f}",
      seeds or "-",
      f"{pair['difference']['mean']:+.3g} ({low} to {high})",
    ])  # fmt: skip
  if not rows:
    return []
  heads = ["METHOD@K", "MSE", "MSE", "ratio", "by seed", "difference by episode (95 %)"]
  return ["## On the same held-out episodes", "", *_table(heads, rows), ""]


def _model(content: Mapping[str, Any]) -> list[str]:
  rows = []
  for name, each in content["methods"].items():
    if each["model"]:
      bits, mse = each["model"]["mean"]["bits"], each["model"]["mean"]["sampled_mse"]
      full = each["mean"]["bits_per_chunk"]
      numbers = [f"{full:.0f}", f"{bits:.1f}", _number(mse), _number(each["mean"]["mse"])]
      rows.append([name, *numbers])
  if not rows:
    return []
  heads = [
    "method",
    "bits",
    "bits under the policy",
    "sampled MSE",
    "tokenizer's own MSE",
  ]
  plan = content["modelability"]
  same = "".join(
    f" {name} is left out: its tokens are those of {other}."
    for name, other in content["same_tokens"].items()
    if name in content["methods"]
  )
  return [
    "## Modelability",
    "",
    f"A policy of width {plan['model'].get('width')} and {plan['model'].get('layers')} layers, "
    f"{plan['steps']:,} steps at batch {plan['batch_size']}, over each tokenizer's tokens; sampled "
    f"at temperature 1.{same}",
    "",
    *_table(heads, rows),
    "",
  ]


def _ceiling(content: Mapping[str, Any]) -> list[str]:
  rows = []
  each_rates = [rates for each in content["methods"].values() for rates in each["ceiling"].values()]
  budgets = sorted({K for rates in each_rates for K in map(int, rates) if K <= 16})
  for name, each in content["methods"].items():
    for seed, rates in each["ceiling"].items():
      N = each["facts"]["max_tokens"]
      cells = [report.percent(rates[str(K)]) if str(K) in rates else "-" for K in budgets]
      title = name if len(each["ceiling"]) == 1 else f"{name}, seed {seed}"
      rows.append([title, *cells, report.percent(rates[str(N)]) if str(N) in rates else "-"])
  if not rows:
    return []
  plan = content["ceiling"]
  return [
    "## Ceiling: the expert's own chunks, encoded and decoded",
    "",
    f"{content['suite']}, {plan['replan']} steps executed of each chunk, {plan['episodes']} "
    f"episodes a task. The expert itself: {report.percent(content['expert'])}.",
    "",
    *_table(["method", *(f"K={K}" for K in budgets), "all"], rows),
    "",
  ]


def _cost(content: Mapping[str, Any]) -> list[str]:
  rows, broken = [], []
  for name, each in content["methods"].items():
    shares, costs = each["mean"]["decodable"], each["mean"]["cpu_us"]
    rows.append([
      name,
      *(f"{100 * shares[kind]['decodable']:.1f} %" for kind in ("random", "corrupted")),
      *(f"{costs[what][size]:,.0f}" for what in ("encode", "decode") for size in ("1", "256")),
    ])  # fmt: skip
    if any(share[fact] < 1 for share in shares.values() for fact in ("finite", "in_range")):
      broken.append(name)
  heads = ["method", "random", "one token wrong"]
  heads += [f"{what} x{size}" for what in ("encode", "decode") for size in (1, 256)]
  sound = "Every decoded chunk was finite and inside the training range."
  if broken:
    sound = f"Some chunks were not finite or left the training range: {', '.join(broken)}."
  return [
    "## Decodable sequences, and CPU microseconds per chunk at batch 1 and 256",
    "",
    *_table(heads, rows),
    "",
    f"{sound} Random sequences have the lengths of real ones.",
    "",
  ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  line = lambda cells: "| " + " | ".join(cells) + " |"
  return [line(heads), "|---" * len(heads) + "|", *map(line, rows)]


def _number(value: float) -> str:
  return f"{value:.3g}"


def _ranged(each: Mapping[str, Any], name: str) -> str:
  """The mean over seeds, and behind it the range."""
  values = [figures[name] for figures in each["by_seed"].values()]
  text = _number(each["mean"][name])
  return text if len(values) == 1 else f"{text} ({_number(min(values))}-{_number(max(values))})"
