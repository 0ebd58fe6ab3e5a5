"""What the comparison of policies says: JSON, Markdown and figures."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax.evaluate import report
from oat_jax.evaluate import rollout
from oat_jax.study import clock
from oat_jax.study import measure
from oat_jax.study import policies_figures
from oat_jax.train import models
from oat_jax.train import optimizer as optimizer_lib

# A method's runs: training seed, working directory, directory of its evaluations.
Runs = Sequence[tuple[int, pathlib.Path, pathlib.Path]]


class Setting(NamedTuple):
  """What is one point of the figures: a method that spends K tokens, or K on average."""

  method: str
  K: int  # 0 without tokens
  refinement: bool  # K is a mean, spent where tokens refine

  @property
  def title(self) -> str:
    tokens = f" {self.K} token{'s' * (self.K > 1)}" if self.K else ""
    return f"{self.method}{tokens}" + " on average" * self.refinement


def write(
  out: pathlib.Path,
  methods: Mapping[str, Runs],
  *,
  pairs: Sequence[tuple[str, ...]],
  facts: dict[str, Any],
) -> dict[str, Any]:
  """Writes report/policies.json, policies.md and figures; returns the JSON's content.

  Raises:
    FileNotFoundError: a method was not evaluated; the message says which stage to run.
  """
  rows: dict[Setting, list[rollout.Episode]] = {}
  of_methods, act_ms = {}, {}
  goals = set()
  for name, runs in methods.items():
    loaded = {seed: models.load(workdir) for seed, workdir, _ in runs}
    of_methods[name] = _facts(name, runs, loaded, facts["policy"])
    for seed, _, directory in runs:
      for refinement, folder in ((False, directory), (True, directory / "refinement")):
        if refinement and not folder.exists():
          continue
        content = _read(folder, name, seed, loaded[seed], facts["evaluate"])
        goals.add(content["facts"]["goals_never_demonstrated"])
        for K, ms in content["facts"]["act_ms"].items():
          typical = ms["mean" if refinement else "p50"]  # rows that end early differ in earnest
          act_ms.setdefault(Setting(name, int(K), refinement), []).append(typical)
        for row in report.episodes(content):
          if row.replan in facts["evaluate"]["replans"]:
            rows.setdefault(Setting(name, row.num_tokens, refinement), []).append(row)
  settings = [
    {
      "method": setting.method,
      "num_tokens": setting.K,
      "refinement": setting.refinement,
      "tokens": float(np.mean([row.tokens for row in of])),
      "act_ms": float(np.median(act_ms[setting])) if setting in act_ms else None,
      "success": _by_replan(of),
    }
    for setting, of in rows.items()
  ]
  content = {
    "facts": facts | {"machine": measure.machine(), "goals_new": goals == {"checked"}},
    "methods": of_methods,
    "settings": settings,
    "differences": _pairs(rows, pairs) + _refinement(rows),
  }
  target = out / "report"
  target.mkdir(parents=True, exist_ok=True)
  figures = policies_figures.draw(target, settings)
  report.write_text(target / "policies.json", json.dumps(content, indent=1) + "\n")
  report.write_text(target / "policies.md", _markdown(content, figures))
  print(f"see {target}/policies.md", flush=True)
  return content


def _read(
  folder: pathlib.Path, name: str, seed: int, trained: models.Trained, plan: Mapping[str, Any]
) -> Any:
  """Returns a report's content; raises where there is none, or it is not of this run and plan."""
  path = folder / "evaluation.json"
  if not path.exists():
    raise FileNotFoundError(f"{path}: '{name}' of seed {seed} has no report; run stage 'evaluate'")
  content = json.loads(path.read_text())
  wanted = {
    "model": models.digest(trained),
    "episodes_per_task": plan["episodes"],
    "max_steps": plan["max_steps"],
  }
  there = {key: content["facts"].get(key) for key in wanted}
  replans = {row.replan for row in report.episodes(content)}
  if there != wanted or not replans >= set(plan["replans"]):
    raise ValueError(
      f"{path} is of another evaluation: {there}, R={sorted(replans)} there; {wanted}, "
      f"R={sorted(plan['replans'])} now; run stage 'evaluate' again"
    )
  return content


def _facts(
  name: str, runs: Runs, loaded: Mapping[int, models.Trained], budget: Mapping[str, Any]
) -> dict[str, Any]:
  """What there is to know of a method's runs; ValueError where their budget was another one."""
  for seed, workdir, _ in runs:
    own = {key: getattr(loaded[seed].config, key) for key in ("steps", "batch_size")}
    if own != {key: budget[key] for key in own}:
      raise ValueError(
        f"{workdir}: '{name}' was trained {own}; the config says {dict(budget)}: take another OUT, "
        "or the same configuration"
      )
  trained = loaded[runs[0][0]]
  seconds = [clock.read(workdir).get("cpu") for _, workdir, _ in runs]
  known = [value for value in seconds if value]
  return {
    "model": trained.config.model["name"],
    "tokens": trained.tokenizer.max_tokens if trained.tokenizer else 0,
    "parameters": sum(x.size for x in jax.tree.leaves(optimizer_lib.trained(trained.params))),
    "seeds": [seed for seed, _, _ in runs],
    "train_cpu_s": float(np.mean(known)) if known else None,
    "checkpoint": "the last one, averaged parameters",
  }


def _by_replan(rows: Sequence[rollout.Episode]) -> dict[str, Any]:
  """{R: {"overall" or task: rate}}, of all training seeds together."""
  found = {}
  for R in sorted({row.replan for row in rows}):
    by_task = report.rates([row for row in rows if row.replan == R])
    found[str(R)] = {task: next(iter(by_k.values())) for task, by_k in by_task.items()}
  return found


def _pairs(
  rows: Mapping[Setting, list[rollout.Episode]], pairs: Sequence[tuple[str, ...]]
) -> list[dict[str, Any]]:
  """The differences that the config asks for, of those methods that were run, for every R."""
  found = []
  for names in pairs:
    one, other = (_setting(rows, text) for text in names)
    if one is not None and other is not None:
      found += _differences(rows, one, other)
  return found


def _setting(rows: Mapping[Setting, Any], text: str) -> Setting | None:
  """Returns the setting that "METHOD@K" means; without K that of the most tokens."""
  name, _, K = text.partition("@")
  own = [each for each in rows if each.method == name and not each.refinement]
  return max((each for each in own if not K or each.K == int(K)), default=None)


def _refinement(rows: Mapping[Setting, list[rollout.Episode]]) -> list[dict[str, Any]]:
  """Refinement against the fixed prefix of as many tokens, and what was spent in the episodes."""
  found = []
  for setting in rows:
    fixed = setting._replace(refinement=False)
    if setting.refinement and fixed in rows:
      for each in _differences(rows, setting, fixed):
        spent = [row.tokens for row in rows[setting] if row.replan == each["replan"]]
        found.append(each | {"tokens": float(np.mean(spent))})
  return found


def _differences(
  rows: Mapping[Setting, list[rollout.Episode]], one: Setting, other: Setting
) -> list[dict[str, Any]]:
  found = []
  for R in sorted({row.replan for row in rows[one]}):
    of = [[row for row in rows[each] if row.replan == R] for each in (one, other)]
    names = {"first": one.title, "second": other.title, "replan": R}
    found.append(names | report.paired_difference(*of))
  return found


def _markdown(content: Mapping[str, Any], figures: Sequence[tuple[str, str]]) -> str:
  facts, methods = content["facts"], content["methods"]
  plan, replans = facts["evaluate"], [str(R) for R in sorted(facts["evaluate"]["replans"])]
  seeds = sorted({seed for each in methods.values() for seed in each["seeds"]})
  demonstrations = facts["demonstrations"]
  lines = [
    "# Policies at one budget",
    "",
    f"{facts['suite']}, {demonstrations.get('episodes', '?')} demonstrations a task; observed: "
    f"{', '.join(facts['observes'])}. Every policy was trained {facts['policy']['steps']:,} steps "
    f"of {facts['policy']['batch_size']} windows, every learned tokenizer "
    f"{facts['tokenizer']['steps']:,} of {facts['tokenizer']['batch_size']}; training seeds: "
    f"{', '.join(map(str, seeds))}. {plan['episodes']} goals a task, the same for all, "
    f"{'never demonstrated' if facts['goals_new'] else 'demonstrated or not is not known here'}; "
    f"{plan['max_steps']} steps. The last checkpoint of each run is evaluated. Success in %, with "
    "95 % Wilson intervals, which take goals of several training seeds for independent; R: steps "
    f"executed of each chunk of {facts['action_horizon']}; ms: wall time from observation to "
    "chunk, batch 1, median; of refinement, where chunks differ, the mean.",
    "",
    "| method | tokens spent | " + " | ".join(f"R={R}" for R in replans) + " | ms |",
    "|---" * (len(replans) + 3) + "|",
  ]
  for each in content["settings"]:
    name = each["method"] + ", refinement" * each["refinement"]
    cells = [report.percent(each["success"][R]["overall"]) for R in replans]
    ms = "" if each["act_ms"] is None else f"{each['act_ms']:.2f}"
    tokens = f"{each['tokens']:.4g}" if each["num_tokens"] else "-"
    lines.append(f"| {name} | {tokens} | {' | '.join(cells)} | {ms} |")
  lines += [
    "",
    "| method | parameters | tokens of a chunk | CPU seconds to train |",
    "|---|---|---|---|",
  ]
  for name, each in methods.items():
    seconds = "" if each["train_cpu_s"] is None else f"{each['train_cpu_s']:,.0f}"
    lines.append(f"| {name} | {each['parameters']:,} | {each['tokens'] or '-'} | {seconds} |")
  lines += ["", "## Differences of success, paired by goal, with 95 % bootstrap intervals", ""]
  for each in content["differences"]:
    names = f"{each['first']} less {each['second']}, R={each['replan']}"
    if "tokens" in each:
      names += f" (spent: {each['tokens']:.2f} tokens a chunk)"
    lines.append(f"- {names}: {report.points(each)}")
  lines += [""] + [f"![{caption}]({file})" for caption, file in figures]
  lines += ["", "```json", json.dumps(facts, indent=2), "```", ""]
  return "\n".join(lines)
