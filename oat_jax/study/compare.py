"""The comparison of tokenizers: train or fit each at one budget, measure them alike, report.

A directory OUT/METHOD/seedS holds `tokenizer` and `model`, working directories; `ceiling`, an
evaluation's report; `tokenizer.json` and `model.json`, what was measured of the first two; and
`seconds.json`. What is done is reused, and several processes may work in one OUT on different
methods.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import difflib
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax import config as config_lib
from oat_jax import tokenizers
from oat_jax.data import normalization
from oat_jax.envs import env as env_lib
from oat_jax.evaluate import report
from oat_jax.study import compare_report
from oat_jax.study import evaluation
from oat_jax.study import measure
from oat_jax.train import checkpoint
from oat_jax.train import config as train_config
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import models

STAGES = ("train", "model", "ceiling", "report")


@dataclasses.dataclass(frozen=True)
class Ceiling:
  num_tokens: tuple[int, ...]  # K; a fitted tokenizer decodes all its tokens
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

  methods: Mapping[str, Any]  # name -> a tokenizer's run, as launch/train.py takes it
  modelability: train_config.Config  # the policy that is trained on each of them
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
    for pair in self.pairs:
      if len(pair) != 2:
        raise ValueError(f"config.pairs holds {pair}; each names two, e.g. ('oat@8', 'oat@4')")
    if not self.seeds:
      raise ValueError("config.seeds is empty; it needs at least one seed")


class Job(NamedTuple):
  """One method with one seed."""

  method: str
  seed: int
  run: train_config.Config
  directory: pathlib.Path

  @property
  def title(self) -> str:
    return f"{self.method}, seed {self.seed}"


class HeldOut(NamedTuple):
  """What all methods are measured on, and in which units."""

  windows: inputs.Subset
  units: measure.Units  # [min, max] of the training actions is [-1, 1]
  fingerprint: str  # of the dataset


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
      tokenizer with its defaults, at the first learned method's budget.
    seeds: of learned methods, `config.seeds` if empty; fitted ones have none and run as seed 0.
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
  held_out = inputs.evenly(split.validation, config.windows)
  modelled = [job for job in jobs if job.seed in config.modelability_seeds]
  driven = [job for job in jobs if suite and job.seed in config.ceiling_seeds]
  if not suite and "ceiling" in stages:
    print(f"{data} names no suite with a scripted expert: no ceiling; --suite names one")
  policy = dataclasses.replace(config.modelability, data=some.data)
  units = jax.device_put(
    normalization.parameters(split.statistics["actions"], "min_max", "actions")
  )
  held = HeldOut(held_out, units, split.fingerprint)
  shared: dict[Any, Any] = {}  # the expert's own episodes, the same for all methods
  actions: dict[str, tuple[list[Job], Callable[[Job], None]]] = {
    "train": (jobs, lambda job: _train(job, held, config.ceiling.replan)),
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
      windows=held_out,
      facts=_facts(config, data, split, suite),
    )
  return out / "report"


def training_runs(
  config: Config, methods: Sequence[str], data: str
) -> dict[str, train_config.Config]:
  """Returns the runs of the methods; everything that can be checked without data is."""
  runs = {}
  for name in methods or config.methods:
    if name in config.methods:
      runs[name] = _freeze(config.methods[name], f"config.methods.{name}")
    elif "." in name:
      every = [_freeze(each, f"config.methods.{key}") for key, each in config.methods.items()]
      learned = max(every, key=lambda each: each.steps)
      runs[name] = dataclasses.replace(learned, model={"name": name})
    else:
      near = difflib.get_close_matches(name, config.methods, n=1)
      hint = f"did you mean '{near[0]}'? " if near else ""
      known = ", ".join(config.methods)
      raise ValueError(
        f"there is no method '{name}'; {hint}known are {known}, and a tokenizer's dotted module "
        "path"
      )
  first, *others = runs
  for name in others:
    if runs[name].data != runs[first].data:
      raise ValueError(
        f"config.methods.{name}.data differs from that of {first}; a comparison needs the same "
        "windows"
      )
  for name, each in runs.items():
    try:
      models.freeze_model(each)
    except ValueError as error:
      raise ValueError(f"method {name}: {error}") from error
  place = lambda run: dataclasses.replace(run, data=dataclasses.replace(run.data, path=data))
  return {name: place(each) for name, each in runs.items()}


def _freeze(values: Mapping[str, Any], where: str) -> train_config.Config:
  try:
    run = train_config.freeze(values)
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
    "modelability": {
      "steps": config.modelability.steps,
      "batch_size": config.modelability.batch_size,
      "model": train_config.plain(config.modelability.model),
    },
    "machine": {
      "devices": ", ".join(sorted({device.device_kind for device in jax.devices()})),
      "cores": os.cpu_count(),
    },
    "versions": evaluation.versions(),
  }


def _train(job: Job, held: HeldOut, replan: int) -> None:
  """Trains or fits a tokenizer, and measures it."""
  workdir = job.directory / "tokenizer"
  with _clock(job.directory, workdir, job.run.steps):
    loop.train(job.run, workdir)
  executed, trained = min(replan, job.run.data.action_horizon), models.load(workdir)
  take = lambda: measure.tokenizer(trained, held.windows, held.units, executed)
  _measured(job, "tokenizer", _identity(trained, held) | {"executed": executed}, take)


def _model(job: Job, held: HeldOut, policy: train_config.Config) -> None:
  """Trains the small policy over a tokenizer's tokens, and measures it."""
  tokenizer, workdir = job.directory / "tokenizer", job.directory / "model"
  _check_trained(job)
  policy = dataclasses.replace(policy, tokenizer=str(tokenizer), seed=job.seed)
  with _clock(job.directory, workdir, policy.steps):
    loop.train(policy, workdir)
  trained = models.load(workdir)
  take = lambda: measure.model(trained, held.windows, held.units)
  _measured(job, "model", _identity(trained, held), take)


def _ceiling(job: Job, suite: str, plan: Ceiling, shared: dict[Any, Any]) -> None:
  """Runs the expert's own chunks, encoded and decoded, in the simulator."""
  _check_trained(job)
  tokenizer = models.load(job.directory / "tokenizer").tokenizer
  assert tokenizer is not None
  N = tokenizer.max_tokens
  budgets = [N] if tokenizer.fit is not None else [K for K in plan.num_tokens if K <= N] or [N]
  each = evaluation.Evaluation(
    job.directory / "tokenizer",
    suite,
    num_tokens=budgets,
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


def _check_trained(job: Job) -> None:
  step = max(checkpoint.steps(job.directory / "tokenizer"), default=0)
  if step != job.run.steps:
    raise ValueError(
      f"{job.directory / 'tokenizer'} is at step {step} of {job.run.steps}; run the stage 'train' "
      "to its end first"
    )


@contextlib.contextmanager
def _clock(directory: pathlib.Path, workdir: pathlib.Path, steps: int) -> Iterator[None]:
  """Adds the CPU seconds of a run, of all threads, to `seconds.json`, over interruptions."""
  since, saved = time.process_time(), checkpoint.steps(workdir)
  try:
    yield
  finally:
    if steps not in saved and workdir.exists():
      path = directory / "seconds.json"
      seconds = json.loads(path.read_text()) if path.exists() else {}
      before = seconds.get(workdir.name, 0.0) if saved else 0.0
      seconds[workdir.name] = round(before + time.process_time() - since, 1)
      report.write_text(path, json.dumps(seconds, indent=2) + "\n")


def _identity(trained: models.Trained, held: HeldOut) -> dict[str, Any]:
  """What makes two measurements the same."""
  digest = models.digest(trained)
  return {"model": digest, "data": held.fingerprint, "windows": len(held.windows)}


def _measured(job: Job, name: str, of: dict[str, Any], take: Callable[[], Any]) -> None:
  """Writes what is measured to `name`.json, unless that is there, of the same model and windows."""
  path = job.directory / f"{name}.json"
  if path.exists() and json.loads(path.read_text())["of"] == of:
    print(f"{job.title}: {name} measured already", flush=True)
    return
  print(f"{job.title}: measuring the {name} on {of['windows']:,} held-out windows", flush=True)
  content = {"method": job.method, "seed": job.seed, "of": of} | take()
  report.write_text(path, json.dumps(content) + "\n")
