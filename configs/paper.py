"""What the four benchmarks of the OAT paper (arXiv 2602.04215) have in common.

configs/paper_libero.py, paper_robomimic.py, paper_metaworld.py and paper_robocasa.py say the rest.

Sizes, optimisers and budgets are those of configs/tokenizer_oat.py:published and its siblings;
cameras, states, horizons and the number of rollouts those of the authors' public code, OAT's own
(LIBERO) and its `sim_env` (all four). Where that code says something else than ours:

  numbers    weights and their averages are float32 and layers compute in bfloat16, as there
  states     end effector and gripper, scaled to [-1, 1] by their minimum and maximum, as there;
             ours join the features of images in an MLP, theirs in one linear layer
  task       LIBERO's policy is told its task, by a number there and by a learned vector here; the
             others must see it
  batch      256 windows a step; there 256 on each of 4 GPUs, for 5,001 epochs or 48 hours
  warm-up    100 steps for all policies; there 200 for Diffusion Policy and FAST
  FAST       `strict`, as published: what is no chunk decodes as zeros
  data       a tenth of each task's demonstrations is held out, config.data.validation_fraction, and
             what robomimic's files mark as validation is, too
  checkpoint the last one; there the best of those evaluated, on the seeds that are reported
  rollouts   50 a task with one training seed, which is what the authors' command runs once; they
             report the mean of five such evaluations: --config.evaluate.episodes=250 has as many
"""

import pathlib
import runpy
from typing import Any

from ml_collections import ConfigDict


def _get_config(file: str, variant: str) -> Any:
  """Returns a variant of a config file beside this one."""
  path = pathlib.Path(__file__).with_name(f"{file}.py")
  return runpy.run_path(str(path))["get_config"](variant)


def get_config(
  suite: str,
  max_steps: int,
  task_width: int,
  mini: bool,
  data: dict[str, Any],
  plan: dict[str, int],
) -> ConfigDict:
  """Returns values for `launch/compare.py policies`.

  Args:
    suite: of simulation.
    max_steps: control steps of an evaluated episode.
    task_width: of the vector that tells a policy its task; 0 where it is not told.
    mini: a few steps and episodes, and shallow networks, to see every stage run.
    data: `state`, `cameras` and `task` of `config.data`.
    plan: `config.plan`: what the data will be like, for launch/plan.py and tests, which have none.
  """
  config = _get_config("compare_policies", "state")
  del config.collect
  config.suite, config.seeds = suite, (42,)
  config.tokenizer = _get_config("tokenizer_oat", "published")
  quest = _get_config("tokenizer_quest", "published").model
  for model in (config.tokenizer.model, quest):
    model.dtype = "bfloat16"
    if mini:
      model.encoder_layers = model.decoder_layers = 1
  same = config.tokenizers
  same.fast.decoding = "strict"
  config.tokenizers = ConfigDict({"bin": same.bin, "fast": same.fast, "quest": quest})
  config.tokenizers.oat = config.tokenizer.model.copy_and_resolve_references()

  config.policy = _get_config("policy_oat", "published")
  config.policy.model.refinement = False
  diffusion = _get_config("policy_diffusion", "published").model
  for model in (config.policy.model, diffusion):
    model.dtype = "bfloat16"
    model.observation.normalization = "min_max"
    model.observation.task_width = task_width
    if mini:
      model.layers, model.observation.images.channels = 1, (16,)
  config.methods = ConfigDict({"diffusion": {"tokenizer": "", "model": diffusion}})
  for name in config.tokenizers:
    model = config.policy.model.copy_and_resolve_references()
    config.methods[name] = ConfigDict({"tokenizer": name, "model": model})

  config.evaluate.episodes = 50
  config.evaluate.replans = (16,)
  config.evaluate.mean_tokens = ()
  config.evaluate.max_steps = max_steps
  config.evaluate.temperature = 1.0
  config.evaluate.top_k = 10
  others = ("diffusion", "bin", "fast", "quest", "oat@1", "oat@2", "oat@4")
  config.pairs = tuple(("oat@8", other) for other in others)

  config.data = config.policy.data
  config.data.update(data)
  config.data.image_size = (128, 128)
  for run in (config.tokenizer, config.policy):
    run.data = config.data  # one for all
    run.plan.update(plan)
    run.evaluate_every = run.save_every = 10_000
    if mini:
      run.steps, run.batch_size, run.evaluate_windows = 4, 8, 16
      run.log_every = run.evaluate_every = run.save_every = 2
  if mini:
    config.evaluate.episodes, config.evaluate.max_steps = 1, 32
  return config
