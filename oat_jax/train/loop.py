"""The training loop, one for tokenizers and policies.

Its order is fixed: restore; then per step data, step, log, evaluate, save. Between logs nothing
crosses from device to host. A signal (SIGTERM, Ctrl-C) ends the step at hand, saves, and leaves a
directory from which the same command goes on.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.data import mixture
from oat_jax.data import pipeline
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.perception import observation as observation_lib
from oat_jax.tokenizers.tokenizer import Tokenizer
from oat_jax.train import agreement
from oat_jax.train import checkpoint
from oat_jax.train import config as config_lib
from oat_jax.train import evaluation
from oat_jax.train import failures as failures_lib
from oat_jax.train import init_from
from oat_jax.train import inputs
from oat_jax.train import metrics as metrics_lib
from oat_jax.train import models
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train import prepared
from oat_jax.train import provenance
from oat_jax.train import signals
from oat_jax.train import speed
from oat_jax.train import state as state_lib
from oat_jax.train import step as step_lib
from oat_jax.train import workdir as workdir_lib

# Values of a training step that fit on a line.
SHOWN = ("loss", "grad_norm", "token_accuracy", "mfu", "input_wait")
# A trace begins so many steps after a run did: the first ones are not like the others.
PROFILE_BEHIND = 10


def train(config: config_lib.Config, workdir: str | os.PathLike, profile: int = 0) -> pathlib.Path:
  """Trains, or goes on training, the run of a working directory.

  Args:
    config: of the run.
    workdir: its directory; made if it does not exist.
    profile: so many steps are traced, into `workdir`/profile.

  Returns:
    the working directory, with config.json, checkpoints, metrics.jsonl and TensorBoard events.

  Raises:
    ValueError, FileNotFoundError: the configuration, data or working directory do not fit; nothing
    has been written.
    Interrupted: a signal ended the run; its state is saved.
  """
  workdir = pathlib.Path(workdir)
  metrics_lib.check_wandb(config.wandb)
  mesh = mesh_lib.make_mesh(config.mesh)
  split = inputs.load(config.data, images=config.kind == "policy")
  spec = split.train.spec
  tokenizer = models.load_tokenizer(config.tokenizer) if config.tokenizer else None
  if tokenizer is not None:
    models.check_tokenizer(tokenizer, spec, split.statistics["actions"], config.tokenizer)
  model = models.build(
    config, spec, split.statistics, None if tokenizer is None else tokenizer.tokenizer
  )
  if config.batch_size > len(split.train):
    raise ValueError(
      f"config.batch_size is {config.batch_size}, but there are only {len(split.train)} windows to "
      "train on"
    )
  step_lib.check(getattr(model, "update", None), config.accumulate)
  mesh_lib.process_rows(mesh, config.batch_size)
  mesh_lib.check_parts(mesh, config.batch_size, config.accumulate)
  batch_lib.check(split.train(np.arange(min(8, len(split.train)))), spec)
  description = models.describe(config, spec, tokenizer, split.fingerprint)
  sizes = [list(split.train.sizes), list(split.weights or ())]
  agreement.check(description | {"windows": sizes})
  fitted = isinstance(model, Tokenizer) and model.fit is not None
  optimizer: Any = None
  state: Any = None
  shardings: Any = None
  taken = ""
  if fitted:
    _check_fit(config)
  else:
    key = jax.random.key(config.seed)
    args = (key,) if tokenizer is None else (key, tokenizer.params)
    optimizer = optimizer_lib.make(config.optimizer, config.steps)
    state, shardings = state_lib.create(lambda: model.init(*args), model.axes(), optimizer, mesh)
    evaluation.check_name(config.keep_best, model, state.params, split.train(np.arange(1)))
    fresh = not checkpoint.steps(workdir)
    observation = getattr(models.freeze_model(config), "observation", None)
    if fresh and isinstance(observation, observation_lib.Config):
      weights = observation_lib.pretrained(observation, spec)
      state = init_from.place(state, weights, "network/observe")
    if fresh and config.init_from:
      state, taken = init_from.start_from(config.init_from, state, model.axes(), description)
    if fresh and split.language_NE is not None:  # of these tasks, whatever init_from's are
      table = {observation_lib.LANGUAGE: split.language_NE}
      state = init_from.place(state, table, "network/observe")
  # All that can be wrong with the configuration has been found by now; only now files are written.
  with workdir_lib.claimed(workdir, description):
    agreement.check_shared(workdir)
    if taken:
      _say(taken.rstrip("\n"))
    if split.skipped and jax.process_index() == 0:
      (workdir / "skipped.json").write_text(json.dumps(split.skipped, indent=2) + "\n")
    digest = "" if tokenizer is None else models.digest(tokenizer)
    prepares = digest and f"{digest} {getattr(model, 'refines', False)}"
    facts = _facts(config, split, model if tokenizer is None else tokenizer.tokenizer, digest)
    run = _Run(config, workdir, mesh, split, model, optimizer, shardings, prepares, facts, profile)
    if fitted:
      _fit(run)
    else:
      run.begin(state)
  return workdir


def _facts(
  config: config_lib.Config, split: inputs.Split, tokenizer: Any, digest: str
) -> dict[str, Any]:
  """What `provenance.json` says of a run before it is compiled."""
  held_out = inputs.evenly(split.validation, config.evaluate_windows)
  of = (held_out, split.statistics["actions"], str(config.model.get("normalization", "")), digest)
  codes = getattr(tokenizer, "vocab_size", 1)  # one, of a policy without tokens
  return {
    "kind": config.kind,
    "evaluation_set": provenance.evaluation_set(*of),
    "windows": len(split.train),
    "episodes": len(np.unique(split.train.episode_W)),
    "bits_per_token": math.log2(codes),
  }


def _check_fit(config: config_lib.Config) -> None:
  """Raises ValueError for settings that a fitted tokenizer does not have."""
  name = config.model["name"]
  if config.steps != 1:
    raise ValueError(
      f"config.steps is {config.steps}; tokenizer '{name}' is fitted, not trained: set it to 1"
    )
  if config.init_from:
    raise ValueError(f"config.init_from is set, but tokenizer '{name}' is fitted, not trained")


class _Run(NamedTuple):
  """What a run is made of, apart from its state."""

  config: config_lib.Config
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  split: inputs.Split
  model: Any
  optimizer: Any  # None for a tokenizer that is fitted
  shardings: Any
  prepares: str  # what the model's `prepare` computes with
  facts: dict[str, Any]  # for `provenance.json`
  profile: int

  def begin(self, state: state_lib.TrainState) -> None:
    """Restores the newest checkpoint, if there is one, and trains to the end."""
    start = checkpoint.newest_readable(self.workdir)
    with contextlib.closing(self.checkpointer()) as saved:
      if start:
        state, data = saved.restore(start, state)
        if data != self.data(start):
          raise ValueError(
            f"{self.workdir}: checkpoint {start} continues {data}; this run is {self.data(start)}"
          )
        _say(f"resuming {self.workdir} at step {start}")
      if start >= self.config.steps:
        _say(f"{self.workdir} is done: {start} steps")
        return
      writing = jax.process_index() == 0
      writer = metrics_lib.Writer(
        self.workdir,
        self.config.steps,
        start,
        writing,
        self.config.wandb,
        config_lib.to_json(self.config),
      )
      with contextlib.closing(writer):
        _steps(self, state, start, saved, writer)
      self.check_written(saved)

  def check_written(self, saved: checkpoint.Checkpointer) -> None:
    """Raises OSError unless the last checkpoint is whole."""
    if not saved.settle():
      raise OSError(
        f"{self.workdir}: the last checkpoint is not written; make room, and the same command "
        f"goes on from step {max(checkpoint.steps(self.workdir), default=0)}"
      )

  def describe(self, parameters: int, flops: float) -> None:
    """Writes `provenance.json`: with the trained parameters, and FLOPs of a whole step."""
    if jax.process_index() == 0:
      more = {"parameters": parameters, "flops_per_step": flops}
      provenance.write(self.workdir, self.facts | more)

  def checkpointer(self) -> checkpoint.Checkpointer:
    config = self.config
    return checkpoint.Checkpointer(self.workdir, config.keep, config.keep_every, config.keep_best)

  def data(self, step: int) -> dict[str, Any]:
    """Returns what a checkpoint says of the data: where the stream of batches goes on."""
    return {"step": step, "seed": self.config.seed, "fingerprint": self.split.fingerprint}


def _fit(run: _Run) -> None:
  """Fits a tokenizer to training windows, unless that is done: a run of one step."""
  config, model = run.config, run.model
  with contextlib.closing(checkpoint.Checkpointer(run.workdir, config.keep)) as saved:
    if saved.latest_step():
      _say(f"{run.workdir} is done: fitted")
      return
    run.describe(0, 0.0)
    chosen = inputs.evenly(run.split.train, config.fit_windows)
    _say(f"{run.workdir}: fitting to {len(chosen):,} windows")
    chunks = chosen(np.arange(len(chosen)))
    params = model.fit(chunks["actions"], chunks["action_mask"], chunks["dataset"])
    held_out = inputs.evenly(run.split.validation, config.evaluate_windows)
    rows = min(512, len(held_out))
    values = evaluation.evaluate(jax.jit(model.evaluate), params, held_out, rows)
    writer = metrics_lib.Writer(run.workdir, 1, 0, active=jax.process_index() == 0)
    with contextlib.closing(writer):
      writer.log(1, values, "validation", evaluation.shown(values))
    placed = jax.device_put((np.int32(1), params), mesh_lib.replicated(run.mesh))
    step, params = placed
    none = jax.device_put(np.int32(0), mesh_lib.replicated(run.mesh))
    saved.save(1, state_lib.TrainState(step, none, params, params, {}), run.data(1))
    run.check_written(saved)


def _steps(
  run: _Run,
  state: state_lib.TrainState,
  start: int,
  checkpointer: checkpoint.Checkpointer,
  writer: metrics_lib.Writer,
) -> None:
  """The steps behind `start`, to the run's end or a signal."""
  config, mesh, model = run.config, run.mesh, run.model
  train_windows, held_out = _windows(run, state.params)
  rows_R = mesh_lib.process_rows(mesh, config.batch_size)

  def batches_from(step):
    return pipeline.make_pipeline(
      train_windows,
      batch_size=config.batch_size,
      order=mixture.make_order(run.split.train.sizes, run.split.weights, config.seed),
      start_step=step,
      rows=rows_R,
      threads=config.data.threads,
      workers=config.data.workers,
    )

  batches = batches_from(start)
  to_devices = lambda batch: mesh_lib.global_batch(batch, rows_R, mesh, config.batch_size)
  first_batch = next(batches)
  batches = itertools.chain([first_batch], batches)
  jitted = step_lib.compile_train_step(
    model.loss,
    run.optimizer,
    config.optimizer,
    config.seed,
    mesh,
    run.shardings,
    getattr(model, "update", None),
    config.accumulate,
  )
  compiled_evaluate = step_lib.compile_evaluate(model.evaluate, mesh, run.shardings.ema_params)
  parameters = optimizer_lib.count(state.params)
  _say(
    f"{run.workdir}: {parameters:,} trained parameters; {len(run.split.train):,} windows to train "
    f"on, {len(run.split.validation):,} held out; {len(jax.devices())} device(s)"
  )
  metrics: dict[str, Any] = {}
  none = jax.device_put(np.int32(0), mesh_lib.replicated(mesh))

  def save_failed(step):
    checkpointer.settle()
    if step not in checkpoint.steps(run.workdir):
      # With all failures before it again, for the run that goes on from there.
      checkpointer.save(step, state._replace(failures=none), run.data(step))

  def check_failures(failures):
    failures_lib.check(
      int(failures),
      config.optimizer.max_failures,
      run.workdir,
      state,
      lambda step: next(batches_from(step - 1)),
      save_failed,
    )

  traced = max(start + 1, min(start + PROFILE_BEHIND, config.steps - run.profile + 1))
  profiler = speed.Profiler(run.workdir / "profile", traced, min(run.profile, config.steps - start))
  # Of the last log: seconds spent on data and on saving since then, when it was (later by what
  # evaluating and saving took), and at which step.
  data_seconds, save_seconds, logged = 0.0, 0.0, start
  with signals.watched() as stopped, contextlib.closing(profiler):
    step_cost = speed.compile_step(
      jitted, model, state, to_devices(first_batch), mesh.size, config.batch_size
    )
    run.describe(parameters, step_cost.model_flops * mesh.size)
    since = time.monotonic()
    for step in range(start + 1, config.steps + 1):
      profiler.before(step)
      begin = time.monotonic()
      batch = to_devices(next(batches))
      # Steps run behind the host: only data that comes after the step before it is done keeps the
      # devices waiting.
      if metrics and metrics["loss"].is_ready():
        data_seconds += time.monotonic() - begin
      with jax.transfer_guard("disallow"):
        state, metrics = step_cost.run(state, batch)
      profiler.after(step, metrics)
      stopping = stopped(step)
      last = step == config.steps or stopping
      if step % config.log_every == 0 or last:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        seconds = max(now - since, 1e-9)
        values |= step_cost.values((step - logged) / seconds)
        values |= {"input_wait": data_seconds / seconds, "save_seconds": save_seconds}
        check_failures(values["failures"])
        writer.log(step, values, "train", SHOWN, rate=values["steps_per_s"])
        data_seconds, save_seconds, since, logged = 0.0, 0.0, now, step
      evaluating = step % config.evaluate_every == 0 or step == config.steps
      saving = step % config.save_every == 0 or last
      if evaluating or saving:
        jax.block_until_ready(metrics)  # the steps under way are no part of what follows
      begin = time.monotonic()
      if evaluating:
        rows, params = config.batch_size, state.ema_params
        values = evaluation.evaluate(compiled_evaluate, params, held_out, rows, mesh)
        writer.log(step, values, "validation", evaluation.shown(values))
      if saving:
        check_failures(jax.device_get(metrics["failures"]))
        measured, saved_at = values if evaluating else None, time.monotonic()
        checkpointer.save(step, state, run.data(step), measured)
        save_seconds += time.monotonic() - saved_at
      since += time.monotonic() - begin
      if stopping and step < config.steps:
        raise signals.Interrupted(
          f"stopped by a signal at step {step}; saved; the same command goes on from here"
          if checkpointer.settle()
          else f"stopped by a signal at step {step}, which could not be saved"
        )
    if jax.process_count() == 1 and stopped(config.steps):
      raise signals.Interrupted(f"stopped by a signal at the last step; {run.workdir} is whole")


def _windows(run: _Run, params: Any) -> tuple[Any, Any]:
  """Returns training and held-out windows, with what the model computes once for each of them."""
  train: Any = run.split.train
  held_out: Any = inputs.evenly(run.split.validation, run.config.evaluate_windows)
  prepare = getattr(run.model, "prepare", None)
  if prepare is None or not run.config.precompute:
    return train, held_out
  # What is trained is not asked for; the rest lies whole on every device: here, on the first.
  frozen = {name: part for name, part in params.items() if name != "network"}
  own = functools.cache(lambda: jax.device_put(jax.device_get(frozen)))
  compiled, cache = jax.jit(prepare), run.config.data.cache
  add = lambda windows: prepared.prepared(compiled, own, windows, of=run.prepares, cache=cache)
  return add(train), add(held_out)


def _say(text: str) -> None:
  """Prints a line, once for all processes."""
  if jax.process_index() == 0:
    metrics_lib.say(text)
