r"""The comparison of policies at one budget: what launch/compare.py trains and evaluates.

  python launch/compare.py policies --suite=metaworld/mt4 --out=runs/policies

Variants (the part behind the colon; --observations chooses among the first two):
  state   MetaWorld MT4, 50 demonstrations a task, everything observed
  rgb     the same with one camera of 84x84 pixels and proprioception: OAT, regression, diffusion
  mini    state with a few steps and episodes, to see every stage run; learns nothing

Steps, batch and optimiser are one for all policies, and one for all tokenizers, because they are
said once; the transformers of the policies have one width, the regression MLP its own.
docs/policies.md has the figures: of state, 84 % of goals with OAT's 8 tokens, 8 steps of each chunk
executed; of rgb, 27 %. One seed of all methods takes 2.5 hours on two cores from states, most
of it for Bin and FAST.
"""

import pathlib
import runpy
from typing import Any

from ml_collections import ConfigDict


def _run(file: str) -> Any:
  """Returns the mt4 variant of a config file beside this one."""
  path = pathlib.Path(__file__).with_name(f"{file}.py")
  return runpy.run_path(str(path))["get_config"]("mt4")


def get_config(variant: str = "state") -> ConfigDict:
  if variant not in ("state", "rgb", "mini"):
    raise ValueError(f"unknown variant '{variant}'; there are state, rgb and mini")
  rgb = variant == "rgb"
  config: Any = ConfigDict()
  config.suite = "metaworld/mt4"
  config.seeds = (0,)
  config.collect = ConfigDict({"episodes": 50, "noise": 0.05, "seed": 0})
  config.collect.cameras = ("corner2",) if rgb else ()
  config.collect.image_size = 84

  # Of tokenizers, what configs/compare.py compares.
  config.tokenizer = _run("tokenizer_oat")
  config.tokenizer.steps = 3000
  config.tokenizer.optimizer.learning_rate = 4e-3
  oat = config.tokenizer.model
  config.tokenizers = ConfigDict()
  config.tokenizers.oat = oat.copy_and_resolve_references()
  config.tokenizers.oat_block = oat.copy_and_resolve_references()
  config.tokenizers.oat_block.blocks = (1, 1, 2, 4)
  config.tokenizers.oat_unordered = oat.copy_and_resolve_references()
  config.tokenizers.oat_unordered.update(nested_dropout="none", prefixes=1)
  for name in ("quest", "vq", "bin", "fast"):
    model = _run(f"tokenizer_{name}").model
    model.normalization = "min_max"
    config.tokenizers[name] = model

  config.policy = _run("policy_oat")
  config.policy.steps = 2000
  over = lambda tokenizer, model: ConfigDict({"tokenizer": tokenizer, "model": model})
  # What helps the token policies with few demonstrations; the others have no use for it.
  config.policy.model.update(geometry=True, blur=0.8, shortcut=512)
  config.methods = ConfigDict()
  for name in config.tokenizers:
    config.methods[name] = over(name, config.policy.model.copy_and_resolve_references())
  config.methods.diffusion = over("", _run("policy_diffusion").model)
  config.methods.regression = over("", _run("policy_regression").model)

  config.evaluate = ConfigDict()
  config.evaluate.episodes = 25
  config.evaluate.num_tokens = (1, 2, 4, 8)
  config.evaluate.mean_tokens = (2, 4)
  config.evaluate.replans = (8, 16)
  config.evaluate.max_steps = 300
  others = ("oat_unordered", "oat_block", "quest", "vq", "bin", "fast", "diffusion", "regression")
  config.pairs = (
    *((("oat@8"), name) for name in others),
    *(("oat@8", f"oat@{K}") for K in (1, 2, 4)),
  )

  config.data = config.policy.data
  if rgb:
    config.tokenizers = ConfigDict({"oat": config.tokenizers.oat})
    methods: Any = {name: config.methods[name] for name in ("oat", "diffusion", "regression")}
    config.methods = ConfigDict(methods)
    config.pairs = (("oat@8", "diffusion"), ("oat@8", "regression"), ("oat@8", "oat@1"))
    config.data.state = ("observation/proprioception",)
    config.data.cameras = ("corner2=observation/image_corner2",)
    config.policy.batch_size = 64
    config.policy.optimizer.image_rate = 0.2
    for method in methods.values():
      images = method.model.observation.images
      images.crop, images.jitter = 76, 0.1
      images.channels = (16, 32, 64, 128)  # a quarter of the published width, for the sake of CPUs
  for run in (config.tokenizer, config.policy):
    run.data = config.data  # one for all
    run.evaluate_every = run.save_every = 500
    run.evaluate_windows = 1024
  if variant == "mini":
    config.collect.episodes = 2
    config.evaluate.episodes, config.evaluate.max_steps = 1, 40
    config.evaluate.num_tokens, config.evaluate.mean_tokens = (1, 8), (4,)
    config.pairs = tuple(pair for pair in config.pairs if pair[1] not in ("oat@2", "oat@4"))
    for run in (config.tokenizer, config.policy):
      run.steps, run.batch_size, run.evaluate_windows = 10, 16, 64
      run.log_every = run.evaluate_every = run.save_every = 5
  return config
