"""Small sizes, models, data and commands for tests, as plain functions."""

from importlib import metadata
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np

from oat_jax import batch as batch_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Heads, widths and vocabulary divide by 2, so that they shard.
MODEL = {"width": 32, "head_width": 16, "mlp_ratio": 2, "dropout": 0.0}
TOKENIZER = MODEL | {"encoder_layers": 1, "decoder_layers": 1, "patch": 2, "cumulative_weight": 0.0}
OBSERVATION = {"hidden": 32, "task_width": 4}
POLICY = MODEL | {"layers": 1, "observation": OBSERVATION}
REGRESSION = {"hidden": 32, "layers": 1, "observation": OBSERVATION}
POLICIES = {"autoregressive": POLICY, "diffusion": POLICY, "regression": REGRESSION}


def spec(**changes):
  sizes = {"observation_steps": 2, "action_horizon": 8, "action_dim": 3, "state_dim": 5}
  return batch_lib.BatchSpec(**(sizes | {"task_names": ("lift", "push")} | changes))


def simulated(B=3, **images):
  """The state of B episodes of random numbers, and images (height, width) by name."""
  from oat_jax.envs import vector

  rng = np.random.default_rng(0)
  observation = {
    "state": rng.normal(size=(B, 2, 5)).astype(np.float32),
    "proprioception": rng.normal(size=(B, 2, 4)).astype(np.float32),
    **{name: rng.integers(0, 256, (B, 2, *size, 3), np.uint8) for name, size in images.items()},
  }
  flags = [np.zeros(B, bool)] * 2
  return vector.VectorState(observation, np.ones((B, 2), bool), *flags, *[np.zeros(B, int)] * 2)


def statistics(dims, datasets=1, seed=0):
  """Statistics of uniform values, another range for every dimension and dataset."""
  from oat_jax.data import normalization

  rng = np.random.default_rng(seed)
  values = rng.uniform(-1, 1, (datasets, 200, dims)) * rng.uniform(0.5, 2, (datasets, 1, dims))
  return normalization.stack([normalization.compute(rows) for rows in values])


def tokenizer(batch_spec=None, **changes):
  from oat_jax import tokenizers

  batch_spec = batch_spec or spec()
  values = {"name": "oat"} | TOKENIZER | changes
  actions = statistics(batch_spec.action_dim, batch_spec.num_datasets)
  return tokenizers.make(values, batch_spec, actions)


def init(model, *args, seed=0):
  """Parameters whose tokens, before any training, depend on the actions."""
  import jax

  params = jax.jit(model.init)(jax.random.key(seed), *args)
  if "to_latent" in params["network"]:
    params["network"]["encoder"]["blocks_0"]["self_attention"]["w_o"] *= 20
    params["network"]["to_latent"]["w"] *= 3
  return params


def policy(batch_spec=None, tokenizer=None, name="autoregressive", **changes):
  from oat_jax import policies

  batch_spec = batch_spec or spec()
  values = {"name": name} | POLICIES[name] | changes
  both = {"state": batch_spec.state_dim, "actions": batch_spec.action_dim}
  both = {key: statistics(dims, batch_spec.num_datasets) for key, dims in both.items()}
  return policies.make(values, batch_spec, both, tokenizer)


def optimizer_config(**changes):
  from oat_jax.train import config

  return config.Optimizer(**({"learning_rate": 1e-2, "warmup_steps": 1} | changes))


def mesh(*shape, devices=None):
  """A mesh over the first devices only, so that any number of them will do."""
  import jax

  from oat_jax.parallel import mesh as mesh_lib

  shape = shape or (1, 1, 1)
  return mesh_lib.make_mesh(shape, (devices or jax.devices())[: int(np.prod(shape))])


def trainer(model, init_args=(), config=None, on=None, accumulate=1):
  """Returns run(batches, each=None) -> (state, [metrics of each step as floats]).

  Every run begins afresh, with the program compiled for the first one; `each(state)` is called
  behind every step. `run.lowered(batch)` is the text of the step's program.
  """
  import jax

  from oat_jax.parallel import mesh as mesh_lib
  from oat_jax.train import optimizer
  from oat_jax.train import state
  from oat_jax.train import step

  config, on = config or optimizer_config(), on or mesh()
  tx = optimizer.make(config, 30)
  make = lambda: model.init(jax.random.key(0), *init_args)
  first, shardings = state.create(make, model.axes(), tx, on)
  first = jax.device_get(first)
  update = getattr(model, "update", None)
  train_step = step.compile_train_step(model.loss, tx, config, 0, on, shardings, update, accumulate)

  def run(batches, each=None):
    at = jax.device_put(first, shardings)
    rows = []
    for batch in batches:
      at, metrics = train_step(at, jax.device_put(batch, mesh_lib.batch_sharding(on)))
      rows.append({name: float(value) for name, value in metrics.items()})
      if each is not None:
        each(at)
    return at, rows

  run.lowered = lambda batch: train_step.lower(first, batch).as_text()
  return run


def train_steps(model, init_args, batches, config=None, on=None):
  return trainer(model, init_args, config, on)(batches)


def to_bits(tree):
  """{path: bytes, shape and dtype} of a pytree's leaves: for comparisons bit for bit."""
  import jax

  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path): (np.asarray(x).tobytes(), np.shape(x), np.asarray(x).dtype)
    for path, x in leaves
  }


def episodes(lengths, action_dim=2, state_dim=3, tasks=None):
  """Episodes in memory; every number is different, so that no mistake can hide."""
  from oat_jax.data import rlds

  steps = sum(lengths)
  tasks = [0] * len(lengths) if tasks is None else tasks
  numbered = lambda dims: np.arange(steps * dims, dtype=np.float32).reshape(steps, dims) + 1
  return rlds.Episodes(
    actions_LA=numbered(action_dim),
    states_LS=-numbered(state_dim),
    starts_E=np.cumsum([0, *lengths], dtype=np.int64),
    tasks_L=np.repeat(np.array(tasks, np.int32), lengths),
    task_names=tuple(f"task {i}" for i in range(max(tasks) + 1)),
    action_names=tuple(f"action_{i}" for i in range(action_dim)),
    state_names=tuple(f"state_{i}" for i in range(state_dim)),
  )


def episode(task, seed, length=20, action_dim=3, bad=None):
  """Actions are smooth functions of the state, so that a model can learn them."""
  rng = np.random.default_rng(seed)
  phase = rng.uniform(0, 2 * np.pi, 5)
  steps = []
  for i in range(length):
    state = np.sin(0.3 * i + phase).astype(np.float32)
    action = np.cos(np.arange(action_dim) + 0.3 * i + phase[0]).astype(np.float32)
    if bad is not None and i == length - 1:
      action[0] = bad
    steps.append(
      {
        "observation": {"state": state},
        "action": action,
        "language_instruction": task,
        "is_first": i == 0,
        "is_last": i == length - 1,
        "is_terminal": False,
        "reward": np.float32(0),
        "discount": np.float32(1),
      }
    )
  return {"steps": steps, "episode_metadata": {"task": task}}


def write_dataset(out, episodes=4, tasks=("lift", "push"), action_dim=3, bad=None, seed=0):
  """Writes `episodes` episodes of each task; `bad` is one value to put into the last action."""
  from tensorflow_datasets import features as F

  from oat_jax.data import write

  state = {"state": F.Tensor(shape=(5,), dtype=np.float32)}
  features = write.rlds_features(state, action_dim, {"task": F.Text()})
  pairs = [(task, seed + 100 * t + e) for t, task in enumerate(tasks) for e in range(episodes)]
  content = [episode(task, s, action_dim=action_dim) for task, s in pairs]
  if bad is not None:
    content[-1] = episode(*pairs[-1], action_dim=action_dim, bad=bad)
  write.write(out, features, content, name="tiny")
  return out


def run_values(kind, dataset, tokenizer="", **changes):
  """Values of a run of a tokenizer, the token policy ("policy") or another policy, by its name.

  Changes of data, model and optimizer merge.
  """
  name = {"tokenizer": "oat", "policy": "autoregressive"}.get(kind, kind)
  model = {"name": name} | (TOKENIZER if kind == "tokenizer" else POLICIES[name])
  values = {
    "kind": "tokenizer" if kind == "tokenizer" else "policy",
    "steps": 6,
    "batch_size": 16,
    "log_every": 1,
    "evaluate_every": 3,
    "save_every": 3,
    "evaluate_windows": 20,
    "mesh": (1, 1, 1),
    "tokenizer": str(tokenizer),
  }
  data = {"path": str(dataset), "task": "episode_metadata/task", "action_horizon": 8}
  optimizer = {"learning_rate": 1e-2, "warmup_steps": 2, "weight_decay": 0.1}
  for name, part in (("data", data), ("model", model), ("optimizer", optimizer)):
    values[name] = part | changes.pop(name, {})
  return values | changes


def run_config(kind, dataset, **changes):
  from oat_jax.train import config

  return config.freeze(run_values(kind, dataset, **changes))


def get_config(name, *variant):
  """The values of a shipped config file."""
  return runpy.run_path(str(ROOT / "configs" / name))["get_config"](*variant)


def arguments(values, workdir):
  """The shipped config's command line that gives these values."""
  name = {"oat": "tokenizer_oat", "autoregressive": "policy_oat"}[values["model"]["name"]]
  flags = [f"--config={ROOT}/configs/{name}.py:mt4", f"--workdir={workdir}"]

  def visit(part, where):
    for key, value in part.items():
      if isinstance(value, dict):
        visit(value, f"{where}.{key}")
      elif key not in ("name", "kind") and not (key == "tokenizer" and name == "tokenizer_oat"):
        flags.append(f"--{where}.{key}={value}")

  visit(values, "config")
  return flags


def quick(xla_flags=""):
  """A process's variables where compilation counts more than the speed of what is compiled."""
  flags = xla_flags.split()
  if metadata.version("jaxlib").startswith("0.10."):  # XLA ends at a flag that it does not know
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
  return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": " ".join(flags)}


def environment(**changes):
  """A subprocess's variables: this checkout and these tests importable, one CPU device, `quick`."""
  path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
  return os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | quick() | changes


def start(file, *args, **changes):
  """Starts `python file args...`; the caller waits for it."""
  command = [sys.executable, str(ROOT / file), *map(str, args)]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment(**changes),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process, seconds=900):
  """Returns (exit code, stdout, stderr)."""
  try:
    out, err = process.communicate(timeout=seconds)
  finally:
    process.kill()
  return process.returncode, out, err


def command(file, *args, **changes):
  return finish(start(file, *args, **changes))


def metrics(workdir):
  """Rows of metrics.jsonl without the clock's values."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  clock = re.compile(r"train/(.*_per_s.*|mfu.*|.*memory_gb|input_wait|save_seconds)")
  return [{k: v for k, v in row.items() if not clock.fullmatch(k)} for row in rows]


def listing(path):
  """{relative path: content} of everything below a directory; None where there is none."""
  if not path.exists():
    return None
  return {
    str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")
  }
