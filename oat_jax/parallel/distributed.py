"""Process groups: joined by explicit flags, or as the launcher that started the processes says."""

import os

import jax

# Of each launcher: what its steps have in their environment, the number of processes among it.
_LAUNCHERS = {
  "SLURM": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"),
  "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri"),
}
# Of a TPU slice's hosts, and of several slices.
_HOSTS, _SLICES = "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"


def launcher() -> str:
  """Returns who started this process as one of several, or ""; by environment variables alone."""
  for name, variables in _LAUNCHERS.items():
    if all(variable in os.environ for variable in variables) and int(os.environ[variables[0]]) > 1:
      return name
  if "," in os.environ.get(_HOSTS, "") or int(os.environ.get(_SLICES) or 1) > 1:
    return "TPU"
  return ""


def initialize(
  coordinator: str = "",
  num_processes: int = 0,
  process_id: int = -1,
  detect: bool = False,
) -> str:
  """Joins a process group, unless this process is alone. Call it before any device is touched.

  Args:
    coordinator: "host:port" of process 0.
    num_processes: size of the group. 0: what the launcher says (SLURM, Open MPI, TPU), else 1.
    process_id: this process's rank.
    detect: leave all to jax, also where no variable tells of a group, as on a Cloud TPU VM.

  Returns:
    who told of the group, "" for a process alone.

  Raises:
    ValueError: the arguments do not fit each other.
  """
  explicit = {"--coordinator": coordinator, "--process_id": process_id >= 0}
  if not num_processes:
    wrong = [name for name, value in explicit.items() if value]
    if wrong:
      raise ValueError(f"{wrong[0]} is given without --num_processes")
    found = "jax" if detect else launcher()
    if found:
      jax.distributed.initialize()
    return found
  if detect:
    raise ValueError("--distributed leaves to jax what --num_processes says; give one of them")
  if num_processes == 1:
    return ""
  if not 0 <= process_id < num_processes:
    raise ValueError(f"--process_id={process_id} is outside 0..{num_processes - 1}")
  if not coordinator:
    raise ValueError(f"--num_processes={num_processes} needs --coordinator=HOST:PORT of process 0")
  jax.distributed.initialize(coordinator, num_processes, process_id)
  return "flags"
