"""The training loop, one for tokenizers and policies.

Its order is fixed: restore; then per step data, step, log, evaluate, save. Between logs nothing
crosses from device to host. A signal (SIGTERM, Ctrl-C) ends the step at hand, saves, and leaves a
directory from which the same command goes on.
"""

from collections.abc import Callable, Iterator
import contextlib
import fcntl
import json
import os
import pathlib
import signal
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import numpy as np

from oat_jax.data import normalization
from oat_jax.data import pipeline
from oat_jax.data import rlds
from oat_jax.data import windows as windows_lib
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.train import checkpoint
from oat_jax.train import config as config_lib
from oat_jax.train import metrics as metrics_lib
from oat_jax.train import models
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train import state as state_lib
from oat_jax.train import step as step_lib

# May differ between the run that began a working directory and the one that goes on with it.
HARMLESS = (
  "log_every",
  "evaluate_every",
  "evaluate_windows",
  "save_every",
  "keep",
  "mesh",
  "data/threads",
)


class Interrupted(KeyboardInterrupt):
  """A signal ended the run early; its state is saved."""


class Split(NamedTuple):
  """The windows of a run, and the statistics of the training part."""

  train: windows_lib.Windows
  validation: windows_lib.Windows
  statistics: dict[str, dict[str, np.ndarray]]
  fingerprint: str


def load_data(data: config_lib.Data) -> Split:
  """Reads the dataset and cuts it, by episode and stratified by task, into training and validation
  windows.
  """
  if not data.path:
    raise ValueError("config.data.path is empty; pass --config.data.path=DIR, an RLDS dataset")
  episodes = rlds.read(data.path, data.split, rlds.Fields(data.action, data.state, data.task))
  train_E, validation_E = windows_lib.split_episodes(
    episodes.tasks_E, data.validation_fraction, data.split_seed
  )
  make = lambda ids_E: windows_lib.Windows(
    episodes, ids_E, data.observation_steps, data.action_horizon, data.action_dim
  )
  train = make(train_E)
  statistics = {name: normalization.stack([values]) for name, values in train.statistics().items()}
  if not len(validation_E):
    raise ValueError("config.data.validation_fraction is 0; training needs held-out episodes")
  return Split(train, make(validation_E), statistics, rlds.fingerprint(episodes))


class WithColumns(NamedTuple):
  """Windows with further arrays, one row a window, added to their batches."""

  windows: Any
  columns: dict[str, np.ndarray]

  def __len__(self):
    return len(self.windows)

  def __call__(self, indices_B):
    return self.windows(indices_B) | {name: rows[indices_B] for name, rows in self.columns.items()}


class Subset(NamedTuple):
  """At most so many of the windows, evenly spaced."""

  windows: Any
  indices: np.ndarray

  def __len__(self):
    return len(self.indices)

  def __call__(self, indices_B):
    return self.windows(self.indices[indices_B])


def evenly(windows: Any, limit: int) -> Subset:
  count = min(limit, len(windows))
  return Subset(windows, np.linspace(0, len(windows) - 1, count).round().astype(np.int64))


def prepared(
  prepare: Callable[..., Any], params: Any, windows: Any, batch_size: int
) -> WithColumns:
  """Computes what is computed once a window (tokens of the frozen tokenizer) and adds it to the
  batches.
  """
  rows: dict[str, list[np.ndarray]] = {}
  for batch, valid_B in pipeline.epoch(windows, batch_size):
    for name, values in prepare(params, batch).items():
      rows.setdefault(name, []).append(np.asarray(values)[valid_B])
  return WithColumns(windows, {name: np.concatenate(parts) for name, parts in rows.items()})


def evaluate(
  compiled: Callable[..., Any], params: Any, windows: Any, batch_size: int
) -> dict[str, float]:
  """Averages a model's `evaluate` over all windows.

  Floats are averaged over rows, integers (tokens) counted as distinct values; a column k of a (B,
  N) value is named `name_k`, counted from 1.
  """
  rows: dict[str, list[np.ndarray]] = {}
  for batch, valid_B in pipeline.epoch(windows, batch_size):
    for name, values in compiled(params, batch).items():
      rows.setdefault(name, []).append(np.asarray(values)[valid_B])
  out: dict[str, float] = {}
  for name, parts in rows.items():
    values = np.concatenate(parts)
    if values.dtype.kind in "iu":
      out[f"distinct_{name}"] = float(len(np.unique(values)))
    elif values.ndim == 1:
      out[name] = float(values.mean())
    else:
      out |= {f"{name}_{k + 1}": float(mean) for k, mean in enumerate(values.mean(0))}
  return out


def train(config: config_lib.Config, workdir: str | os.PathLike) -> pathlib.Path:
  """Trains, or goes on training, the run of a working directory.

  Returns:
    the working directory, with config.json, checkpoints, metrics.jsonl and TensorBoard events.

  Raises:
    ValueError, FileNotFoundError: the configuration, data or working directory do not fit; nothing
    has been written.
    Interrupted: a signal ended the run; its state is saved.
  """
  workdir = pathlib.Path(workdir)
  mesh = mesh_lib.make_mesh(config.mesh)
  split = load_data(config.data)
  spec = split.train.spec
  tokenizer = models.load_tokenizer(config.tokenizer) if config.tokenizer else None
  if tokenizer is not None:
    models.check_tokenizer(tokenizer, spec, split.statistics["actions"], config.tokenizer)
  model = models.build(
    config, spec, split.statistics, None if tokenizer is None else tokenizer.tokenizer
  )
  description = models.describe(config, spec, tokenizer)
  with _claimed(workdir, description):
    _run(config, workdir, mesh, split, model, tokenizer)
  return workdir


def _run(config, workdir, mesh, split, model, tokenizer) -> None:
  key = jax.random.key(config.seed)
  args = (key,) if tokenizer is None else (key, tokenizer.params)
  optimizer = optimizer_lib.make(config.optimizer, config.steps)
  state, shardings = state_lib.create(lambda: model.init(*args), model.axes(), optimizer, mesh)
  checkpointer = checkpoint.Checkpointer(workdir, config.keep)
  start = checkpointer.latest_step() or 0
  data = {"step": start, "seed": config.seed, "fingerprint": split.fingerprint}
  if start:
    state, saved = checkpointer.restore(start, state)
    if saved["fingerprint"] != split.fingerprint:
      raise ValueError(
        f"{workdir} was trained on a dataset with fingerprint {saved['fingerprint']}; "
        f"{config.data.path} now has {split.fingerprint}"
      )
    print(f"resuming {workdir} at step {start}", flush=True)
  elif config.init_from:
    state = _start_from(config.init_from, state)
  if start >= config.steps:
    print(f"{workdir} is done: {start} steps", flush=True)
    checkpointer.close()
    return

  train_windows: Any = split.train
  held_out: Any = evenly(split.validation, config.evaluate_windows)
  rows = min(512, len(held_out))
  prepare = getattr(model, "prepare", None)
  if prepare is not None:
    compiled_prepare, on_host = jax.jit(prepare), jax.device_get(state.params)
    train_windows = prepared(compiled_prepare, on_host, train_windows, 1024)
    held_out = prepared(compiled_prepare, on_host, held_out, 1024)
  batches = pipeline.make_pipeline(
    train_windows,
    batch_size=config.batch_size,
    seed=config.seed,
    start_step=start,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    threads=config.data.threads,
  )
  train_step = step_lib.compile_train_step(
    model.loss, optimizer, config.optimizer, config.seed, mesh, shardings
  )
  compiled_evaluate = jax.jit(model.evaluate)
  sharding = mesh_lib.batch_sharding(mesh)
  writer = metrics_lib.Writer(workdir, config.steps, start, active=jax.process_index() == 0)
  _describe_run(model, state, split, workdir)
  data_seconds, since = 0.0, time.monotonic()
  with _signals() as stopped:
    for step in range(start + 1, config.steps + 1):
      begin = time.monotonic()
      batch = _to_devices(next(batches), sharding)
      data_seconds += time.monotonic() - begin
      with jax.transfer_guard("disallow"):
        state, metrics = train_step(state, batch)
      stop = stopped(step)
      last = step == config.steps or stop
      if step % config.log_every == 0 or last:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        values["data_wait"] = data_seconds / max(now - since, 1e-9)
        data_seconds, since = 0.0, now
        if not np.isfinite(values["loss"]):
          raise FloatingPointError(
            f"the loss is {values['loss']} at step {step}; lower config.optimizer.learning_rate"
          )
        writer.log(step, values, "train", ("loss", "grad_norm", "token_accuracy"))
      if step % config.evaluate_every == 0 or step == config.steps:
        begin = time.monotonic()
        values = evaluate(compiled_evaluate, jax.device_get(state.ema_params), held_out, rows)
        writer.log(step, values, "validation", _shown(values))
        since += time.monotonic() - begin
      if step % config.save_every == 0 or last:
        begin = time.monotonic()
        checkpointer.save(step, state, data | {"step": step})
        since += time.monotonic() - begin
      if stop and step < config.steps:
        checkpointer.close()
        writer.close()
        raise Interrupted(
          f"stopped by a signal at step {step}; saved; the same command goes on from here"
        )
  checkpointer.close()
  writer.close()


def _to_devices(batch: Any, sharding: jax.sharding.NamedSharding) -> Any:
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _shown(values: dict[str, float]) -> tuple[str, ...]:
  """The few validation values that fit on a line: plain ones, and the first and last column of the
  others.
  """
  last = max(
    (int(name.rsplit("_", 1)[1]) for name in values if name.rsplit("_", 1)[-1].isdigit()), default=1
  )
  tails = (f"_{last}", "_1")
  return tuple(
    name for name in values if not name.rsplit("_", 1)[-1].isdigit() or name.endswith(tails)
  )


def _describe_run(model, state, split, workdir) -> None:
  trained = [x.size for group, x in zip(
      jax.tree.leaves(optimizer_lib.groups(state.params)), jax.tree.leaves(state.params)
  ) if group != "frozen"]  # fmt: skip
  print(
    f"{workdir}: {sum(trained):,} trained parameters; {len(split.train):,} windows to train on, "
    f"{len(split.validation):,} held out; {len(jax.devices())} device(s)",
    flush=True,
  )


def _start_from(workdir: str, state: state_lib.TrainState) -> state_lib.TrainState:
  """Takes over another run's trained parameters where path and shape agree, and lists those that do
  not.
  """
  _, other = checkpoint.load_params(workdir)
  known = {
    optimizer_lib.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(other["network"])
  }
  fresh = []

  def one(path, leaf):
    name = optimizer_lib.path_name(path)
    found = known.get(name)
    if found is None or found.shape != leaf.shape:
      was = "missing there" if found is None else f"{list(found.shape)} there"
      fresh.append(f"  {name} {list(leaf.shape)} ({was})")
      return leaf
    return jax.device_put(found.astype(leaf.dtype), leaf.sharding)

  network = jax.tree_util.tree_map_with_path(one, state.params["network"])
  total = len(jax.tree.leaves(network))
  print(
    f"{total - len(fresh)} of {total} arrays start from {workdir}; initialised afresh:", flush=True
  )
  print("\n".join(fresh) or "  none", flush=True)
  params = state.params | {"network": network}
  # Two copies: a donated step may not be given the same buffer twice.
  return state._replace(params=params, ema_params=jax.tree.map(lambda x: x.copy(), params))


@contextlib.contextmanager
def _claimed(workdir: pathlib.Path, description: dict[str, Any]) -> Iterator[None]:
  """Holds the working directory for one run, after checking that it is this run's."""
  path = workdir / "config.json"
  if path.exists():
    differences = _differences(models.read_description(workdir), description)
    if differences:
      raise ValueError(
        f"{workdir} holds another run; take another directory, or the same configuration:\n  "
        + "\n  ".join(differences)
      )
  elif workdir.exists() and any(workdir.iterdir()) and not (workdir / ".lock").exists():
    raise ValueError(f"{workdir} is not empty and holds no run; take an empty or a new directory")
  workdir.mkdir(parents=True, exist_ok=True)
  if jax.process_index():
    yield
    return
  with open(workdir / ".lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise ValueError(
        f"{workdir} is in use by another process; wait for it, or take another directory"
      ) from error
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(description, indent=2) + "\n")
    temporary.replace(path)
    yield


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
  """Lists the keys, harmless ones left out, in which two descriptions differ."""
  if isinstance(old, dict) and isinstance(new, dict):
    out = []
    for key in sorted(old.keys() | new.keys()):
      out += _differences(old.get(key), new.get(key), f"{where}/{key}" if where else key)
    return out
  if old == new or where.removeprefix("config/") in HARMLESS:
    return []
  return [f"{where.replace('/', '.')}: {old!r} there, {new!r} now"]


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], bool]]:
  """Yields stopped(step): whether a signal has come, agreed on by all processes."""
  received = []

  def handle(number, frame):
    del frame
    if received:  # a second signal does not wait
      raise KeyboardInterrupt
    received.append(number)

  previous = {}
  with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
    # Under jax.distributed SIGTERM belongs to its preemption service, which lets all processes stop
    # at the same step.
    numbers = [signal.SIGINT] + ([signal.SIGTERM] if jax.process_count() == 1 else [])
    previous = {number: signal.signal(number, handle) for number in numbers}

  def stopped(step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(received)

  try:
    yield stopped
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
