r"""Four nodes of eight GPUs: the policy over tokens, each node with all its parameters.

  sbatch --nodes=4 launch/slurm.sbatch --config=configs/policy_4nodes.py:1b --config.data.path=DIR \
      --config.tokenizer=W/tokenizer --workdir=W/policy

The argument is that of policy_oat.py: a size of the ladder, behind a variant or not. Parameters are
cut along a node's eight GPUs, which NVLink joins; gradients alone cross between nodes.

On h100:4x8, 1b has 3.2 GB of state a GPU, and exchanging parameters and gradients takes 48 ms of a
step of at least 108 (launch/plan.py, from shapes: without activations). It has not been run there.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(argument: str = "1b") -> ConfigDict:
  node = runpy.run_path(str(pathlib.Path(__file__).with_name("policy_8gpu.py")))
  config = node["get_config"](argument)
  config.mesh = (4, 8, 1)
  return config
