r"""Diffusion Policy: a transformer that denoises the chunk, beside the token policy.

  python launch/train.py --config=configs/policy_diffusion.py:mt4 \
      --config.data.path=DIR --workdir=W/diffusion

Variants (the part behind the colon):
  mt4        MetaWorld MT4 demonstrations
  published  size of the paper's baseline (arXiv 2602.04215), in float32: about 5 M parameters

Data, steps, batch, optimiser and sizes are those of configs/policy_oat.py. Neither variant has been
run to its end.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "mt4") -> ConfigDict:
  policy = runpy.run_path(str(pathlib.Path(__file__).with_name("policy_oat.py")))
  config = policy["get_config"](variant)
  of_tokens = config.model
  config.tokenizer = ""
  config.model = ConfigDict()
  config.model.name = "diffusion"
  shared = ("width", "head_width", "layers", "mlp_ratio", "dropout", "dtype", "scan", "remat")
  for name in (*shared, "observation"):
    config.model[name] = of_tokens[name]
  config.model.normalization = "min_max"
  config.model.train_steps = 100
  config.model.sampling_steps = 10
  return config
