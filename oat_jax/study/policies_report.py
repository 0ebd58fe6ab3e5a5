"""What the comparison of policies says: JSON, Markdown and figures."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax import files
from oat_jax.evaluate import report
from oat_jax.evaluate import rollout
from oat_jax.policies.policy import Sampling
from oat_jax.study import clock
from oat_jax.study import latency
from oat_jax.study import policies_figures
from oat_jax.study import trained as trained_lib
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


WINDOWS = 50  # held-out ones, on which milliseconds are measured
Rows = dict[Setting, dict[int, list[rollout.Episode]]]  # of each training seed


def write(
  out: pathlib.Path,
  methods: Mapping[str, Runs],
  *,
  pairs: Sequence[tuple[str, ...]],
  facts: dict[str, Any],
) -> dict[str, Any]:
  """Writes report/policies.json, policies.md and figures; returns the JSON's content.

  Raises:
    FileNotFoundError, ValueError: a method was not evaluated, or not to the end, or otherwise; the
      message says what to do.
  """
  rows: Rows = {}
  actors: dict[str, trained_lib.Trained] = {}  # each method's first run
  acts: dict[Setting, Any] = {}
  of_methods, goals = {}, set()
  for name, runs in methods.items():
    of_seeds = {seed: models.load(workdir) for seed, workdir, _ in runs}
    first = of_seeds[runs[0][0]]
    actors[name] = trained_lib.Trained(first, sampling=sampling(first, facts["evaluate"]))
    of_methods[name] = _facts(name, runs, of_seeds, facts["policy"])
    for seed, _, directory in runs:
      for refinement, Ks in planned(of_seeds[seed], facts["evaluate"]).items():
        folder = directory / "refinement" if refinement else directory
        content, found = _read(folder, name, seed, of_seeds[seed], facts["evaluate"], Ks)
        goals.add(content["facts"]["goals_never_demonstrated"])
        for K in Ks:
          setting = Setting(name, K, refinement)
          rows.setdefault(setting, {})[seed] = [row for row in found if row.num_tokens == K]
          tolerance = content["facts"]["tolerances"][str(K)] if refinement else None
          acts.setdefault(setting, actors[name].at(K, tolerance))
  seen = next(iter(actors.values())).held_out(WINDOWS, 1)  # one data for all
  act_ms, machine = latency.measure(acts, [batch for batch, _ in seen])
  settings = [
    {
      "method": setting.method,
      "num_tokens": setting.K,
      "refinement": setting.refinement,
      "tokens": float(np.mean([row.tokens for of in by_seed.values() for row in of])),
      "act_ms": act_ms[setting],
      "success": _by_replan([row for of in by_seed.values() for row in of]),
    }
    for setting, by_seed in rows.items()
  ]
  content = {
    "facts": facts | {"milliseconds": machine, "goals_new": goals == {"checked"}},
    "methods": of_methods,
    "settings": settings,
    "differences": _pairs(rows, pairs) + _refinement(rows),
  }
  target = out / "report"
  target.mkdir(parents=True, exist_ok=True)
  figures = policies_figures.draw(target, settings)
  files.write_text(target / "policies.json", json.dumps(content, indent=1) + "\n")
  files.write_text(target / "policies.md", _markdown(content, figures))
  print(f"see {target}/policies.md", flush=True)
  return content


def planned(trained: models.Trained, plan: Mapping[str, Any]) -> dict[bool, tuple[int, ...]]:
  """Returns {whether rows stop by refinement: each K} that a policy is evaluated with.

  Args:
    trained: the policy.
    plan: `num_tokens` and `mean_tokens` of the comparison's `evaluate`.
  """
  tokenizer = trained.tokenizer
  if tokenizer is None:
    return {False: (0,)}
  ordered = tokenizer.prefix_decodable
  found = {False: tuple(plan["num_tokens"]) if ordered else (tokenizer.max_tokens,)}
  if plan["mean_tokens"] and getattr(trained.model, "refines", False):
    found[True] = tuple(plan["mean_tokens"])
  return found


def sampling(trained: models.Trained, plan: Mapping[str, Any]) -> Sampling:
  """Returns how a policy's tokens, if it has any, are drawn by the comparison's `evaluate`."""
  if trained.tokenizer is None:
    return Sampling()
  return Sampling(plan["temperature"], plan["top_k"])


def _read(
  folder: pathlib.Path,
  name: str,
  seed: int,
  trained: models.Trained,
  plan: Mapping[str, Any],
  Ks: Sequence[int],
) -> tuple[Any, list[rollout.Episode]]:
  """Returns a report's content, and its rows of the plan.

  Raises where there is none, where it is of another run or plan, and where settings are missing.
  """
  path = folder / "evaluation.json"
  if not path.exists():
    raise FileNotFoundError(f"{path}: '{name}' of seed {seed} has no report; run stage 'evaluate'")
  content = json.loads(path.read_text())
  wanted = {
    "model": models.digest(trained),
    "episodes_per_task": plan["episodes"],
    "max_steps": plan["max_steps"],
    "sampling": sampling(trained, plan)._asdict(),
  }
  there = {key: content["facts"].get(key) for key in wanted}
  if there != wanted:
    raise ValueError(
      f"{path} is of another evaluation: {there} there, {wanted} now; run stage 'evaluate' again"
    )
  rows = report.episodes(content)
  known = {(row.num_tokens, row.replan) for row in rows}
  missing = [f"K={K} R={R}" for R in plan["replans"] for K in Ks if (K, R) not in known]
  if missing:
    raise ValueError(
      f"{path}: '{name}' of seed {seed} lacks {', '.join(missing)}; run stage 'evaluate' to its end"
    )
  return content, [row for row in rows if row.replan in plan["replans"]]


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
  tokenizers = [loaded[seed].config.tokenizer for seed, _, _ in runs]
  return {
    "model": trained.config.model["name"],
    "tokens": trained.tokenizer.max_tokens if trained.tokenizer else 0,
    "parameters": sum(x.size for x in jax.tree.leaves(optimizer_lib.trained(trained.params))),
    "seeds": [seed for seed, _, _ in runs],
    "train_cpu_s": _seconds([workdir for _, workdir, _ in runs]),
    "tokenizer_cpu_s": _seconds([pathlib.Path(each) for each in tokenizers if each]),
    "checkpoint": "the last one, averaged parameters",
  }


def _seconds(workdirs: Sequence[pathlib.Path]) -> float | None:
  """Mean CPU seconds of runs; None where nothing is known of them."""
  known = [value for value in (clock.read(workdir).get("cpu") for workdir in workdirs) if value]
  return float(np.mean(known)) if known else None


def _by_replan(rows: Sequence[rollout.Episode]) -> dict[str, Any]:
  """{R: {"overall" or task: rate}}, of all training seeds together."""
  found = {}
  for R in sorted({row.replan for row in rows}):
    by_task = report.rates([row for row in rows if row.replan == R])
    found[str(R)] = {task: next(iter(by_k.values())) for task, by_k in by_task.items()}
  return found


def _pairs(rows: Rows, pairs: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
  """The differences that the config asks for, of those methods that were run, for every R."""
  found = []
  for names in pairs:
    one, other = (_setting(rows, text) for text in names)
    if one is not None and other is not None:
      found += _differences(rows, one, other)
  return found


def _setting(rows: Rows, text: str) -> Setting | None:
  """Returns the setting that "METHOD@K" means, without K that of the most tokens.

  None where the method was not run; ValueError where it was, but not with so many tokens.
  """
  name, _, K = text.partition("@")
  own = [each for each in rows if each.method == name and not each.refinement]
  chosen = [each for each in own if not K or each.K == int(K)]
  if own and not chosen:
    raise ValueError(
      f"config.pairs holds '{text}'; {name} was evaluated with K of "
      f"{', '.join(str(each.K) for each in own)}"
    )
  return max(chosen, default=None)


def _refinement(rows: Rows) -> list[dict[str, Any]]:
  """Refinement against the fixed prefix of as many tokens, and what was spent in the episodes."""
  found = []
  for setting, by_seed in rows.items():
    fixed = setting._replace(refinement=False)
    if setting.refinement and fixed in rows:
      for each in _differences(rows, setting, fixed):
        spent = [
          row.tokens for of in by_seed.values() for row in of if row.replan == each["replan"]
        ]
        found.append(each | {"tokens": float(np.mean(spent))})
  return found


def _differences(rows: Rows, one: Setting, other: Setting) -> list[dict[str, Any]]:
  """Over all training seeds together, and the mean of each."""
  found = []
  seeds = [seed for seed in rows[one] if seed in rows[other]]
  for R in sorted({row.replan for row in rows[one][seeds[0]]}):
    of = lambda setting, seed, R=R: [row for row in rows[setting][seed] if row.replan == R]
    pooled = [[row for seed in seeds for row in of(setting, seed)] for setting in (one, other)]
    success = lambda setting, seed, of=of: np.mean([row.success for row in of(setting, seed)])
    by_seed = [float(success(one, seed) - success(other, seed)) for seed in seeds]
    names = {"first": one.title, "second": other.title, "replan": R}
    found.append(names | report.paired_difference(*pooled) | {"by_seed": by_seed})
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
    "chunk, batch 1, all methods in turns on the same held-out windows, mean over them, on "
    f"{facts['milliseconds']['processor']}, which takes "
    f"{facts['milliseconds']['calibration_matmul1024_wall_ms']:.0f} ms for a product of two "
    "1024 x 1024 matrices.",
    "",
    "| method | tokens spent | " + " | ".join(f"R={R}" for R in replans) + " | ms |",
    "|---" * (len(replans) + 3) + "|",
  ]
  for each in content["settings"]:
    name = each["method"] + ", refinement" * each["refinement"]
    cells = [report.percent(each["success"][R]["overall"]) for R in replans]
    tokens = f"{each['tokens']:.4g}" if each["num_tokens"] else "-"
    lines.append(f"| {name} | {tokens} | {' | '.join(cells)} | {each['act_ms']:.2f} |")
  lines += [
    "",
    "| method | parameters | tokens of a chunk | CPU seconds of the policy | of its tokenizer |",
    "|---|---|---|---|---|",
  ]
  for name, each in methods.items():
    both = (each[key] for key in ("train_cpu_s", "tokenizer_cpu_s"))
    policy, tokenizer = ("" if value is None else f"{value:,.0f}" for value in both)
    parts = (name, f"{each['parameters']:,}", each["tokens"] or "-", policy, tokenizer)
    lines.append(f"| {' | '.join(map(str, parts))} |")
  lines += [
    "",
    "## Differences of success, paired by goal",
    "",
    "95 % bootstrap intervals over goals, of these training runs: what other training seeds would "
    "change is not in them. In brackets each seed's own difference.",
    "",
  ]
  for each in content["differences"]:
    names = f"{each['first']} less {each['second']}, R={each['replan']}"
    if "tokens" in each:
      names += f" (spent: {each['tokens']:.2f} tokens a chunk)"
    by_seed = ", ".join(f"{100 * value:+.0f}" for value in each["by_seed"])
    lines.append(f"- {names}: {report.points(each)}" + f" [{by_seed}]" * (len(each["by_seed"]) > 1))
  lines += [""] + [f"![{caption}]({file})" for caption, file in figures]
  lines += ["", "```json", json.dumps(facts, indent=2), "```", ""]
  return "\n".join(lines)
