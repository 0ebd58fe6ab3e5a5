"""The report of the comparison: what lies in OUT, as JSON, Markdown and figures."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from oat_jax.evaluate import report
from oat_jax.study import compare_figures
from oat_jax.train import models

_BUDGETS = (1, 2, 4, 8)  # columns of the tables; all tokens are the last one


def write(
  out: pathlib.Path,
  *,
  wanted: Mapping[str, Mapping[str, Sequence[int]]],
  known: Sequence[str],
  pairs: Sequence[Sequence[str]],
  pictured: Sequence[str],
  windows: Any,
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes comparison.json, comparison.md and the figures into `out`/report, from what is there.

  In comparison.json `methods` holds, by name, `facts`, the `mean` over seeds of all figures and
  `by_seed` each one's; `model` the same of the small policy; `ceiling` {seed: {K: rate}} and
  `seconds` {run: mean over seeds}, CPU time. `expert` is a rate; `pairs` what `compared` returns;
  `missing` what was asked for and is not there.

  Args:
    out: the comparison's directory.
    wanted: {method: {"tokenizer", "model" or "ceiling": seeds}}.
    known: methods of the config; those of which nothing is there are said to be missing.
    pairs: what to compare, each two as `best` takes them; those that are not there are left out.
    pictured: methods whose chunks are drawn side by side.
    windows: the held-out ones.
    facts: what a reader must know.

  Raises:
    ValueError: there is no tokenizer at all.
  """
  of = {"data": facts["fingerprint"], "windows": len(windows)}
  episodes = np.unique(windows.windows.episode_W[windows.indices]).tolist()
  found, others = read(out, of, episodes)
  if not found:
    which = f": {', '.join(others)} measured on others" if others else ""
    raise ValueError(
      f"{out} holds no tokenizer measured on these held-out windows{which}; run the stage 'train' "
      "first"
    )
  names = sorted(found, key=lambda name: (*_group(found[name]), name))
  missing = [f"{name}: not run" for name in known if name not in [*found, *others]]
  missing += [f"{name}: measured on other windows; run 'train' again" for name in others]
  for name, parts in wanted.items():
    for part, seeds in parts.items():
      there = found.get(name, {})
      lacking = [str(seed) for seed in seeds if there.get(seed, {}).get(part) is None]
      if lacking and there:
        missing.append(f"{name}: no {part} of seed {', '.join(lacking)}")
  content: dict[str, Any] = {**facts, "methods": {name: _method(found[name]) for name in names}}
  content["expert"] = next(
    (seed["expert"] for name in names for seed in found[name].values() if seed["expert"]), None
  )
  content["pairs"] = []
  for pair in pairs:
    one, other = (best(found, names) for names in pair)
    if one and other:
      content["pairs"].append(compared(found, one, other))
  content["missing"] = missing
  target = out / "report"
  target.mkdir(parents=True, exist_ok=True)
  report.write_text(target / "comparison.json", json.dumps(content, indent=1) + "\n")
  figures = compare_figures.draw(target, content["methods"])
  trained = {
    name: models.load(out / name / f"seed{min(found[name])}" / "tokenizer")
    for name in pictured
    if name in found
  }
  if trained:
    figures.append(compare_figures.chunks(target / "chunks.png", trained, windows))
  report.write_text(target / "comparison.md", markdown(content, figures))
  for line in missing:
    print(f"missing: {line}", flush=True)
  print(f"see {target}/comparison.md", flush=True)
  return content


def read(
  out: pathlib.Path, of: Mapping[str, Any], episodes: Sequence[int]
) -> tuple[dict[str, dict[int, dict[str, Any]]], list[str]]:
  """Returns what was measured of which windows, and the methods measured on other windows only.

  Args:
    out: the comparison's directory.
    of, episodes: what the measurements must be of.

  Returns:
    {method: {seed: parts}}, a part None where it is not there, and names of methods.
  """
  found: dict[str, dict[int, dict[str, Any]]] = {}
  others = []
  for path in sorted(out.glob("*/seed*/tokenizer.json")):
    load = lambda name, at=path.parent: (
      json.loads((at / name).read_text()) if (at / name).exists() else None
    )
    tokenizer, model = json.loads(path.read_text()), load("model.json")
    if not of.items() <= tokenizer["of"].items() or tokenizer["episodes"] != list(episodes):
      others.append(tokenizer["method"])
      continue
    if model is not None and not of.items() <= model["of"].items():
      model = None
    ceiling = load("ceiling/evaluation.json")
    success = {} if ceiling is None else ceiling["success"]
    overall = lambda method, success=success: next(
      (by_task["overall"] for by_task in success.get(method, {}).values()), None
    )
    found.setdefault(tokenizer["method"], {})[tokenizer["seed"]] = {
      "tokenizer": tokenizer,
      "model": model,
      "ceiling": overall("ceiling"),
      "expert": (overall("expert") or {}).get("0"),
      "seconds": load("seconds.json") or {},
    }
  return found, sorted(set(others) - set(found))


def _group(seeds: Mapping[int, Mapping[str, Any]]) -> tuple[bool, bool]:
  """Sorts ordered methods before unordered ones, and learned before fitted."""
  facts = next(iter(seeds.values()))["tokenizer"]["facts"]
  return not facts["learned"], not facts["ordered"]


def _method(seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
  parts: dict[str, Any] = {"facts": next(iter(seeds.values()))["tokenizer"]["facts"]}
  by = lambda part: {
    str(seed): found[part]["figures"] for seed, found in seeds.items() if found[part] is not None
  }
  tokenizer, model = by("tokenizer"), by("model")
  parts |= {"mean": mean(list(tokenizer.values())), "by_seed": tokenizer}
  parts["model"] = {"mean": mean(list(model.values())), "by_seed": model} if model else None
  parts["ceiling"] = {
    str(seed): found["ceiling"] for seed, found in seeds.items() if found["ceiling"] is not None
  }
  for run in ("tokenizer", "model"):
    values = [found["seconds"][run] for found in seeds.values() if run in found["seconds"]]
    parts.setdefault("seconds", {})[run] = mean(values) if values else None
  mse_by_seed = [np.array(each["prefixes"]["mse"]) for each in tokenizer.values()]
  parts["rises"] = [bool((np.diff(mse_N) > 0).any()) for mse_N in mse_by_seed]
  return parts


def mean(values: Sequence[Any]) -> Any:
  """Returns the mean of numbers, or of lists or dicts of them, part by part."""
  if isinstance(values[0], dict):
    return {key: mean([value[key] for value in values]) for key in values[0]}
  return np.mean(values, axis=0).tolist()


def best(found: Mapping[str, Any], names: str) -> tuple[str, int] | None:
  """Returns (method, K) of the one among "A@K|B@K|C" with the lowest error, None if none is there.

  "METHOD" means all of its tokens, "METHOD@K" the first K.
  """
  there = []
  for text in names.split("|"):
    name, _, budget = text.partition("@")
    if name in found:
      measured = next(iter(found[name].values()))["tokenizer"]
      K = int(budget or measured["facts"]["max_tokens"])
      if str(K) in measured["by_episode"]:
        there.append((name, K))
  return min(there, key=lambda each: _mse(found, *each), default=None)


def compared(
  found: Mapping[str, Mapping[int, Mapping[str, Any]]], *two: tuple[str, int]
) -> dict[str, Any]:
  """Returns how the errors of two (method, K) differ on the same held-out episodes.

  Returns:
    `first` and `second`, their names; `mse`, their means over windows and seeds; the `ratio` of
    these, and `ratio_by_seed`; `difference` {"mean", "low", "high"} of the episodes' errors, each
    averaged over seeds, with a 95 % t interval.
  """
  (first, _), (second, _) = two
  one_E, other_E = (
    np.mean([each["tokenizer"]["by_episode"][str(K)] for each in found[name].values()], axis=0)
    for name, K in two
  )
  a, b = (_mse(found, *each) for each in two)
  by_seed = {}
  for seed in found[first].keys() & found[second].keys():
    mse = [found[name][seed]["tokenizer"]["figures"]["prefixes"]["mse"][K - 1] for name, K in two]
    by_seed[str(seed)] = mse[0] / mse[1]
  return {
    "first": f"{first}@{two[0][1]}",
    "second": f"{second}@{two[1][1]}",
    "mse": [a, b],
    "ratio": a / b,
    "ratio_by_seed": dict(sorted(by_seed.items())),
    "difference": report.paired_interval(one_E - other_E),
  }


def _mse(found: Mapping[str, Any], name: str, K: int) -> float:
  figures = [each["tokenizer"]["figures"] for each in found[name].values()]
  return float(np.mean([each["prefixes"]["mse"][K - 1] for each in figures]))


def markdown(content: Mapping[str, Any], figures: Sequence[tuple[str, str]]) -> str:
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
    f"{content['action_horizon']} steps of {content['action_dim']} actions. Errors are in "
    "units in which every action spans -1 to 1, on steps before the episode's end. "
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
  versions = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
  machine = content["machine"]
  lines += [f"Machine: {machine['cores']} cores, {machine['devices']}. Versions: {versions}.", ""]
  return "\n".join(lines)


def _errors(content: Mapping[str, Any]) -> list[str]:
  rows = []
  for name, each in content["methods"].items():
    codes, seconds = each["mean"]["codes"], each["seconds"]["tokenizer"]
    rows.append([
      name,
      f"{each['mean']['tokens_per_chunk']:.4g}",
      f"{each['mean']['bits_per_chunk']:.0f}",
      _ranged(each, "mse"),
      _number(each["mean"]["worst_dimension_mse"]),
      _number(each["mean"]["drift"]),
      f"{codes['used']:.0f} of {codes['used'] / codes['share']:.0f}" if codes["share"] else "0",
      f"{codes['perplexity']:.0f}",
      f"{each['facts']['steps'] if each['facts']['learned'] else 'fitted'}",
      "-" if seconds is None else f"{seconds:.0f}",
    ])  # fmt: skip
  heads = ["method", "tokens", "bits", "MSE", "worst dimension", "drift", "codes used"]
  heads += ["perplexity", "steps", "train CPU s"]
  executed = next(iter(content["methods"].values()))["facts"]["executed"]
  return [
    "## All tokens",
    "",
    *_table(heads, rows),
    "",
    "Bits are tokens times log2 of the vocabulary. Drift is the rms of the error that has added up "
    f"behind {executed} executed steps. Codes are counted over all positions together. "
    "Train CPU s: of all threads, reading and compilation included.",
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
  return [
    "## Modelability",
    "",
    f"A policy of width {plan['model'].get('width')} and {plan['model'].get('layers')} layers, "
    f"{plan['steps']:,} steps at batch {plan['batch_size']}, over each tokenizer's tokens; sampled "
    "at temperature 1.",
    "",
    *_table(heads, rows),
    "",
  ]


def _ceiling(content: Mapping[str, Any]) -> list[str]:
  rows = []
  for name, each in content["methods"].items():
    for seed, rates in each["ceiling"].items():
      N = each["facts"]["max_tokens"]
      cells = [report.percent(rates[str(K)]) if str(K) in rates else "-" for K in _BUDGETS]
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
    *_table(["method", *(f"K={K}" for K in _BUDGETS), "all"], rows),
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
