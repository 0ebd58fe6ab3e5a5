"""Process groups, joined by explicit flags."""

import jax


def initialize(coordinator: str, num_processes: int, process_id: int) -> None:
  """Joins a process group; does nothing for a single process. Call it before any device is touched.

  Args:
    coordinator: "host:port" of process 0.
    num_processes: size of the group.
    process_id: this process's rank.

  Raises:
    ValueError: a rank outside the group, or several processes without a coordinator.
  """
  if num_processes == 1:
    return
  if not 0 <= process_id < num_processes:
    raise ValueError(f"--process_id={process_id} is outside 0..{num_processes - 1}")
  if not coordinator:
    raise ValueError(f"--num_processes={num_processes} needs --coordinator=HOST:PORT of process 0")
  jax.distributed.initialize(coordinator, num_processes, process_id)
