r"""Compares tokenizers: trains or fits each at one budget, measures all alike, writes a report.

Examples:
  python launch/compare.py tokenizers --data=DIR
  python launch/compare.py tokenizers --data=DIR --methods=oat,vq --seeds=0
  python launch/compare.py tokenizers --data=DIR --out=OUT --config.data.action_horizon=16 \
      --methods=oat,my_package.my_tokenizer --stages=train,report

Called again it reuses what is done; Ctrl-C stops it, and the same command goes on. Two of them may
work in one OUT on different methods.
"""

from absl import flags
from ml_collections import config_flags

import command

_CONFIG = config_flags.DEFINE_config_file("config", "configs/compare.py:mt4", "Config file.")
_DATA = flags.DEFINE_string("data", None, "An RLDS dataset's directory.", required=True)
_OUT = flags.DEFINE_string("out", "runs/compare", "Directory of runs and report.")
_METHODS = flags.DEFINE_list(
  "methods", [], "Names in the config, or dotted paths of modules; all of the config's if unset."
)
_SEEDS = flags.DEFINE_list("seeds", [], "Of learned tokenizers; the config's if unset.")
_SUITE = flags.DEFINE_string(
  "suite", "", "Of the ceiling; by default the one that the dataset was collected in."
)
_STAGES = flags.DEFINE_list("stages", ["train", "model", "ceiling", "report"], "Stages to run.")


def main(what: str) -> None:
  from oat_jax import config
  from oat_jax.study import compare

  config.choose(what, ("tokenizers",), "what")
  compare.run(
    _CONFIG.value,
    _DATA.value,
    _OUT.value,
    methods=tuple(_METHODS.value),
    seeds=command.integers(_SEEDS),
    suite=_SUITE.value,
    stages=tuple(_STAGES.value),
  )


if __name__ == "__main__":
  command.run(main, positional="what")
