"""Quickstart: demonstrations -> ordered tokens -> a policy that acts, from states, in MetaWorld.

  python launch/quickstart.py --config=configs/quickstart.py:mt4 --out=runs/quickstart

Variants (the part behind the colon):
  mt4       44 minutes on one core, less on two; solved 87 of 100 unseen goals with 8 tokens
  mt4_long  more demonstrations, longer training; not run with this tokenizer's recipe
  mini      1 minute: a few episodes and steps, to see every stage run; learns nothing
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def _config(name: str, variant: str) -> ConfigDict:
  """Returns the config of a file beside this one."""
  return runpy.run_path(str(pathlib.Path(__file__).with_name(name)))["get_config"](variant)


def get_config(variant: str = "mt4") -> ConfigDict:
  config = ConfigDict()
  config.suite = "metaworld/mt4"
  config.collect = ConfigDict({"episodes": 400, "noise": 0.05, "seed": 0})
  config.tokenizer = _config("tokenizer_oat.py", "mt4")
  config.policy = _config("policy_oat.py", "mt4")
  config.regression = _config("policy_regression.py", "mt4")
  config.evaluate = ConfigDict()
  config.evaluate.episodes = 25
  config.evaluate.num_tokens = (1, 2, 4, 8)
  config.evaluate.replans = (8, 16)
  config.evaluate.headline_replan = 8
  config.evaluate.max_steps = 300
  if variant == "mt4_long":
    config.collect.episodes = 500
    config.tokenizer.steps = 8000
    config.policy.steps = 12_000
    config.regression.steps = 5000
    for run in (config.tokenizer, config.policy, config.regression):
      run.evaluate_every = run.save_every = 2000
  elif variant == "mini":
    config.collect.episodes = 2
    config.evaluate.episodes = 1
    config.evaluate.num_tokens = (1, 8)
    config.evaluate.max_steps = 40
    for run in (config.tokenizer, config.policy, config.regression):
      run.steps, run.batch_size, run.evaluate_windows = 20, 16, 64
      run.log_every = run.evaluate_every = run.save_every = 10
  elif variant != "mt4":
    raise ValueError(f"unknown variant '{variant}'; there are mt4, mt4_long and mini")
  return config
