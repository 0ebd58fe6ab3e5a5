r"""FAST tokenizer: cosine transform, rounding, byte-pair encoding; fitted, not trained.

  python launch/train.py --config=configs/tokenizer_fast.py:mt4 \
      --config.data.path=DIR --workdir=W/fast

Variants (the part behind the colon): mt4 and bridge, data as of configs/tokenizer_oat.py. Values of
the model are the published ones (arXiv 2501.09747) but for `decoding`, which is "strict" there.

On 400 demonstrations a task, mt4 takes 20 seconds on two CPU cores. A chunk is 55 tokens on average
and 104 at most; its held-out error, 0.0008, is that of rounding alone.
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
  config.model.name = "fast"
  config.model.vocab_size = 1024
  config.model.scale = 10.0
  config.model.normalization = "q01_q99"
  config.model.decoding = "total"
  config.model.max_tokens = 0
  return config
