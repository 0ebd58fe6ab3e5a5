"""Windows per second of the input pipeline, and what a gather alone does."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from oat_jax.bench import clock
from oat_jax.data import pipeline
from oat_jax.data import rlds
from oat_jax.data import windows as windows_lib


def run(configs: Mapping[str, Any]) -> dict[str, float]:
  """Windows of 2 observations x 39 and 32 actions x 4, out of 200,000."""
  del configs
  rng = np.random.default_rng(0)
  episodes, steps = 2000, 100
  made = rlds.Episodes(
    actions_LA=rng.uniform(-1, 1, (episodes * steps, 4)).astype(np.float32),
    states_LS=rng.uniform(-1, 1, (episodes * steps, 39)).astype(np.float32),
    starts_E=np.arange(episodes + 1) * steps,
    tasks_E=np.zeros(episodes, np.int32),
    task_names=("",),
  )
  windows = windows_lib.Windows(made, np.arange(episodes), 2, 32)
  figures = {}
  for batch_size in (64, 256):
    for threads in (0, 1, 2):
      stream = pipeline.make_pipeline(windows, batch_size=batch_size, seed=0, threads=threads)
      measured = clock.cost(lambda stream=stream: next(stream), repeats=300, warm_up=20)
      name = f"data_batch{batch_size}_threads{threads}"
      figures[f"{name}_windows_per_wall_s"] = batch_size / measured.wall_s
      figures[f"{name}_windows_per_cpu_s"] = batch_size / measured.cpu_s
  picks = rng.integers(0, len(windows), 256)
  gather = clock.cost(lambda: windows(picks), repeats=300)
  figures["data_gather_batch256_windows_per_cpu_s"] = 256 / gather.cpu_s
  return figures
