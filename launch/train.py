r"""Trains a tokenizer or a policy; the same command again goes on from the last checkpoint.

Examples:
  python launch/train.py --config=configs/tokenizer_oat.py:mt4 --config.data.path=DIR \
      --workdir=W/tokenizer
  python launch/train.py --config=configs/policy_oat.py:mt4 --config.data.path=DIR \
      --config.tokenizer=W/tokenizer --workdir=W/policy
  srun python launch/train.py ...      # one process a task; Open MPI's mpirun, and TPUs, likewise
  python launch/train.py ... --coordinator=HOST:PORT --num_processes=2 --process_id=0
"""

import command

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, e.g. configs/policy_oat.py:mt4."
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run; made if it does not exist.", required=True
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", "", "HOST:PORT of process 0, for several processes."
)
NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", 0, "How many processes train together; 0: what the launcher says, or one."
)
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Rank of this process.")
DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Leave it to jax to find the other processes, e.g. on a Cloud TPU VM."
)
PROFILE = flags.DEFINE_integer("profile", 0, "Trace so many steps, into WORKDIR/profile.")
flags.mark_flag_as_required("config")


def main() -> None:
  from oat_jax.parallel import distributed
  from oat_jax.train import config as config_lib
  from oat_jax.train import loop

  config = config_lib.freeze(CONFIG.value)
  group = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, DISTRIBUTED.value)
  distributed.initialize(*group)
  loop.train(config, WORKDIR.value, PROFILE.value)


if __name__ == "__main__":
  command.run(main)
