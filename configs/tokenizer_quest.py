r"""QueST tokenizer: a chunk of actions <-> 8 tokens in the order of time, not of detail.

  python launch/train.py --config=configs/tokenizer_quest.py:mt4 \
      --config.data.path=DIR --workdir=W/quest

Variants (the part behind the colon): mt4 and published, as of configs/tokenizer_oat.py, with its
data, steps, optimiser, sizes and codes; published has not been run to its end. Only all 8 tokens
together are trained to decode.
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
  config.model.name = "quest"
  config.model.num_tokens = same.num_tokens
  config.model.levels = same.levels
  config.model.width = same.width
  config.model.head_width = same.head_width
  config.model.kernel = 5
  config.model.encoder_layers = same.encoder_layers
  config.model.decoder_layers = same.decoder_layers
  config.model.mlp_ratio = same.mlp_ratio
  config.model.dropout = same.dropout
  config.model.patch = same.patch
  config.model.shortcut = same.shortcut
  config.model.normalization = same.normalization
  config.model.cumulative_weight = same.cumulative_weight
  config.model.cumulative_dims = same.cumulative_dims
  config.model.dtype = same.dtype
  config.model.scan = same.scan
  config.model.remat = same.remat
  return config
