"""The quickstart: collect, train, evaluate, report; a stage that is done is reused."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax import config as config_lib
from oat_jax import files
from oat_jax import tokenizers
from oat_jax.data import pipeline
from oat_jax.envs import collect
from oat_jax.envs import env as env_lib
from oat_jax.evaluate import evaluation
from oat_jax.evaluate import report
from oat_jax.study import figures
from oat_jax.study import page
from oat_jax.study import strips
from oat_jax.study import trained as trained_lib
from oat_jax.train import checkpoint
from oat_jax.train import config as train_config
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import metrics
from oat_jax.train import models

STAGES = ("collect", "tokenizer", "policy", "regression", "evaluate", "report")
RUNS = ("tokenizer", "policy", "regression")  # stages that train, each in a directory of its name
# The runs that must be whole before a stage.
NEEDS = {
  "collect": (),
  "tokenizer": (),
  "policy": ("tokenizer",),
  "regression": (),
  "evaluate": RUNS,
  "report": RUNS,
}

WHAT_IT_IS = (
  "Full state observed, scripted experts, MetaWorld v3: not comparable with the 24.4 % that the "
  "OAT paper reports from images."
)


@dataclasses.dataclass(frozen=True)
class Collect:
  episodes: int  # successes per task
  noise: float
  seed: int


@dataclasses.dataclass(frozen=True)
class Evaluate:
  episodes: int  # per task and setting
  num_tokens: tuple[int, ...]
  replans: tuple[int, ...]
  headline_replan: int
  max_steps: int

  def __post_init__(self):
    for name in ("episodes", "max_steps"):
      config_lib.at_least(getattr(self, name), 1, f"config.evaluate.{name}")
    if not self.num_tokens:
      raise ValueError("config.evaluate.num_tokens is empty; it needs at least one prefix length")
    if self.headline_replan not in self.replans:
      raise ValueError(
        f"config.evaluate.headline_replan {self.headline_replan} is not among replans "
        f"{self.replans}"
      )


@dataclasses.dataclass(frozen=True)
class Config:
  """Values of configs/quickstart.py; the three runs are those of launch/train.py."""

  suite: str
  collect: Collect
  tokenizer: train_config.Config
  policy: train_config.Config
  regression: train_config.Config
  evaluate: Evaluate

  def __post_init__(self):
    """What fails late otherwise: behind twenty minutes of training."""
    C = self.tokenizer.data.action_horizon
    for name in RUNS[1:]:
      theirs = getattr(self, name).data.action_horizon
      if theirs != C:
        raise ValueError(
          f"config.{name}.data.action_horizon is {theirs}, config.tokenizer's is {C}"
        )
    for name in RUNS:
      try:
        models.freeze_model(getattr(self, name))
      except ValueError as error:
        raise ValueError(f"config.{name}: {error}") from error
    # The number of tokens may depend on the chunk's size.
    spec = batch_lib.BatchSpec(1, C, env_lib.suite(self.suite).action_dim, 1)
    max_tokens = tokenizers.make(self.tokenizer.model, spec).max_tokens
    for K in self.evaluate.num_tokens:
      config_lib.between(K, 1, max_tokens, "config.evaluate.num_tokens")
    for R in self.evaluate.replans:
      config_lib.between(R, 1, C, "config.evaluate.replans")


def run(
  values: Mapping[str, Any], out: str | os.PathLike, stages: tuple[str, ...] = STAGES
) -> pathlib.Path:
  """Runs the stages that are not done yet.

  Args:
    values: of `Config`.
    out: directory of data, runs, evaluations and the report.
    stages: which ones; each needs those before it.

  Returns:
    the report's directory.
  """
  config = config_lib.freeze(Config, values)
  env_lib.suite(config.suite)
  for stage in stages:
    config_lib.choose(stage, STAGES, "stage")
  out = pathlib.Path(out)
  data = str(out / "data")
  with_data = lambda run, **more: dataclasses.replace(
    run, data=dataclasses.replace(run.data, path=data), **more
  )
  evaluations = functools.cache(lambda: _evaluations(config, out))  # once the runs are whole
  actions: dict[str, Callable[[], Any]] = {
    "collect": lambda: collect.collect(
      config.suite,
      config.collect.episodes,
      data,
      seed=config.collect.seed,
      noise=config.collect.noise,
    ),
    "tokenizer": lambda: loop.train(with_data(config.tokenizer), out / "tokenizer"),
    "policy": lambda: loop.train(
      with_data(config.policy, tokenizer=str(out / "tokenizer")), out / "policy"
    ),
    "regression": lambda: loop.train(with_data(config.regression), out / "regression"),
    "evaluate": lambda: [each.run() for each in evaluations().values()],
    "report": lambda: write_report(config, out, evaluations()),
  }
  for number, stage in enumerate(STAGES, 1):
    if stage in stages:
      print(f"\n== {number}/{len(STAGES)} {stage}", flush=True)
      for name in NEEDS[stage]:
        checkpoint.check_done(out / name, getattr(config, name).steps, name)
      progress = _evaluated(evaluations()) if stage == "evaluate" else _progress(config, out, stage)
      with _clock(out, stage, *progress):
        actions[stage]()
  return out / "report"


def _progress(config: Config, out: pathlib.Path, stage: str) -> tuple[bool, bool]:
  """Whether the stage is done already, and whether it goes on with what an earlier call left."""
  if stage == "collect":
    return (out / "data" / "dataset_info.json").exists(), any(out.glob("data*"))
  if stage in RUNS:
    done = checkpoint.steps(out / stage)[-1:] == [getattr(config, stage).steps]
    return done, (out / stage).exists()
  return False, False  # a report is made anew


def _evaluated(evaluations: Mapping[str, evaluation.Evaluation]) -> tuple[bool, bool]:
  """As `_progress`, of the stage that runs these."""
  done = not any(each.missing for each in evaluations.values())
  return done, not any(each.replaces for each in evaluations.values())


@contextlib.contextmanager
def _clock(out: pathlib.Path, stage: str, done: bool, begun: bool) -> Iterator[None]:
  """Adds a stage's wall seconds to `seconds.json`, over interruptions; made anew it counts anew."""
  since = time.monotonic()
  try:
    yield
  finally:
    if not done and out.exists():  # else it failed before it wrote anything
      seconds = read_seconds(out)
      before = seconds.get(stage, 0.0) if begun else 0.0
      seconds[stage] = round(before + time.monotonic() - since, 1)
      files.write_text(out / "seconds.json", json.dumps(seconds, indent=2) + "\n")


def read_seconds(out: pathlib.Path) -> dict[str, float]:
  """Returns wall seconds by stage."""
  path = out / "seconds.json"
  return json.loads(path.read_text()) if path.exists() else {}


def _evaluations(config: Config, out: pathlib.Path) -> dict[str, evaluation.Evaluation]:
  """Policy and regression on the same goals, and the tokenizer's ceiling."""
  e = config.evaluate
  plans: dict[str, dict[str, Any]] = {
    "policy": {"replans": e.replans, "num_tokens": e.num_tokens},
    "regression": {"replans": e.replans},
    "ceiling": {"replans": (e.headline_replan,), "num_tokens": e.num_tokens, "ceiling": True},
  }
  return {
    name: trained_lib.evaluation(
      out / ("tokenizer" if name == "ceiling" else name),
      config.suite,
      episodes=e.episodes,
      max_steps=e.max_steps,
      out=out / "evaluation" / name,
      replace=True,
      **settings,
    )
    for name, settings in plans.items()
  }


def reconstruction_errors(trained: models.Trained, windows: Any) -> dict[str, Any]:
  """Returns held-out errors by K on normalised actions, and a difference paired by episode.

  `mse` {K: mean}; `rises` whether any K+1 is worse than K; `last_less_half` the paired difference
  between all tokens and half of them, whose interval is over episodes because windows of one
  episode are not independent.
  """
  compiled, params = jax.jit(trained.model.evaluate), jax.device_put(trained.params)
  rows = [
    np.asarray(compiled(params, batch)["mse"])[valid_B]
    for batch, valid_B in pipeline.epoch(windows, min(512, len(windows)))
  ]
  mse_WN = np.concatenate(rows)
  episodes = np.unique(windows.episode_W)
  mse_EN = np.stack([mse_WN[windows.episode_W == episode].mean(0) for episode in episodes])
  mse_N = mse_WN.mean(0)
  N = len(mse_N)
  return {
    "mse": {str(k + 1): float(value) for k, value in enumerate(mse_N)},
    "rises": bool((np.diff(mse_N) > 0).any()),
    "last_less_half": report.paired_interval(mse_EN[:, N - 1] - mse_EN[:, N // 2 - 1]),
  }


def write_report(
  config: Config, out: pathlib.Path, evaluations: Mapping[str, evaluation.Evaluation]
) -> dict[str, Any]:
  """Writes report.html, summary.json and the pictures into `out`/report; returns the summary.

  A rate is {"rate", "k", "n", "low", "high"}, with a Wilson interval. In the summary `success`,
  `regression_success` (the same value for every K, as it has no tokens) and `ceiling_by_task` are
  {"overall" or task: {K: rate}}, for the headline R; the `..._other_replan` are {R: the same};
  `ceiling` is {K: rate} overall, and `expert_success` one rate. `reconstruction_mse` is {K: error},
  `act_ms` {K: {"mean", "p50", "p95"}}; `input_wait` {run: share of a step's time that devices
  waited for data}; `seconds_total` is the sum of `seconds` by stage.

  Raises:
    FileNotFoundError, ValueError: a stage before it is not done.
  """
  begin = time.monotonic()
  missing = [name for name, each in evaluations.items() if each.missing]
  if missing:
    raise ValueError(f"{out}: {', '.join(missing)} not evaluated; run the stage 'evaluate' first")
  tokenizer = models.load(out / "tokenizer")
  split = inputs.load(tokenizer.config.data)
  errors = reconstruction_errors(tokenizer, split.validation)
  curves = {name: metrics.read(out / name) for name in RUNS}
  results = {name: each.content() for name, each in evaluations.items()}
  R = str(config.evaluate.headline_replan)
  by_replan = results["policy"]["success"][config.policy.model["name"]]
  floor = results["regression"]["success"]["regression"]
  for_each_k = lambda rates: {
    task: {str(K): by_k["0"] for K in budgets} for task, by_k in rates.items()
  }
  accuracy = last_row(curves["policy"], "validation/token_accuracy")
  headline = {
    K: [
      row
      for row in report.episodes(results["policy"])
      if (row.replan, row.num_tokens) == (int(R), K)
    ]
    for K in config.evaluate.num_tokens
  }
  budgets = sorted(config.evaluate.num_tokens)
  ceiling = results["ceiling"]["success"]
  summary = {
    "what": WHAT_IT_IS,
    "suite": config.suite,
    "action_horizon": tokenizer.spec.action_horizon,
    "expert_success": ceiling["expert"][R]["overall"]["0"],
    "reconstruction_mse": errors["mse"],
    "reconstruction_rises": errors["rises"],
    "reconstruction_last_less_half": errors["last_less_half"],
    "ceiling": ceiling["ceiling"][R]["overall"],
    "ceiling_by_task": ceiling["ceiling"][R],
    "code_usage": int(last_row(curves["tokenizer"], "validation/distinct_tokens")[""]),
    "token_accuracy": accuracy,
    "replan": int(R),
    "success": by_replan[R],
    "success_other_replan": {r: rates for r, rates in by_replan.items() if r != R},
    "success_most_less_fewest_tokens": report.paired_difference(
      headline[budgets[-1]], headline[budgets[0]]
    ),
    "regression_success": for_each_k(floor[R]),
    "regression_success_other_replan": {r: for_each_k(x) for r, x in floor.items() if r != R},
    "act_ms": results["policy"]["facts"]["act_ms"],
    "input_wait": {name: input_wait(rows) for name, rows in curves.items()},
    "versions": evaluation.versions(*env_lib.suite(config.suite).packages),
  }
  target = out / "report"
  target.mkdir(parents=True, exist_ok=True)
  cells = {
    "chunk": figures.chunk(target / "chunk.png", tokenizer, split.validation),
    "reconstruction": figures.reconstruction(target / "reconstruction.png", errors["mse"]),
    "anytime": figures.anytime(target / "anytime.png", summary),
    "training": figures.training(target / "training.png", curves),
  }
  seen, unseen = {}, ""
  try:
    setting = (config.policy.model["name"], int(R), budgets[-1])
    seen = strips.make(target, evaluations["policy"], setting)
  except (RuntimeError, ImportError) as error:
    unseen = str(error)
    print(f"no pictures of episodes: {unseen}", file=sys.stderr, flush=True)
  seconds = read_seconds(out) | {"report": round(time.monotonic() - begin, 1)}
  summary |= {"seconds_total": round(sum(seconds.values()), 1), "seconds": seconds}
  files.write_text(target / "summary.json", json.dumps(summary, indent=2) + "\n")
  text = page.quickstart(summary, target, cells, seen, unseen, config.evaluate.max_steps)
  files.write_text(target / "report.html", text)
  success = summary["success"]["overall"][str(budgets[-1])]
  print(
    f"success with {budgets[-1]} tokens: {report.percent(success)}; see {target}/report.html",
    flush=True,
  )
  return summary


def input_wait(rows: list[dict[str, float]]) -> float:
  """Returns the mean of `train/input_wait` over a run's logged rows."""
  return float(np.mean([row["train/input_wait"] for row in rows if "train/input_wait" in row]))


def last_row(rows: list[dict[str, float]], prefix: str) -> dict[str, float]:
  """Returns the newest values of `prefix`, by what follows it: {"": x} or {"1": x, "2": y}."""
  for row in reversed(rows):
    found = {
      name[len(prefix) :].lstrip("_"): v for name, v in row.items() if name.startswith(prefix)
    }
    if found:
      return found
  raise ValueError(f"no metric '{prefix}' was logged")
