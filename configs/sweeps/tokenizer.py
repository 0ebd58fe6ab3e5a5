r"""Sweep of OAT tokenizers: sizes of the ladder x data x seeds, on MetaWorld MT4 demonstrations.

  python launch/sweep.py run --config=configs/sweeps/tokenizer.py:mt4 \
      --config.set.data.path=DIR --out=runs/sweep_tokenizer

Variants (the part behind the colon):
  mt4   60k to 2m parameters, 1/8 to all of the episodes, two seeds: 32 runs
  mini  the smallest, 4 runs of few steps: to try the commands

A run sees its windows four times; repeated so often, data is worth about as much as new data
(arXiv 2305.16264). Every fourth step of an episode begins a window.
"""

from ml_collections import ConfigDict


def get_config(argument: str = "mt4") -> ConfigDict:
  if argument not in ("mt4", "mini"):
    raise ValueError(f"unknown variant '{argument}'; there are mt4 and mini")
  config = ConfigDict()
  config.run = "configs/tokenizer_oat.py:mt4"
  config.evaluations = 4
  config.set = ConfigDict()
  config.set.batch_size = 64
  config.set.model = ConfigDict({"cumulative_weight": 0.0})  # the plain error is what is measured
  config.set.data = ConfigDict({"path": "", "stride": 4})
  config.axes = ConfigDict()
  config.axes.size = ("60k", "250k", "1m", "2m")
  config.axes.data = (0.125, 0.25, 0.5, 1.0)
  config.axes.passes = (4.0,)
  config.axes.seed = (0, 1)
  config.extra_axes = ConfigDict()
  if argument == "mini":
    config.set.evaluate_windows = 256
    config.axes.size = ("60k", "250k")
    config.axes.data = (0.5, 1.0)
    config.axes.passes = (0.1,)
    config.axes.seed = (0,)
  return config
