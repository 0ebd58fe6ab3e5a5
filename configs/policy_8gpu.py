r"""One node of eight GPUs: the policy over tokens, its parameters in eight parts.

  python launch/train.py --config=configs/policy_8gpu.py:300m --config.data.path=DIR \
      --config.tokenizer=W/tokenizer --workdir=W/policy

The argument is that of policy_oat.py: a size of the ladder, behind a variant or not.

On h100:1x8, 300m has 0.9 GB of state a GPU, and exchanging parameters and gradients takes 6 ms of a
step of at least 119 (launch/plan.py, from shapes: without activations). It has not been run there.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(argument: str = "300m") -> ConfigDict:
  policy = runpy.run_path(str(pathlib.Path(__file__).with_name("policy_oat.py")))
  config = policy["get_config"](argument)
  config.mesh = (1, 8, 1)
  config.batch_size = 1024
  config.save_every = 500
  return config
