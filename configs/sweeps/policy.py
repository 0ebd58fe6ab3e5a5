r"""Sweep of policies over one tokenizer: sizes of the ladder x data, on MT4 demonstrations.

  python launch/sweep.py run --config=configs/sweeps/policy.py:mt4 --config.set.data.path=DIR \
      --config.set.tokenizer=runs/sweep_tokenizer/runs/1m_data1_passes4_seed0 \
      --out=runs/sweep_policy

Variants (the part behind the colon):
  mt4   60k to 5m parameters, a quarter, half and all of the episodes: 12 runs

A run sees its windows four times, as the tokenizers' sweep; all policies have the same tokens to
predict, so that their cross-entropies compare.
"""

from ml_collections import ConfigDict


def get_config(argument: str = "mt4") -> ConfigDict:
  if argument != "mt4":
    raise ValueError(f"unknown variant '{argument}'; there is mt4")
  config = ConfigDict()
  config.run = "configs/policy_oat.py:mt4"
  config.evaluations = 4
  config.set = ConfigDict()
  config.set.batch_size = 64
  config.set.tokenizer = ""
  config.set.data = ConfigDict({"path": "", "stride": 4})
  config.axes = ConfigDict()
  config.axes.size = ("60k", "250k", "2m", "5m")
  config.axes.data = (0.25, 0.5, 1.0)
  config.axes.passes = (4.0,)
  config.axes.seed = (0,)
  config.extra_axes = ConfigDict()
  return config
