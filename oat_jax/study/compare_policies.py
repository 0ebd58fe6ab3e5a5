"""The comparison of policies: all methods trained at one budget, evaluated on the same goals.

A directory OUT holds `data`, the demonstrations; `tokenizers/NAME/seedS` and `policies/NAME/seedS`,
working directories; `evaluations/NAME/seedS`, reports, those of refinement in `refinement` below;
the seconds of each run beside it; and `report`. What is done is reused, and several processes may
work in one OUT: see `commands`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import json
import os
import pathlib
import shlex
from typing import Any, NamedTuple

from oat_jax import config as config_lib
from oat_jax import tokenizers
from oat_jax.envs import collect
from oat_jax.envs import env as env_lib
from oat_jax.evaluate import evaluation
from oat_jax.policies import decoding
from oat_jax.policies.policy import Sampling
from oat_jax.study import clock
from oat_jax.study import policies_report
from oat_jax.study import trained as trained_lib
from oat_jax.train import checkpoint
from oat_jax.train import config as train_config
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import models

STAGES = ("collect", "tokenizers", "policies", "evaluate", "report")
SIMULATED = {"collect", "evaluate"}


@dataclasses.dataclass(frozen=True)
class Collect:
  episodes: int  # successes per task
  noise: float
  seed: int
  cameras: tuple[str, ...] = ()
  image_size: int = 84

  def __post_init__(self):
    config_lib.at_least(self.episodes, 2, "config.collect.episodes")


@dataclasses.dataclass(frozen=True)
class Evaluate:
  episodes: int  # per task and setting
  num_tokens: tuple[int, ...]  # K, where tokens are in order; else all tokens
  replans: tuple[int, ...]
  mean_tokens: tuple[int, ...]  # spent with `stop="refinement"`, where that is learned
  max_steps: int
  temperature: float = 0.0  # of tokens that are drawn; 0 takes the likeliest
  top_k: int = 0

  def __post_init__(self):
    for name in ("episodes", "max_steps"):
      config_lib.at_least(getattr(self, name), 1, f"config.evaluate.{name}")
    for name in ("num_tokens", "replans"):
      if not getattr(self, name):
        raise ValueError(f"config.evaluate.{name} is empty; it needs at least one value")
    for name in ("num_tokens", "mean_tokens"):
      for K in getattr(self, name):
        config_lib.at_least(K, 1, f"config.evaluate.{name}")
    decoding.check(Sampling(self.temperature, self.top_k))


@dataclasses.dataclass(frozen=True)
class Method:
  model: Mapping[str, Any]  # a policy's `config.model`
  tokenizer: str = ""  # a name in `config.tokenizers`


@dataclasses.dataclass(frozen=True)
class Config:
  """Values of configs/compare_policies.py.

  Steps, batch and optimiser are said once for all tokenizers and once for all policies, so the
  budget is one.
  """

  suite: str
  data: train_config.Data  # of all runs
  tokenizer: Mapping[str, Any]  # a tokenizer's run, whose `model` each of these takes the place of
  tokenizers: Mapping[str, Any]  # name -> `config.model`
  policy: Mapping[str, Any]
  methods: Mapping[str, Any]  # name -> the values of a `Method`
  evaluate: Evaluate
  seeds: tuple[int, ...]
  # Compared on the same goals: "METHOD" or "METHOD@K".
  pairs: tuple[tuple[str, ...], ...]
  collect: Collect | None = None  # of scripted experts; None where demonstrations come from files

  def __post_init__(self):
    for name in ("methods", "seeds"):
      if not getattr(self, name):
        raise ValueError(f"config.{name} is empty; it needs at least one")
    for R in self.evaluate.replans:
      config_lib.between(R, 1, self.data.action_horizon, "config.evaluate.replans")
    for name in self.methods:
      tokenizer = self.method(name).tokenizer
      if tokenizer:
        config_lib.choose(tokenizer, self.tokenizers, f"config.methods.{name}.tokenizer")
    for pair in self.pairs:
      if len(pair) != 2:
        raise ValueError(f"config.pairs holds {pair}; each names two, e.g. ('oat@8', 'oat@4')")
      for text in pair:
        name, at, K = text.partition("@")
        config_lib.choose(name, self.methods, "config.pairs")
        if at and not K.isdecimal():
          raise ValueError(f"config.pairs holds '{text}'; behind the @ stands a number of tokens")

  def method(self, name: str) -> Method:
    return config_lib.freeze(Method, self.methods[name], f"config.methods.{name}")


class Job(NamedTuple):
  """One run of a tokenizer or a policy."""

  name: str
  seed: int
  run: train_config.Config
  workdir: pathlib.Path


def run(
  values: Mapping[str, Any],
  out: str | os.PathLike,
  *,
  data: str | os.PathLike = "",
  methods: Sequence[str] = (),
  seeds: Sequence[int] = (),
  stages: Sequence[str] = STAGES,
) -> pathlib.Path:
  """Runs the stages that are not done yet.

  Args:
    values: of `Config`.
    out: directory of demonstrations, runs, evaluations and the report.
    data: an RLDS dataset of the suite, in place of OUT/data, which is collected.
    methods: names of `config.methods`; all if empty. Their tokenizers are trained for them.
    seeds: of training; `config.seeds` if empty.
    stages: which ones; each needs those before it.

  Returns:
    the report's directory.

  Raises:
    ValueError, FileNotFoundError: what is asked for does not fit, or a directory holds another run.
  """
  config = config_lib.freeze(Config, values)
  stages = [stage for stage in stages if stage != "collect"] if data else stages
  out, chosen = pathlib.Path(out), check(config, methods, stages)
  place = pathlib.Path(data) if data else out / "data"
  training_runs(config, place, chosen)
  if SIMULATED & set(stages):
    # Found out now that it is not installed, not behind hours.
    _simulator(env_lib.versions, config.suite)
  c = config.collect
  if "collect" in stages and c is not None:
    print("\n== collect", flush=True)
    how = dataclasses.asdict(c)
    collect.collect(config.suite, how.pop("episodes"), place, **how)
  of_tokenizers, of_policies = jobs(config, place, out, chosen, tuple(seeds) or config.seeds)
  actions: dict[str, tuple[list[Job], Callable[[Job], None]]] = {
    "tokenizers": (of_tokenizers, _train),
    "policies": (of_policies, _train),
    "evaluate": (of_policies, lambda job: _evaluate(job, config, out)),
  }
  for stage, (todo, act) in actions.items():
    for number, job in enumerate(todo if stage in stages else [], 1):
      title = f"{stage} {number}/{len(todo)}: {job.name}, seed {job.seed}"
      print(f"\n== {title}", flush=True)
      act(job)
  if "report" in stages:
    print("\n== report", flush=True)
    runs = {name: [job for job in of_policies if job.name == name] for name in chosen}
    place_of = lambda job: (job.seed, job.workdir, evaluations(job, out))
    policies_report.write(
      out,
      {name: [place_of(job) for job in of] for name, of in runs.items()},
      pairs=config.pairs,
      facts=_facts(config, place),
    )
  return out / "report"


def check(config: Config, methods: Sequence[str], stages: Sequence[str]) -> tuple[str, ...]:
  """Returns the methods asked for; ValueError for one, or a stage or suite, that there is not.

  Of the suite only stages that simulate need to know.
  """
  for stage in stages:
    config_lib.choose(stage, STAGES, "stage")
  if "collect" in stages and config.collect is None:
    raise ValueError(
      f"demonstrations of {config.suite} come from files, config.collect is not set; pass "
      "--data=DIR, an RLDS dataset: launch/convert.py makes one"
    )
  if SIMULATED & set(stages):
    _simulator(env_lib.suite, config.suite)
  for name in methods:
    if name not in config.methods:
      near = difflib.get_close_matches(name, config.methods, n=1)
      hint = f"did you mean '{near[0]}'? " if near else ""
      raise ValueError(f"there is no method '{name}'; {hint}known are {', '.join(config.methods)}")
  return tuple(methods) or tuple(config.methods)


def commands(
  values: Mapping[str, Any],
  common: Sequence[str],
  *,
  data: str | os.PathLike = "",
  methods: Sequence[str] = (),
  seeds: Sequence[int] = (),
  stages: Sequence[str] = STAGES,
) -> list[str]:
  """Returns shell commands that together do what `run` does, to be spread over machines.

  The first makes the demonstrations, unless there is `data`. Then come the tokenizers, which need
  them, then the policies, which need theirs; those of a group need nothing of each other. The last
  one, the report, needs all of them.

  Args:
    values: of `Config`.
    common: what every command begins with.
    data, methods, seeds, stages: as in `run`.
  """
  config = config_lib.freeze(Config, values)
  stages = [stage for stage in stages if stage != "collect"] if data else stages
  line = lambda *more: shlex.join([*common, *more])
  chosen, seeds = check(config, methods, stages), tuple(seeds) or config.seeds
  of_all = [f"--methods={','.join(chosen)}", f"--seeds={','.join(map(str, seeds))}"]
  # A tokenizer is trained for the first method that needs it; a fitted one has no seeds, so one
  # command makes it for all.
  first: dict[str, str] = {}
  for name in chosen:
    first.setdefault(config.method(name).tokenizer, name)
  every_seed = f"--seeds={','.join(map(str, seeds))}"
  lines = []
  if "collect" in stages:
    lines.append(line("--stages=collect"))
  if "tokenizers" in stages:
    lines += [
      line(f"--methods={name}", every_seed, "--stages=tokenizers")
      for tokenizer, name in first.items()
      if tokenizer
    ]
  acting = ",".join(stage for stage in ("policies", "evaluate") if stage in stages)
  if acting:
    lines += [
      line(f"--methods={name}", f"--seeds={seed}", f"--stages={acting}")
      for seed in seeds
      for name in chosen
    ]
  if "report" in stages:
    lines.append(line(*of_all, "--stages=report"))
  return lines


def training_runs(
  config: Config, data: pathlib.Path, methods: Sequence[str]
) -> list[train_config.Config]:
  """Returns the runs of the methods and of their tokenizers, without seeds and places.

  All that can be checked without data is.
  """
  needed = dict.fromkeys(config.method(name).tokenizer for name in methods)
  of_tokenizers = [_tokenizer_run(config, name, data) for name in needed if name]
  return [*of_tokenizers, *(_policy_run(config, name, data) for name in methods)]


def jobs(
  config: Config,
  data: pathlib.Path,
  out: pathlib.Path,
  methods: Sequence[str],
  seeds: Sequence[int],
) -> tuple[list[Job], list[Job]]:
  """Returns the runs of tokenizers and those of policies; a fitted tokenizer has seed 0 only."""
  frozen = {name: config.method(name) for name in methods}
  needed = dict.fromkeys(each.tokenizer for each in frozen.values() if each.tokenizer)
  of_tokenizers, of_policies, places = [], [], {}
  spec = inputs.load(_policy_run(config, methods[0], data).data, images=False).train.spec
  for name in needed:
    run = _tokenizer_run(config, name, data)
    tokenizer = tokenizers.make(run.model, spec)
    fitted = tokenizer.fit is not None
    if tokenizer.prefix_decodable:
      for K in (*config.evaluate.num_tokens, *config.evaluate.mean_tokens):
        config_lib.between(K, 1, tokenizer.max_tokens, f"config.evaluate's tokens of {name}")
    run = dataclasses.replace(run, steps=1) if fitted else run
    for seed in seeds:
      places[name, seed] = out / "tokenizers" / name / f"seed{0 if fitted else seed}"
    for seed in (0,) if fitted else seeds:
      job = dataclasses.replace(run, seed=seed)
      of_tokenizers.append(Job(name, seed, job, out / "tokenizers" / name / f"seed{seed}"))
  for name in methods:
    for seed in seeds:
      run = dataclasses.replace(_policy_run(config, name, data), seed=seed)
      if frozen[name].tokenizer:
        run = dataclasses.replace(run, tokenizer=str(places[frozen[name].tokenizer, seed]))
      of_policies.append(Job(name, seed, run, out / "policies" / name / f"seed{seed}"))
  return of_tokenizers, of_policies


def evaluations(job: Job, out: pathlib.Path) -> pathlib.Path:
  """Returns the directory of a policy's reports."""
  return out / "evaluations" / job.name / f"seed{job.seed}"


def _policy_run(config: Config, name: str, data: pathlib.Path) -> train_config.Config:
  where = f"config.methods.{name}"
  return _freeze(config, config.policy, config.method(name).model, data, "policy", where)


def _tokenizer_run(config: Config, name: str, data: pathlib.Path) -> train_config.Config:
  where, model = f"config.tokenizers.{name}", config.tokenizers[name]
  run = _freeze(config, config.tokenizer, model, data, "tokenizer", where)
  # A tokenizer is of actions alone, so it is the same whatever else a policy sees.
  return dataclasses.replace(run, data=dataclasses.replace(run.data, cameras=()))


def _freeze(
  config: Config,
  values: Mapping[str, Any],
  model: Mapping[str, Any],
  data: pathlib.Path,
  kind: str,
  where: str,
) -> train_config.Config:
  placed = train_config.data_values(config.data) | {"path": str(data)}
  try:
    run = train_config.freeze({**values, "model": model, "data": placed})
    models.freeze_model(run)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error
  if run.kind != kind:
    raise ValueError(f"config.{kind}.kind is '{run.kind}'; it must be '{kind}'")
  return run


def _simulator(look: Callable[[str], Any], suite: str) -> None:
  try:
    look(suite)
  except (ValueError, ImportError) as error:
    raise type(error)(f"{error}; or only train here: --stages=tokenizers,policies") from error


def _train(job: Job) -> None:
  if job.run.tokenizer:
    tokenizer = models.read_description(job.run.tokenizer)["config"]
    checkpoint.check_done(job.run.tokenizer, tokenizer["steps"], "tokenizers")
  with clock.of_run(job.workdir, job.run.steps):
    loop.train(job.run, job.workdir)


def _evaluate(job: Job, config: Config, out: pathlib.Path) -> None:
  """Evaluates fixed prefixes, and refinement where the policy has learned it."""
  checkpoint.check_done(job.workdir, job.run.steps, "policies")
  plan, target = config.evaluate, evaluations(job, out)
  settings: dict[str, Any] = {
    "replans": plan.replans,
    "episodes": plan.episodes,
    "max_steps": plan.max_steps,
    "replace": True,
  }
  trained, asked = models.load(job.workdir), dataclasses.asdict(plan)
  settings |= policies_report.sampling(trained, asked)._asdict()
  todo = policies_report.planned(trained, asked)
  for refinement, Ks in todo.items():
    more: dict[str, Any] = {"num_tokens": Ks, "out": target}
    if refinement:
      more |= {"stop": "refinement", "out": target / "refinement"}
    trained_lib.evaluation(job.workdir, config.suite, **settings, **more).run()


def _facts(config: Config, data: pathlib.Path) -> dict[str, Any]:
  """What a reader must know to read the figures."""
  collected = data / "collection.json"
  budget = lambda run: (
    {name: run[name] for name in ("steps", "batch_size")}
    | {"optimizer": train_config.plain(run["optimizer"])}
  )
  return {
    "suite": config.suite,
    "demonstrations": json.loads(collected.read_text())["request"] if collected.exists() else {},
    "observes": list(config.data.state)
    + [f"camera {name.partition('=')[0]}" for name in config.data.cameras],
    "action_horizon": config.data.action_horizon,
    "policy": budget(config.policy),
    "tokenizer": budget(config.tokenizer),
    "evaluate": dataclasses.asdict(config.evaluate),
    "versions": evaluation.versions(*env_lib.suite(config.suite).packages),
  }
