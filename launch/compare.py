r"""Compares tokenizers, or policies: trains all at one budget, measures alike, writes a report.

Examples:
  python launch/compare.py tokenizers --data=DIR
  python launch/compare.py tokenizers --data=DIR --methods=oat,vq --seeds=0
  python launch/compare.py tokenizers --data=DIR --out=OUT --config.data.action_horizon=16 \
      --methods=oat,my_package.my_tokenizer --stages=train,report
  python launch/compare.py policies --suite=metaworld/mt4 --observations=state --out=OUT
  python launch/compare.py policies --methods=oat,regression --seeds=0,1 --print_commands
  python launch/compare.py policies --config=configs/paper_robomimic.py:lift --data=DIR \
      --stages=tokenizers,policies

Called again it reuses what is done; Ctrl-C stops it, and the same command goes on. Several may work
in one OUT on different methods: --print_commands prints them, for a cluster.
"""

import command

import sys

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configs/compare.py:mt4, or configs/compare_policies.py:OBSERVATIONS, if unset."
)
_DATA = flags.DEFINE_string("data", None, "An RLDS dataset; policies collect their own if unset.")
_OUT = flags.DEFINE_string("out", None, "Of runs and report; runs/NAME if unset.")
_METHODS = flags.DEFINE_list(
  "methods", [], "Names in the config, all if unset; or dotted paths of tokenizers' modules."
)
_SEEDS = flags.DEFINE_list("seeds", [], "Of training; the config's if unset.")
_SUITE = flags.DEFINE_string("suite", "", "Of simulation; the dataset's or config's if unset.")
_OBSERVATIONS = flags.DEFINE_enum("observations", "state", ["state", "rgb"], "What policies see.")
_STAGES = flags.DEFINE_list("stages", [], "Stages to run; all if unset.")
_PRINT = flags.DEFINE_bool("print_commands", False, "Print the commands for a cluster instead.")


def main(what: str) -> None:
  from oat_jax import config
  from oat_jax.study import compare
  from oat_jax.study import compare_policies

  config.choose(what, ("tokenizers", "policies"), "what")
  shared = {"methods": tuple(_METHODS.value), "seeds": command.integers(_SEEDS)}
  if what == "tokenizers":
    if not _DATA.value:
      raise ValueError("--data is missing: the directory of an RLDS dataset")
    stages = tuple(_STAGES.value) or compare.STAGES
    out = _OUT.value or "runs/compare"
    compare.run(_CONFIG.value, _DATA.value, out, suite=_SUITE.value, stages=stages, **shared)
    return
  values = _CONFIG.value
  values.suite = _SUITE.value or values.suite
  stages = tuple(_STAGES.value) or compare_policies.STAGES
  file, changes = command.config_flags(_CONFIG)
  out = _OUT.value or command.default_out(file)
  run = {"data": _DATA.value or "", "stages": stages, **shared}
  if not _PRINT.value:
    compare_policies.run(values, out, **run)
    return
  common = ["python", "launch/compare.py", "policies", f"--config={file}", *changes]
  common += [f"--out={out}", f"--suite={values.suite}"]
  common += [f"--data={_DATA.value}"] if _DATA.value else []
  print("\n".join(compare_policies.commands(values, common, **run)))


if __name__ == "__main__":
  sys.argv = command.with_config(sys.argv)
  command.run(main, positional="what")
