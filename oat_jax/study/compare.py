"""The comparison of tokenizers: train or fit each at one budget, measure them alike, report.

A directory OUT/METHOD/seedS holds `tokenizer` and `model`, working directories; `ceiling`, an
evaluation's report; `tokenizer.json` and `model.json`, what was measured of the first two, of what
and where; and the seconds of both. What is done is reused, and several processes may work in one
OUT on different methods.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from oat_jax import config as config_lib
from oat_jax import files
from oat_jax import tokenizers
from oat_jax.envs import env as env_lib
from oat_jax.evaluate import evaluation
from oat_jax.study import clock
from oat_jax.study import compare_report
from oat_jax.study import measure
from oat_jax.study import trained as trained_lib
from oat_jax.tokenizers import analysis
from oat_jax.train import checkpoint
from oat_jax.train import config as train_config
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import models

STAGES = ("train", "model", "ceiling", "report")


@dataclasses.dataclass(frozen=True)
class Ceiling:
  # K, of learned tokenizers, a fitted one decodes all its tokens; (): every budget up to 16.
  num_tokens: tuple[int, ...]
  replan: int  # R
  episodes: int  # per task and setting
  max_steps: int

  def __post_init__(self):
    for name in ("replan", "episodes", "max_steps"):
      config_lib.at_least(getattr(self, name), 1, f"config.ceiling.{name}")
    for K in self.num_tokens:
      config_lib.at_least(K, 1, "config.ceiling.num_tokens")


@dataclasses.dataclass(frozen=True)
class Config:
  """Values of configs/compare.py."""

  data: train_config.Data  # of all runs, in place of theirs
  methods: Mapping[str, Any]  # name -> a tokenizer's run, as launch/train.py takes it
  modelability: train_config.Config  # the policy that is trained on each of them
  # Methods whose tokens are another one's, which no second policy is trained on: name -> other.
  same_tokens: Mapping[str, str]
  ceiling: Ceiling
  seeds: tuple[int, ...]
  modelability_seeds: tuple[int, ...]
  ceiling_seeds: tuple[int, ...]
  windows: int  # held-out windows that are measured, evenly spaced
  # Compared on the same episodes: "METHOD" or "METHOD@K", and "A|B|C" for the best of several.
  pairs: tuple[tuple[str, ...], ...]
  pictured: tuple[str, ...]  # methods whose chunks are drawn side by side

  def __post_init__(self):
    config_lib.at_least(self.windows, 1, "config.windows")
    if not self.methods:
      raise ValueError("config.methods is empty; it needs at least one method")
    if not self.seeds:
      raise ValueError("config.seeds is empty; it needs at least one seed")
    for pair in self.pairs:
      if len(pair) != 2:
        raise ValueError(f"config.pairs holds {pair}; each names two, e.g. ('oat@8', 'oat@4')")
      for text in "|".join(pair).split("|"):
        name, at, budget = text.partition("@")
        self._check_method(name, "config.pairs")
        if at:
          self._check_budget(name, budget, text)
    for name in self.pictured:
      self._check_method(name, "config.pictured")
    for name in (*self.same_tokens, *self.same_tokens.values()):
      self._check_method(name, "config.same_tokens")

  def _check_method(self, name: str, where: str) -> None:
    if name not in self.methods and "." not in name:
      raise ValueError(f"{where} names '{name}'; config.methods has {', '.join(self.methods)}")

  def _check_budget(self, name: str, budget: str, text: str) -> None:
    K = int(budget) if budget.isdecimal() else 0
    N = self.methods.get(name, {}).get("model", {}).get("num_tokens")
    if K not in analysis.powers_of_two(N or 1 << K.bit_length()):
      raise ValueError(
        f"config.pairs holds '{text}'; behind the @ stands a power of two"
        + (f" up to {N}, or {N}, all tokens of {name}" if N else "")
      )


class Job(NamedTuple):
  """One method with one seed."""

  method: str
  seed: int
  run: train_config.Config
  directory: pathlib.Path

  @property
  def title(self) -> str:
    return f"{self.method}, seed {self.seed}"


def run(
  values: Mapping[str, Any],
  data: str | os.PathLike,
  out: str | os.PathLike,
  *,
  methods: Sequence[str] = (),
  seeds: Sequence[int] = (),
  suite: str = "",
  stages: Sequence[str] = STAGES,
) -> pathlib.Path:
  """Runs the stages that are not done yet.

  Args:
    values: of `Config`.
    data: an RLDS dataset; its path takes the place of the configs'.
    out: directory of all runs and of the report.
    methods: names of `config.methods`, all if empty. A module's dotted path is a method too: that
      tokenizer with its defaults, trained as the learned method that has the most steps.
    seeds: of learned methods, `config.seeds` if empty; fitted ones have none and run as seed 0.
      Where none of them is in `config.modelability_seeds` or `ceiling_seeds`, the first one is.
    suite: of the ceiling; by default the one that the dataset was collected in, if it says so.
    stages: which ones; "model" and "ceiling" need "train".

  Returns:
    the report's directory.

  Raises:
    ValueError, FileNotFoundError: what is asked for does not fit, or a directory holds another run.
  """
  config = config_lib.freeze(Config, values)
  for stage in stages:
    config_lib.choose(stage, STAGES, "stage")
  out = pathlib.Path(out)
  runs = training_runs(config, methods, str(data))
  some = next(iter(runs.values()))
  split = inputs.load(some.data, images=False)
  jobs = _jobs(runs, split, tuple(seeds) or config.seeds, out)
  suite = suite or _collected_in(pathlib.Path(data))
  if suite and "ceiling" in stages:
    env_lib.suite(suite)
    config_lib.between(config.ceiling.replan, 1, some.data.action_horizon, "config.ceiling.replan")
    env_lib.versions(suite)  # found out now that it is not installed, not behind hours
  modelled = _of_seeds(jobs, config.modelability_seeds)
  modelled = [job for job in modelled if job.method not in config.same_tokens]
  driven = _of_seeds(jobs, config.ceiling_seeds) if suite else []
  if not suite and "ceiling" in stages:
    print(f"{data} names no suite with a scripted expert: no ceiling; --suite names one")
  policy = dataclasses.replace(config.modelability, data=some.data)
  held = measure.held_out(split, config.windows, config.ceiling.replan)
  shared: dict[Any, Any] = {}  # the expert's own episodes, the same for all methods
  actions: dict[str, tuple[list[Job], Callable[[Job], None]]] = {
    "train": (jobs, lambda job: _train(job, held)),
    "model": (modelled, lambda job: _model(job, held, policy)),
    "ceiling": (driven, lambda job: _ceiling(job, suite, config.ceiling, shared)),
  }
  for stage in STAGES[:-1]:
    todo, act = actions[stage]
    for number, job in enumerate(todo if stage in stages else [], 1):
      print(f"\n== {stage} {number}/{len(todo)}: {job.title}", flush=True)
      act(job)
  if "report" in stages:
    print("\n== report", flush=True)
    # Of all methods of the config, and of those by a dotted path that are asked for.
    known = training_runs(config, (), str(data)) | {job.method: job.run for job in jobs}
    plans = {name: measure.plan(each) for name, each in known.items()}
    parts = {"tokenizer": jobs, "model": modelled, "ceiling": driven}
    wanted = {
      name: {part: [job.seed for job in each if job.method == name] for part, each in parts.items()}
      for name in runs
    }
    compare_report.write(
      out,
      wanted=wanted,
      known=tuple(config.methods),
      pairs=config.pairs,
      pictured=config.pictured,
      windows=held.windows,
      of=held.of,
      facts=_facts(config, data, split, suite) | {"plans": plans},
    )
  return out / "report"


def training_runs(
  config: Config, methods: Sequence[str], data: str
) -> dict[str, train_config.Config]:
  """Returns the runs of the methods; everything that can be checked without data is."""
  placed = train_config.data_values(config.data) | {"path": data}
  freeze = lambda name: _freeze(config.methods[name], placed, f"config.methods.{name}")
  runs = {}
  for name in methods or config.methods:
    if name in config.methods:
      runs[name] = freeze(name)
    elif "." in name:
      learned = max(map(freeze, config.methods), key=lambda each: each.steps)
      runs[name] = dataclasses.replace(learned, model={"name": name})
    else:
      near = difflib.get_close_matches(name, config.methods, n=1)
      hint = f"did you mean '{near[0]}'? " if near else ""
      known = ", ".join(config.methods)
      raise ValueError(
        f"there is no method '{name}'; {hint}known are {known}, and a tokenizer's dotted module "
        "path"
      )
  for name, each in runs.items():
    try:
      models.freeze_model(each)
    except ValueError as error:
      raise ValueError(f"method {name}: {error}") from error
  return runs


def _freeze(values: Mapping[str, Any], data: dict[str, Any], where: str) -> train_config.Config:
  try:
    run = train_config.freeze({**values, "data": data})
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error
  if run.kind != "tokenizer":
    raise ValueError(f"{where}.kind is '{run.kind}'; it must be a tokenizer's run")
  return run


def _jobs(
  runs: Mapping[str, train_config.Config],
  split: inputs.Split,
  seeds: Sequence[int],
  out: pathlib.Path,
) -> list[Job]:
  """Every method with every seed, method by method; a fitted one with none but 0."""
  jobs = []
  for name, each in runs.items():
    try:
      fitted = tokenizers.make(each.model, split.train.spec).fit is not None
    except ValueError as error:
      raise ValueError(f"method {name}: {error}") from error
    each = dataclasses.replace(each, steps=1) if fitted else each
    for seed in (0,) if fitted else seeds:
      job = dataclasses.replace(each, seed=seed)
      jobs.append(Job(name, seed, job, out / name / f"seed{seed}"))
  return jobs


def _of_seeds(jobs: Sequence[Job], seeds: Sequence[int]) -> list[Job]:
  """Returns the jobs of these seeds; of a method that has none of them, its first. () is none."""
  chosen = []
  for method in dict.fromkeys(job.method for job in jobs):
    own = [job for job in jobs if job.method == method]
    chosen += [job for job in own if job.seed in seeds] or own[:1]
  return chosen if seeds else []


def _collected_in(data: pathlib.Path) -> str:
  """Returns the suite that launch/collect.py made the dataset in, or ""."""
  path = data / "collection.json"
  return json.loads(path.read_text())["request"]["suite"] if path.exists() else ""


def _facts(
  config: Config, data: str | os.PathLike, split: inputs.Split, suite: str
) -> dict[str, Any]:
  """What a reader must know to read the figures."""
  count = lambda windows: {"windows": len(windows), "episodes": len(np.unique(windows.episode_W))}
  return {
    "data": os.fspath(data),
    "fingerprint": split.fingerprint,
    "train": count(split.train),
    "held_out": count(split.validation) | {"measured": min(config.windows, len(split.validation))},
    "action_horizon": split.train.spec.action_horizon,
    "action_dim": split.train.spec.action_dim,
    "suite": suite,
    "ceiling": dataclasses.asdict(config.ceiling),
    "modelability": measure.plan(config.modelability),
    "same_tokens": dict(config.same_tokens),
  }


def _train(job: Job, held: measure.HeldOut) -> None:
  """Trains or fits a tokenizer, and measures it."""
  workdir = job.directory / "tokenizer"
  with clock.of_run(workdir, job.run.steps):
    loop.train(job.run, workdir)
  trained = models.load(workdir)
  take = lambda: measure.tokenizer(trained, held.windows, held.units, held.executed)
  _measured(job, "tokenizer", {"model": models.digest(trained)} | held.of, take)


def _model(job: Job, held: measure.HeldOut, policy: train_config.Config) -> None:
  """Trains the small policy over a tokenizer's tokens, and measures it."""
  tokenizer, workdir = job.directory / "tokenizer", job.directory / "model"
  checkpoint.check_done(job.directory / "tokenizer", job.run.steps, "train")
  policy = dataclasses.replace(policy, tokenizer=str(tokenizer), seed=job.seed)
  with clock.of_run(workdir, policy.steps):
    loop.train(policy, workdir)
  trained = models.load(workdir)
  of = {"model": models.digest(trained), "policy": measure.plan(policy)} | held.of
  of["tokenizer"] = models.read_description(workdir)["tokenizer"]["digest"]
  take = lambda: measure.model(trained, held.windows, held.units)
  _measured(job, "model", of, take)


def _ceiling(job: Job, suite: str, plan: Ceiling, shared: dict[Any, Any]) -> None:
  """Runs the expert's own chunks, encoded and decoded, in the simulator."""
  checkpoint.check_done(job.directory / "tokenizer", job.run.steps, "train")
  tokenizer = models.load(job.directory / "tokenizer").tokenizer
  assert tokenizer is not None
  learned = tokenizer.fit is None
  each = trained_lib.evaluation(
    job.directory / "tokenizer",
    suite,
    num_tokens=compare_report.ceiling_budgets(tokenizer.budgets, learned, plan.num_tokens),
    replans=(plan.replan,),
    episodes=plan.episodes,
    max_steps=plan.max_steps,
    ceiling=True,
    out=job.directory / "ceiling",
    replace=True,
  )
  expert = ("expert", plan.replan, 0)
  if expert in shared:
    each.known.setdefault(expert, shared[expert])
  each.run()
  shared[expert] = each.known[expert]


def _measured(job: Job, name: str, of: dict[str, Any], take: Callable[[], Any]) -> None:
  """Writes what is measured to `name`.json, unless that is there, of the same model and windows."""
  path = job.directory / f"{name}.json"
  if path.exists() and json.loads(path.read_text())["of"] == of:
    print(f"{job.title}: {name} measured already", flush=True)
    return
  print(f"{job.title}: measuring the {name} on {of['windows']:,} held-out windows", flush=True)
  where = {"machine": measure.machine(), "versions": evaluation.versions("metaworld", "mujoco")}
  content = {"method": job.method, "seed": job.seed, "of": of} | where | take()
  files.write_text(path, json.dumps(content) + "\n")
