r"""Behaviour cloning by regression of the chunk with an MLP: the floor that every policy must beat.

  python launch/train.py --config=configs/policy_regression.py:mt4 \
      --config.data.path=DIR --workdir=W/regression

Data, optimiser and observation encoder are the token policy's, and it sees as many windows: 3,000
steps of 256, against 6,000 of 128. It takes 1 minute on two CPU cores and solves 87 of 100 goals.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "mt4") -> ConfigDict:
  policy = runpy.run_path(str(pathlib.Path(__file__).with_name("policy_oat.py")))
  config = policy["get_config"](variant)
  observation = config.model.observation
  config.steps = 3000
  config.batch_size = 256
  config.tokenizer = ""
  config.model = ConfigDict()
  config.model.name = "regression"
  config.model.hidden = 512
  config.model.layers = 2
  config.model.normalization = "min_max"
  config.model.observation = observation
  return config
