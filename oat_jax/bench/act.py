"""Milliseconds of `act` by K, from observation to chunk, at quickstart size; medians."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.bench import clock
from oat_jax.bench import models


def run(configs: Mapping[str, Any], scale: float = 1.0) -> dict[str, float]:
  """`configs` holds `tokenizer_mt4` and `policy_mt4`."""
  policy, params = models.policy(configs["policy_mt4"].model, configs["tokenizer_mt4"].model)
  act = jax.jit(policy.act, static_argnames="sampling")
  key, figures = jax.random.key(0), {}
  for rows in (1, 64):
    batch = batch_lib.fake(models.SPEC, rows)
    calls = {
      K: lambda K=K, batch=batch: act(params, batch, key, np.int32(K))[0] for K in (1, 2, 4, 8)
    }
    costs = clock.typical_costs(calls, max(1, round(scale * (100 if rows == 1 else 10))))
    for K in calls:
      figures[f"act_k{K}_batch{rows}_wall_ms"] = 1e3 * costs[K].wall_s
      figures[f"act_k{K}_batch{rows}_cpu_ms"] = 1e3 * costs[K].cpu_s
    figures[f"act_k1_over_k8_batch{rows}_cpu_ratio"] = costs[1].cpu_s / costs[8].cpu_s
  return figures
