r"""Residual vector quantisation: a chunk of actions <-> one code of each of 8 learned codebooks.

  python launch/train.py --config=configs/tokenizer_vq.py:mt4 \
      --config.data.path=DIR --workdir=W/vq

Variants (the part behind the colon):
  mt4        data, steps, optimiser and bits of configs/tokenizer_oat.py:mt4
  published  sizes and learning rate of VQ-BeT's public code (arXiv 2403.03181): 2 levels of 16
             codes. Its loss is an absolute error, ours a squared one, and ours moves unused codes.

published has not been run to its end. Only all levels together are trained to decode.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "mt4") -> ConfigDict:
  if variant not in ("mt4", "published"):
    raise ValueError(f"unknown variant '{variant}'; there are mt4 and published")
  oat = runpy.run_path(str(pathlib.Path(__file__).with_name("tokenizer_oat.py")))
  config = oat["get_config"](variant)
  same = config.model
  config.model = ConfigDict()
  config.model.name = "vq"
  config.model.num_tokens = 8
  config.model.codes = 1000
  config.model.latent = 64
  config.model.width = 512
  config.model.layers = 2
  config.model.commitment = 0.05
  config.model.decay = 0.99
  config.model.revive_below = 0.4
  config.model.normalization = "min_max"
  config.model.cumulative_weight = same.cumulative_weight
  config.model.cumulative_dims = same.cumulative_dims
  config.model.dtype = "float32"
  if variant == "published":
    config.model.num_tokens = 2
    config.model.codes = 16
    config.model.latent = 512
    config.model.width = 128
    config.model.commitment = 5.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-4
  return config
