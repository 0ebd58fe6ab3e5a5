r"""Sweeps for scaling laws: `plan` lists the runs, `run` trains them, `collect`, `fit`.

Examples:
  python launch/sweep.py plan --config=configs/sweeps/tokenizer.py:mt4 \
      --config.set.data.path=DIR --out=OUT --measure
  python launch/sweep.py run --config=configs/sweeps/tokenizer.py:mt4 \
      --config.set.data.path=DIR --out=OUT --jobs=2
  python launch/sweep.py collect --config=configs/sweeps/tokenizer.py:mt4 \
      --config.set.data.path=DIR --out=OUT
  python launch/sweep.py fit --out=OUT
  python launch/sweep.py fit --out=OUT --where=num_tokens=8 --where='codebook=[8,5,5,5]'
  python launch/sweep.py run ... --backend=slurm --jobs=8 --sbatch='--partition=gpu --time=2:00:00'
  IMAGE=... SLICES=1 HOSTS=1 CHIPS=4 ... python launch/sweep.py run ... --backend=jobset

Each run is an ordinary launch/train.py in OUT/runs/NAME. Ctrl-C, a kill or a full disk loses
nothing that is done: the same command goes on. `collect` writes OUT/table.csv, `fit` OUT/report.
"""

import command

from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "E.g. configs/sweeps/tokenizer.py:mt4.")
_OUT = flags.DEFINE_string("out", None, "Of runs, table and report.", required=True)
_BACKEND = flags.DEFINE_enum("backend", "local", ["local", "slurm", "jobset"], "Where to run.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time.", lower_bound=1)
_RETRIES = flags.DEFINE_integer("retries", 2, "How often a failed run is tried again.", 0)
_SBATCH = flags.DEFINE_string("sbatch", "", "More options of sbatch.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "Plan hours for such chips, e.g. v5e:4x4.")
_MEASURE = flags.DEFINE_bool("measure", False, "Time steps here, for hours of what has not run.")
_TABLE = flags.DEFINE_string("table", None, "OUT/table.csv if unset; or NAME.parquet.")
_METRIC = flags.DEFINE_string("metric", "", "To fit: mse, cross_entropy, chunk_mse.")
_NUM_TOKENS = flags.DEFINE_integer("num_tokens", 0, "K to fit; the largest, if unset.")
_DATA = flags.DEFINE_enum("data", "windows", ["windows", "examples"], "What counts as data.")
_WHERE = flags.DEFINE_multi_string("where", [], "AXIS=VALUE: fit only runs of this place.")
_AT = flags.DEFINE_enum("at", "last", ["last", "least"], "Which evaluation of a run counts.")
_RESAMPLES = flags.DEFINE_integer("resamples", 1000, "Of the bootstrap.", lower_bound=100)


def main(what: str) -> None:
  import jax

  from oat_jax import config as config_lib
  from oat_jax.study import scaling

  config_lib.choose(what, ("plan", "run", "collect", "fit"), "what")
  table = _TABLE.value or f"{_OUT.value}/table.csv"
  if what == "fit":
    names = (_METRIC, _NUM_TOKENS, _DATA, _AT, _WHERE, _RESAMPLES)
    scaling.fit(table, _OUT.value, **{flag.name: flag.value for flag in names})
    return
  if _CONFIG.value is None:
    raise ValueError("--config is missing, e.g. --config=configs/sweeps/tokenizer.py:mt4")
  if not (_MEASURE.value or _TOPOLOGY.value):
    # Counting needs no accelerator, and a process that holds one keeps it from the runs.
    jax.config.update("jax_platforms", "cpu")
  work = scaling.Sweep(_CONFIG.value, _OUT.value, command.load_config)
  if what == "plan":
    work.plan(_TOPOLOGY.value, _MEASURE.value)
  elif what == "run":
    work.run(_BACKEND.value, _JOBS.value, _RETRIES.value, _SBATCH.value, command.TRAIN)
  else:
    work.collect(table)


if __name__ == "__main__":
  command.run(main, positional="what")
