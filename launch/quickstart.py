r"""Collects demonstrations, trains tokenizer and policy, evaluates in a simulator, writes a report.

Examples:
  python launch/quickstart.py --config=configs/quickstart.py:mt4 --out=runs/quickstart
  python launch/quickstart.py --config=configs/quickstart.py:mt4 --stages=report

Called again it reuses what is done; Ctrl-C stops it, and the same command goes on.
"""

import command

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py:mt4", "Config file.")
_OUT = flags.DEFINE_string("out", "runs/quickstart", "Directory of data, runs and report.")
_STAGES = flags.DEFINE_list(
  "stages", ["collect", "tokenizer", "policy", "regression", "evaluate", "report"], "Stages to run."
)


def main() -> None:
  from oat_jax.study import quickstart

  quickstart.run(_CONFIG.value, _OUT.value, tuple(_STAGES.value))


if __name__ == "__main__":
  command.run(main)
