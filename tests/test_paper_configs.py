"""The configs of the paper's benchmarks: tokens, sizes, data, and steps that compile, on fakes.

To trace and to compile ResNets for each camera takes long. At the published sizes parameters are
counted for all, and steps, of 2 windows, are traced for OAT on LIBERO. With the shallow networks
of `mini` the steps of all policies are traced, but RoboMimic's, which are LIBERO's without a task,
and one of each benchmark is compiled.
"""

import dataclasses
import functools

import foreign
import h5py
import jax
import numpy as np
import pytest
import tiny

from oat_jax import config as config_lib
from oat_jax import tokenizers
from oat_jax.data import convert
from oat_jax.envs import collect
from oat_jax.envs import env as env_lib
from oat_jax.scaling import plan
from oat_jax.study import compare_policies
from oat_jax.train import inputs
from oat_jax.train import models
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train import state as state_lib
from oat_jax.train import step as step_lib

# Benchmark -> variant, Bin's tokens a chunk, cameras, steps of an episode, actions.
BENCHMARKS = {
  "libero": ("published", 224, 2, 550, 7),
  "robomimic": ("lift", 224, 2, 400, 7),
  "metaworld": ("published", 128, 4, 200, 4),
  "robocasa": ("published", 384, 3, 500, 12),
}
METHODS = ("bin", "diffusion", "fast", "oat", "quest")
TOKENIZERS = ("bin", "fast", "oat", "quest")


@functools.cache
def config_of(benchmark, variant=""):
  values = tiny.get_config(f"paper_{benchmark}.py", variant or BENCHMARKS[benchmark][0])
  return config_lib.freeze(compare_policies.Config, values)


@functools.cache
def runs_of(benchmark, variant=""):
  """Returns ({name: run} of tokenizers, of policies), of 2 windows a step."""
  runs = compare_policies.training_runs(config_of(benchmark, variant), tiny.ROOT, METHODS)
  runs = [dataclasses.replace(run, batch_size=2) for run in runs]
  return dict(zip(TOKENIZERS, runs)), dict(zip(METHODS, runs[len(TOKENIZERS) :]))


@functools.cache
def tokenizer_of(benchmark, name, variant=""):
  """Returns (tokenizer, its parameters fitted to noise, or their shapes if they are learned)."""
  run = runs_of(benchmark, variant)[0][name]
  spec = plan.run_of(run, {}).spec
  made = tokenizers.make(run.model, spec, tiny.statistics(spec.action_dim))
  if made.fit is None:
    return made, jax.eval_shape(made.init, jax.random.key(0))
  shape = (8, spec.action_horizon, spec.action_dim)
  chunks_WCA = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
  return made, made.fit(chunks_WCA, np.ones(shape[:2], bool), np.zeros(8, np.int32))


@functools.cache
def policy_of(benchmark, name, variant=""):
  """Returns (run, policy, what its `init` takes behind the key, shapes of its parameters)."""
  config, (_, policies) = config_of(benchmark, variant), runs_of(benchmark, variant)
  run, bare = policies[name], plan.run_of(policies["diffusion"], {})
  spec, tokenizer = bare.spec, config.method(name).tokenizer
  statistics = {"state": spec.state_dim, "actions": spec.action_dim}
  statistics = {key: tiny.statistics(dims) for key, dims in statistics.items()}
  made, *args = tokenizer_of(benchmark, tokenizer, variant) if tokenizer else (None,)
  policy = models.build(run, spec, statistics, made)
  return run, policy, args, jax.eval_shape(policy.init, jax.random.key(0), *args)


def trace(run, model, args, batch):
  """Returns the traced train step; nothing is initialised."""
  tx, mesh = optimizer_lib.make(run.optimizer, run.steps), tiny.mesh()
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), args)
  init = lambda: model.init(jax.random.key(0), *zeros)
  state, shardings = state_lib.abstract(init, model.axes(), tx, mesh)
  update = getattr(model, "update", None)
  step = step_lib.compile_train_step(model.loss, tx, run.optimizer, 0, mesh, shardings, update)
  return step.trace(state, batch)


@functools.cache
def trace_policy(benchmark, name, variant):
  run, policy, args, params = policy_of(benchmark, name, variant)
  batch = plan.run_of(runs_of(benchmark, variant)[1]["diffusion"], {}).batch
  if policy.prepare is not None:
    batch = batch | jax.eval_shape(policy.prepare, params, batch)
  return trace(run, policy, args, batch)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_chunk_has_the_published_tokens(benchmark):
  made = {name: tokenizer_of(benchmark, name)[0] for name in TOKENIZERS}
  assert made["bin"].max_tokens == BENCHMARKS[benchmark][1] and made["bin"].vocab_size == 256
  assert made["oat"].max_tokens == made["quest"].max_tokens == 8
  assert made["oat"].vocab_size == made["quest"].vocab_size == 1000
  assert made["oat"].prefix_decodable and not made["quest"].prefix_decodable
  assert made["fast"].vocab_size == 1024 + 1 and made["fast"].pad_id == 1024
  for tokenizer in made.values():
    assert (tokenizer.spec.action_horizon, tokenizer.spec.observation_steps) == (32, 2)
    assert tokenizer.spec.action_dim == BENCHMARKS[benchmark][4]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_budget_and_evaluation_are_the_published_ones(benchmark):
  config = config_of(benchmark)
  evaluate = config.evaluate
  assert (evaluate.temperature, evaluate.top_k, evaluate.replans) == (1.0, 10, (16,))
  assert evaluate.num_tokens == (1, 2, 4, 8) and evaluate.max_steps == BENCHMARKS[benchmark][3]
  assert len(config.data.cameras) == BENCHMARKS[benchmark][2]
  runs = compare_policies.training_runs(config, tiny.ROOT, METHODS)
  for run in runs:
    o = run.optimizer
    assert (run.steps, run.batch_size, o.learning_rate) == (500_000, 256, 5e-5)
    assert (o.schedule, o.warmup_steps, o.weight_decay, o.ema_max) == ("constant", 100, 0, 0.9999)
  assert {run.optimizer.image_rate for run in runs[len(TOKENIZERS) :]} == {0.2}  # 1e-5


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_sizes_are_the_published_ones(benchmark):
  """5 million parameters in a policy, without the ResNet-18 of 11 million that each camera has."""
  for name in METHODS:
    _, policy, _, params = policy_of(benchmark, name)
    sizes = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params["network"]):
      part = next((str(key.key) for key in path if str(key.key).startswith("images_")), "policy")
      sizes[part] = sizes.get(part, 0) + x.size
    assert 4.5e6 < sizes.pop("policy") < 6e6, name
    assert len(sizes) == len(policy.spec.cameras) == BENCHMARKS[benchmark][2]
    assert all(11.1e6 < size < 11.3e6 for size in sizes.values())


def test_robomimic_s_tasks_differ_in_their_suite_only():
  lift = config_of("robomimic", "lift")
  for task in ("can", "square"):
    assert dataclasses.replace(config_of("robomimic", task), suite=lift.suite) == lift
    assert config_of("robomimic", task).suite == f"robosuite/{task}"


@pytest.mark.parametrize(("name", "variant"), [("oat", ""), ("quest", "mini")])
def test_the_step_of_a_tokenizer_is_traced(name, variant):
  whole = plan.run_of(runs_of("libero", variant)[0][name], {})
  trace(whole.config, whole.model, (), whole.batch)


COMPILED = {"libero": "oat", "robomimic": "diffusion", "metaworld": "quest", "robocasa": "fast"}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_step_of_each_benchmark_is_compiled(benchmark):
  program = trace_policy(benchmark, COMPILED[benchmark], "mini").lower().compile()
  assert program.memory_analysis().temp_size_in_bytes > 0


@pytest.mark.parametrize("benchmark", ("libero", "metaworld", "robocasa"))
def test_the_steps_of_all_policies_are_traced(benchmark):
  for name in METHODS:
    trace_policy(benchmark, name, "mini")


def test_a_step_of_the_published_size_is_traced():
  trace_policy("libero", "oat", "")


def libero_files(folder):
  for i in range(10):
    path = folder / f"{i}_demo.hdf5"
    foreign.libero(path, [34, 34], language=f"do {i}", seed=i)


def robomimic_files(folder, cameras=(), width=7, tasks=("Lift",)):
  """Files of the names that robomimic, and RoboCasa with it, documents."""
  for task in tasks:
    path = folder / f"{task}.hdf5"
    foreign.robomimic(path, [34, 34], env_name=task)
    with h5py.File(path, "a") as file:
      for demo in file["data"].values():
        del demo["actions"], demo["obs"]
        demo["actions"] = np.random.default_rng(0).uniform(-1, 1, (34, width))
        sizes = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
        if width == 12:  # on a base
          sizes |= {"base_pos": 3, "base_quat": 4, "base_to_eef_pos": 3, "base_to_eef_quat": 4}
        for name, size in sizes.items():
          demo[f"obs/robot0_{name}"] = np.random.default_rng(1).normal(size=(34, size))
        for camera in cameras:
          demo[f"obs/{camera}_image"] = foreign.images(0, 34, 128, 128)


FILES = {
  "libero": ("libero_hdf5", libero_files),
  "robomimic": (
    "robomimic_hdf5",
    functools.partial(robomimic_files, cameras=("agentview", "robot0_eye_in_hand")),
  ),
  "robocasa": (
    "robomimic_hdf5",
    functools.partial(
      robomimic_files,
      cameras=("robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand"),
      width=12,
      tasks=("CloseDrawer", "TurnOffSinkFaucet", "CoffeePressButton", "TurnOffMicrowave"),
    ),
  ),
}


@pytest.mark.parametrize("benchmark", FILES)
def test_the_data_are_those_that_convert_makes(benchmark, tmp_path):
  """What the configs read is there, and of the sizes that were compiled."""
  name, write = FILES[benchmark]
  (tmp_path / "files").mkdir()
  write(tmp_path / "files")
  convert.convert(name, tmp_path / "files", tmp_path / "data", progress=False)
  data = dataclasses.replace(config_of(benchmark).data, path=str(tmp_path / "data"))
  found = inputs.load(data).train.spec
  spec = plan.run_of(runs_of(benchmark)[1]["diffusion"], {}).spec
  for size in ("state_dim", "action_dim", "cameras", "num_tasks", "action_horizon"):
    assert getattr(found, size) == getattr(spec, size), size


def test_metaworld_s_data_are_those_that_are_collected():
  config = config_of("metaworld")
  suite = env_lib.suite(config.suite)
  features = collect.features(suite, config.collect.cameras, config.collect.image_size)
  observation = features["steps"]["observation"]
  for camera in config.data.cameras:
    assert observation[camera.partition("=observation/")[2]].shape == (128, 128, 3)
  spec = plan.run_of(runs_of("metaworld")[1]["diffusion"], {}).spec
  assert config.data.state == ("observation/proprioception",)
  sizes = suite.proprioception_dim, suite.action_dim, len(suite.tasks)
  assert sizes == (spec.state_dim, spec.action_dim, spec.num_tasks)


def test_the_command_of_a_benchmark():
  config = f"--config={tiny.ROOT}/configs/paper_metaworld.py"
  code, out, err = tiny.command("launch/compare.py", "policies", config, "--print_commands")
  assert code == 0, err
  lines = out.splitlines()
  assert all("--out=runs/paper_metaworld --suite=metaworld/mt4" in line for line in lines)
  # Demonstrations, tokenizers, policies, the report.
  assert len(lines) == 1 + len(TOKENIZERS) + len(METHODS) + 1


def test_demonstrations_that_are_files_must_be_given():
  config = f"--config={tiny.ROOT}/configs/paper_libero.py"
  train = "--stages=collect,tokenizers,policies"
  code, _, err = tiny.command("launch/compare.py", "policies", config, train)
  assert code == 1 and len(err.splitlines()) == 1
  assert "come from files" in err and "pass --data=DIR" in err
