"""How figures are taken: CPU seconds, beside a fixed calibration kernel of the same run."""

from collections.abc import Callable, Mapping
import os
import platform
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Cost(NamedTuple):
  """Of one call."""

  cpu_s: float
  wall_s: float


def cost(call: Callable[[], Any], repeats: int, warm_up: int = 2) -> Cost:
  """Returns the mean cost of `call()`, whose result is waited for."""
  for _ in range(warm_up):
    jax.block_until_ready(call())
  cpu, wall = time.process_time(), time.perf_counter()
  for _ in range(repeats):
    jax.block_until_ready(call())
  return Cost((time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats)


def typical_costs(
  calls: Mapping[Any, Callable[[], Any]], repeats: int, rounds: int = 5
) -> dict[Any, Cost]:
  """Returns the median cost of each call, repeated as a robot repeats it: with warm caches.

  The calls take turns in `rounds` blocks of `repeats`, so that all see the same machine.
  """
  found: dict[Any, list[Cost]] = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      cost(call, repeats=5)
      found[name] += [cost(call, repeats=1, warm_up=0) for _ in range(repeats)]
  return {name: Cost(*map(statistics.median, zip(*costs))) for name, costs in found.items()}


def pin(cores: int) -> None:
  """Pins this process to its first `cores` cores, before jax counts them; 0 leaves it all."""
  if not cores:
    return
  if not hasattr(os, "sched_setaffinity"):
    print("this system cannot pin a process to cores: measuring on all of them", flush=True)
    return
  mine = sorted(os.sched_getaffinity(0))
  if not 1 <= cores <= len(mine):
    raise ValueError(f"--cores={cores}: this process may use 1..{len(mine)}")
  os.sched_setaffinity(0, mine[:cores])


def calibration() -> dict[str, float]:
  """The kernel that figures are read against: a product of two 1024 x 1024 float32 matrices."""
  x = jnp.ones((1024, 1024), jnp.float32)
  matmul = jax.jit(lambda x: x @ x)
  measured = cost(lambda: matmul(x), repeats=20)
  return {
    "calibration_matmul1024_cpu_ms": 1e3 * measured.cpu_s,
    "calibration_matmul1024_wall_ms": 1e3 * measured.wall_s,
  }


def _processor() -> str:
  try:
    with open("/proc/cpuinfo") as lines:
      return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    return platform.processor() or platform.machine()


def machine() -> dict[str, str]:
  """The machine, in words that a reader can compare."""
  return {
    "devices": ", ".join(sorted({d.device_kind for d in jax.devices()})),
    "device_count": str(jax.device_count()),
    "cores": str(
      len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ),
    "processor": _processor(),
    "system": platform.system(),
  }
