r"""The comparison of tokenizers at one budget: what launch/compare.py trains, fits and measures.

  python launch/compare.py tokenizers --config=configs/compare.py:mt4 --data=DIR --out=runs/compare

Variants (the part behind the colon):
  mt4     MetaWorld MT4 demonstrations, chunk 32; learned tokenizers 1000 steps at batch 128
  bridge  BridgeData V2's features, chunk 8; on 25 episodes of 10 steps a check that all of it runs
  mini    mt4 with a few steps and windows, to see every stage run; learns nothing

`config.data` is the data of all runs, e.g. --config.data.action_horizon=16. A learned run of mt4
takes 185 CPU seconds (OAT), 120 (QueST) or 35 (VQ) on a core of an AMD EPYC of 2021; all of the
comparison takes about an hour and a half on two of them.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def _get_config(file: str):
  """Returns the function of that name of a config file beside this one."""
  return runpy.run_path(str(pathlib.Path(__file__).with_name(f"{file}.py")))["get_config"]


def _run(file: str, **model) -> ConfigDict:
  """Returns the mt4 variant of a config file, with changes of its model."""
  config = _get_config(file)("mt4")
  config.model.update(model)
  return config


def get_config(variant: str = "mt4") -> ConfigDict:
  if variant not in ("mt4", "bridge", "mini"):
    raise ValueError(f"unknown variant '{variant}'; there are mt4, bridge and mini")
  config = ConfigDict()
  config.seeds = (0, 1, 2)
  config.windows = 4096

  # Of the learned ones the plain squared error is compared, so that is what they are trained for:
  # `cumulative_weight` trades some of it for less drift.
  plain = {"cumulative_weight": 0.0, "cumulative_dims": ()}
  oat = lambda **model: _run("tokenizer_oat", **plain, **model)
  quest = lambda **model: _run("tokenizer_quest", **plain, **model)
  bins = lambda **model: _run("tokenizer_bin", normalization="min_max", **model)
  fast = lambda **model: _run("tokenizer_fast", normalization="min_max", **model)
  config.methods = ConfigDict()
  config.methods.oat = oat()
  config.methods.oat_block = oat(blocks=(1, 1, 2, 4))
  # Without ordering: always all tokens; and all subsets alike, so that a mask is nothing new.
  config.methods.oat_unordered = oat(nested_dropout="none", prefixes=1)
  config.methods.oat_random_subsets = oat(nested_dropout="random_subsets")
  config.methods.quest = quest()
  for N in (1, 2, 4):
    config.methods[f"quest_{N}"] = quest(num_tokens=N)
  config.methods.vq = _run("tokenizer_vq", **plain)
  config.methods.bin = bins()
  config.methods.bin_quantile = bins(spacing="quantile")
  config.methods.fast = fast()
  config.methods.fast_strict = fast(decoding="strict")
  config.same_tokens = ConfigDict({"fast_strict": "fast"})

  # A small policy, the same over all of them: how well can the tokens be told?
  config.modelability = _run("policy_oat", width=64, head_width=32, layers=2)
  config.modelability_seeds = (0,)

  config.ceiling = ConfigDict()
  config.ceiling.num_tokens = (1, 2, 4, 8)
  config.ceiling.replan = 8
  config.ceiling.episodes = 10
  config.ceiling.max_steps = 300
  config.ceiling_seeds = (0,)

  config.pairs = (
    ("oat@8", "oat@4"),
    ("oat@8", "quest|vq|oat_unordered"),
    *((f"oat@{N}", f"quest_{N}") for N in (1, 2, 4)),
    *((f"oat_unordered@{K}", f"oat@{K}") for K in (1, 2, 4)),
    *((f"oat_random_subsets@{K}", f"oat@{K}") for K in (1, 2, 4)),
  )
  config.pictured = ("oat", "oat_random_subsets", "oat_unordered")

  steps, batch_size = {"mt4": (1000, 128), "bridge": (200, 64), "mini": (10, 16)}[variant]
  runs = [*config.methods.values(), config.modelability]
  for run in runs[:-1]:
    run.batch_size = batch_size
    if run.steps > 1:  # those that are fitted have one
      run.steps = steps
      run.optimizer.learning_rate = 4e-3  # in so few steps better than 2e-3: OAT, QueST, VQ
    if variant == "bridge" and "patch" in run.model:
      run.model.patch = 1
  config.modelability.steps, config.modelability.batch_size = {
    "mt4": (1500, 64),
    "bridge": (200, 64),
    "mini": (10, 16),
  }[variant]
  config.data = _get_config("data")()
  if variant == "bridge":
    config.data.task, config.data.action_horizon = "", 8
  for run in runs:
    run.data = config.data  # one for all
    run.evaluate_every = run.save_every = 500
    run.evaluate_windows = 1024
  if variant == "mini":
    config.seeds, config.windows = (0,), 64
    config.ceiling.num_tokens, config.ceiling.episodes, config.ceiling.max_steps = (1, 8), 1, 40
    for run in runs:
      run.log_every = run.evaluate_every = run.save_every = 5
      run.evaluate_windows, run.fit_windows = 64, 1000
  return config
