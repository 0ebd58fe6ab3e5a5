"""What a run of a sweep costs, before it is run: parameters, FLOPs, windows, and device-hours."""

from collections.abc import Callable, Mapping
import dataclasses
import json
import math
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.cost import chips
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.scaling import plan
from oat_jax.train import config as config_lib
from oat_jax.train import inputs
from oat_jax.train import metrics
from oat_jax.train import models
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train import provenance
from oat_jax.train import state as state_lib
from oat_jax.train import step as step_lib

RATE = "train/steps_per_s"


class Cost(NamedTuple):
  """Of one run: trained parameters, model FLOPs of a step, and training windows (0: not known).

  `dataset` is the fingerprint of its data, `tokenizer` the digest of a policy's; "" is not known.
  """

  parameters: int
  flops_per_step: float
  windows: int
  dataset: str = ""
  tokenizer: str = ""


class Costs:
  """Costs of runs, each model counted and each dataset read once."""

  def __init__(self):
    self._data: dict[str, tuple[config_lib.Plan, int, str]] = {}
    self._tokenizers: dict[str, str] = {}
    self._models: dict[str, tuple[int, float]] = {}

  def __call__(self, config: config_lib.Config) -> Cost:
    """Returns the cost of a run; without `config.data.path` its sizes are `config.plan`'s."""
    sizes, windows, dataset = self._read(config.data)
    parameters, flops = self._count(_with(config, sizes))
    return Cost(parameters, flops, windows, dataset, self._digest(config.tokenizer))

  def run(self, config: config_lib.Config) -> plan.Run:
    """Returns the run without its data, as launch/plan.py takes it."""
    return _run_of(_with(config, self._read(config.data)[0]))

  def _digest(self, tokenizer: str) -> str:
    if tokenizer and tokenizer not in self._tokenizers:
      self._tokenizers[tokenizer] = models.digest(models.load_tokenizer(tokenizer))
    return self._tokenizers.get(tokenizer, "")

  def _read(self, data: config_lib.Data) -> tuple[config_lib.Plan | None, int, str]:
    if not any(each.path for each in data.datasets().values()):
      return None, 0, ""
    key = json.dumps(config_lib.data_values(data), sort_keys=True)
    if key not in self._data:
      split = inputs.load(data, images=bool(data.cameras or data.text_encoder))
      spec = split.train.spec
      sizes = (spec.state_dim, spec.action_dim, max(1, len(spec.task_names)), spec.language_dim)
      self._data[key] = config_lib.Plan(*sizes), len(split.train), split.fingerprint
    return self._data[key]

  def _count(self, config: config_lib.Config) -> tuple[int, float]:
    """Returns (trained parameters, FLOPs of a step)."""
    values = config_lib.to_json(config)
    names = ("model", "kind", "tokenizer", "batch_size", "precompute", "plan")
    sizes = ("observation_steps", "action_horizon", "image_size", "cameras", "action_dim")
    key = json.dumps([[values[name] for name in names], [values["data"][name] for name in sizes]])
    if key not in self._models:
      run = _run_of(config)
      if getattr(run.model, "fit", None) is not None:
        self._models[key] = 0, 0.0
      else:
        params = jax.eval_shape(run.model.init, *run.init_args)
        self._models[key] = optimizer_lib.count(params), plan.model_flops(run)
    return self._models[key]


def _with(config: config_lib.Config, sizes: config_lib.Plan | None) -> config_lib.Config:
  return config if sizes is None else dataclasses.replace(config, plan=sizes)


def _run_of(config: config_lib.Config) -> plan.Run:
  tokenizer: Mapping[str, Any] = {}
  if config.kind == "policy" and config.model["name"] == "autoregressive":
    if not config.tokenizer:
      raise ValueError("config.tokenizer is not set; a policy over tokens needs a trained one")
    tokenizer = models.read_description(config.tokenizer)["config"]["model"]
  return plan.run_of(config, tokenizer)


def step_seconds_here(run: plan.Run, steps: int = 3) -> float:
  """Returns the device-seconds of a training step on this process's devices, on made-up data.

  Args:
    run: without its data.
    steps: timed ones; the median counts.
  """
  config, model = run.config, run.model
  mesh = mesh_lib.make_mesh(config.mesh)
  args: list[Any] = [jax.random.key(config.seed)]
  args += [jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), each) for each in run.init_args[1:]]
  optimizer = optimizer_lib.make(config.optimizer, max(config.steps, 2))
  state, shardings = state_lib.create(lambda: model.init(*args), model.axes(), optimizer, mesh)
  made = batch_lib.fake(run.spec, config.batch_size)
  zeros = lambda x: np.zeros(x.shape, x.dtype)
  batch = {name: made[name] if name in made else zeros(x) for name, x in run.batch.items()}
  batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
  step = step_lib.compile_train_step(
    model.loss, optimizer, config.optimizer, config.seed, mesh, shardings,
    getattr(model, "update", None), config.accumulate,
  )  # fmt: skip
  taken = []
  for _ in range(steps + 1):  # the first one compiles
    begin = time.perf_counter()
    state, values = step(state, batch)
    jax.block_until_ready(values)
    taken.append(time.perf_counter() - begin)
  return statistics.median(taken[1:]) * mesh.size


def step_seconds_there(run: plan.Run, where: chips.Topology) -> float:
  """Returns the chip-seconds of a step on chips that may not be here, at peak: `plan.make`."""
  compiled = plan.can_compile(where)
  flops = plan.model_flops(run)
  plans = [plan.make(run, where, mesh, compiled, flops) for mesh in plan.meshes(where)]
  best = plan.best(plans, where.chip)
  if best is None:
    errors = "; ".join(f"{','.join(map(str, each.mesh))}: {each.error}" for each in plans)
    raise ValueError(f"no mesh of {where.name} takes this run: {errors or 'none fits'}")
  return best.step_seconds * where.size


def step_seconds_measured(workdir: pathlib.Path) -> float:
  """Returns the median device-seconds of a step that a run has logged; nan where it has not."""
  try:
    devices = int(provenance.read(workdir)["devices"].split()[0])
    rates = [row[RATE] for row in metrics.read(workdir) if RATE in row]
  except (OSError, ValueError, TypeError):
    return math.nan
  return devices / statistics.median(rates) if rates else math.nan


def alike(config: config_lib.Config) -> str:
  """Returns what runs have in common whose steps take as long."""
  values = config_lib.to_json(config)
  data = {k: v for k, v in values["data"].items() if k not in ("path", "train_fraction")}
  return json.dumps([[values[k] for k in ("model", "batch_size", "mesh", "tokenizer")], data])


def hours(
  configs: Mapping[str, config_lib.Config],
  seconds_of: Callable[[config_lib.Config], float],
  known: Mapping[str, float],
) -> dict[str, float]:
  """Returns the device-hours of each run by name.

  Args:
    configs: of the runs.
    seconds_of: config -> device-seconds of a step, asked once for those `alike`.
    known: device-seconds of a step, by `alike`, that need not be asked for.
  """
  seconds = dict(known)
  for config in configs.values():
    if alike(config) not in seconds:
      seconds[alike(config)] = seconds_of(config)
  return {name: seconds[alike(config)] * config.steps / 3600 for name, config in configs.items()}
