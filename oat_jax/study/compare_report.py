"""The report of the comparison: what lies in OUT, as JSON, Markdown and figures."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from oat_jax import files
from oat_jax.evaluate import report
from oat_jax.study import compare_figures
from oat_jax.study import compare_markdown
from oat_jax.train import models

_MOST = 16  # tokens of a ceiling that is asked for every budget


def write(
  out: pathlib.Path,
  *,
  wanted: Mapping[str, Mapping[str, Sequence[int]]],
  known: Sequence[str],
  pairs: Sequence[Sequence[str]],
  pictured: Sequence[str],
  windows: Any,
  of: Mapping[str, Any],
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes comparison.json, comparison.md and the figures into `out`/report, from what is there.

  In comparison.json `methods` holds, by name, `facts`, the `mean` over seeds of all figures and
  `by_seed` each one's; `model` the same of the small policy; `ceiling` {seed: {K: rate}} and
  `seconds` {run: {"cpu" or "wall": mean over seeds}}. `expert` is a rate; `pairs` what `compared`
  returns; `measured` on which machine, with which versions; `missing` what was asked for and is not
  there, or is there of something else.

  Args:
    out: the comparison's directory.
    wanted: {method: {"tokenizer", "model" or "ceiling": seeds}}.
    known: methods of the config; those of which nothing is there are said to be missing.
    pairs: what to compare, each two as `best` takes them; those that are not there are left out.
    pictured: methods whose chunks are drawn side by side.
    windows: the held-out ones.
    of: what tells measurements on them from others.
    facts: what a reader must know, with `plans` of methods and those of `modelability`, `suite` and
      `ceiling`.

  Raises:
    ValueError: there is no tokenizer at all.
  """
  found, others, stale = read(out, of, facts)
  changed = {name for name, part, _ in stale if part == "tokenizer"}
  if not found:
    which = ", ".join(sorted({*others, *changed}))
    which = f": {which} measured on others, or trained by another plan" if which else ""
    raise ValueError(
      f"{out} holds no tokenizer measured on these held-out windows{which}; run the stage 'train' "
      "first"
    )
  names = sorted(found, key=lambda name: (*_group(found[name]), name))
  missing = [f"{name}: not run" for name in known if name not in {*found, *others, *changed}]
  missing += [f"{name}: measured on other windows; run 'train' again" for name in others]
  why = {"tokenizer": "was trained by another plan than the config's: choose another OUT"}
  missing += [
    f"{name}: the {part} of seed {seed} "
    + why.get(part, "is of another tokenizer or plan, or not whole")
    for name, part, seed in stale
  ]
  for name, parts in wanted.items():
    for part, seeds in parts.items():
      there = found.get(name, {})
      lacking = [
        seed
        for seed in seeds
        if there.get(seed, {}).get(part) is None and (name, part, seed) not in stale
      ]
      if lacking and there:
        missing.append(f"{name}: no {part} of seed {', '.join(map(str, lacking))}")
  content: dict[str, Any] = {**facts, "methods": {name: _method(found[name]) for name in names}}
  content["expert"] = next(
    (seed["expert"] for name in names for seed in found[name].values() if seed["expert"]), None
  )
  content["pairs"] = []
  for pair in pairs:
    one, other = (best(found, names) for names in pair)
    if one and other:
      content["pairs"].append(compared(found, one, other))
  content["measured"] = _measured(found)
  content["missing"] = missing
  target = out / "report"
  target.mkdir(parents=True, exist_ok=True)
  files.write_text(target / "comparison.json", json.dumps(content, indent=1) + "\n")
  compare_figures.table(target / "table.png", *compare_markdown.main_table(content))
  figures = compare_figures.draw(target, content["methods"])
  trained = {
    name: models.load(out / name / f"seed{min(found[name])}" / "tokenizer")
    for name in pictured
    if name in found
  }
  if trained:
    figures.append(compare_figures.chunks(target / "chunks.png", trained, windows))
  files.write_text(target / "comparison.md", compare_markdown.text(content, figures))
  for line in missing:
    print(f"missing: {line}", flush=True)
  print(f"see {target}/comparison.md", flush=True)
  return content


def read(
  out: pathlib.Path, of: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[dict[str, dict[int, dict[str, Any]]], list[str], list[tuple[str, str, int]]]:
  """Returns what was measured on these windows, and what lies there of something else.

  Args:
    out: the comparison's directory.
    of: what tells measurements on these windows from others.
    facts: with `plans` of methods and those of `modelability`, `suite` and `ceiling`.

  Returns:
    {method: {seed: parts}}, a part None where it is not there; names of methods that were measured
    on other windows only; and (method, part, seed) of parts of another tokenizer or plan.
  """
  found: dict[str, dict[int, dict[str, Any]]] = {}
  others, stale = [], []
  for path in sorted(out.glob("*/seed*/tokenizer.json")):
    load = lambda name, at=path.parent: (
      json.loads((at / name).read_text()) if (at / name).exists() else None
    )
    tokenizer, model = json.loads(path.read_text()), load("model.json")
    ceiling = load("ceiling/evaluation.json")
    method, seed, digest = tokenizer["method"], tokenizer["seed"], tokenizer["of"]["model"]
    if not of.items() <= tokenizer["of"].items():
      others.append(method)
      continue
    # Of methods that the config does not know, nothing is planned.
    if not facts["plans"].get(method, {}).items() <= tokenizer["facts"].items():
      stale.append((method, "tokenizer", seed))
      continue
    wanted = {**of, "tokenizer": digest, "policy": facts["modelability"]}
    if model is not None and not wanted.items() <= model["of"].items():
      stale.append((method, "model", seed))
      model = None
    rates, expert = None, None
    if ceiling is not None:
      rates, expert = _ceiling(ceiling, digest, tokenizer["facts"], facts)
      stale += [] if rates else [(method, "ceiling", seed)]
    found.setdefault(method, {})[seed] = {
      "tokenizer": tokenizer,
      "model": model,
      "ceiling": rates,
      "expert": expert,
      "seconds": {
        name: seconds
        for name in ("tokenizer", "model")
        if (seconds := load(f"{name}.seconds.json")) is not None
      },
    }
  return found, sorted(set(others) - set(found)), stale


def _ceiling(
  content: Mapping[str, Any], digest: str, of: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[Any, Any]:
  """Returns {K: rate} and the expert's rate, of an evaluation as planned; else None for both."""
  plan = facts["ceiling"]
  wanted = {"model": digest, "suite": facts["suite"], "max_steps": plan["max_steps"]}
  wanted["episodes_per_task"] = plan["episodes"]
  overall = lambda method: (
    content["success"].get(method, {}).get(str(plan["replan"]), {}).get("overall", {})
  )
  rates, expert = overall("ceiling"), overall("expert").get("0")
  budgets = ceiling_budgets(of["budgets"], of["learned"], plan["num_tokens"])
  whole = expert is not None and all(str(K) in rates for K in budgets)
  return (rates, expert) if whole and wanted.items() <= content["facts"].items() else (None, None)


def ceiling_budgets(budgets: Sequence[int], learned: bool, asked: Sequence[int]) -> list[int]:
  """Returns the K of a tokenizer's ceiling: of a fitted one all tokens, else those asked for.

  Args:
    budgets: the tokenizer's; the last one is all of its tokens.
    learned: not fitted.
    asked: K; empty for every budget up to `_MOST`.
  """
  asked = asked or [K for K in budgets if K <= _MOST]
  return [K for K in asked if learned and K <= budgets[-1]] or [budgets[-1]]


def _measured(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
  """Returns every machine with versions, and the methods that were measured there."""
  groups: list[dict[str, Any]] = []
  for name, seeds in found.items():
    for each in seeds.values():
      where = {key: each["tokenizer"][key] for key in ("machine", "versions")}
      group = next((group for group in groups if where.items() <= group.items()), None)
      if group is None:
        group = {**where, "methods": []}
        groups.append(group)
      group["methods"] += [] if name in group["methods"] else [name]
  return groups


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
