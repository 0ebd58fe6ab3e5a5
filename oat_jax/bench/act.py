"""Milliseconds of `act`, from observation to chunk, by K and of Diffusion Policy; medians."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.bench import clock
from oat_jax.bench import models

PREFIXES = (1, 2, 4, 8)
# Size -> {rows of the batch: blocks of so many calls}.
CALLS = {"mt4": {1: 100, 64: 10}, "published": {1: 20}}


def run(configs: Mapping[str, Any], scale: float = 1.0) -> dict[str, float]:
  """`configs` holds `tokenizer_`, `policy_` and `policy_diffusion_` of `mt4` and `published`.

  The published size is also measured with 4 steps a query of the tokenizer's decoder (`patch4`),
  whose published form has one query a step.
  """
  key, figures = jax.random.key(0), {}
  for size, repeats in CALLS.items():
    acts = {}
    inner = dict(configs[f"tokenizer_{size}"].model)
    tokenizers = {"": inner} if size == "mt4" else {"": inner, "patch4_": inner | {"patch": 4}}
    for name, values in tokenizers.items():
      act, params = _act(*models.policy(configs[f"policy_{size}"].model, values))
      for K in PREFIXES:
        acts[f"{name}k{K}"] = (act, params, np.int32(K))
    acts["diffusion"] = (*_act(*models.policy(configs[f"policy_diffusion_{size}"].model)), None)
    for rows, count in repeats.items():
      batch = batch_lib.fake(models.SPEC, rows)
      calls = {
        name: lambda act=act, params=params, K=K, batch=batch: act(params, batch, key, K)[0]
        for name, (act, params, K) in acts.items()
      }
      costs = clock.typical_costs(calls, max(1, round(scale * count)))
      for name, cost in costs.items():
        figures[f"act_{size}_{name}_batch{rows}_wall_ms"] = 1e3 * cost.wall_s
        figures[f"act_{size}_{name}_batch{rows}_cpu_ms"] = 1e3 * cost.cpu_s
      for name in tokenizers:
        first, last = (costs[f"{name}k{K}"].cpu_s for K in (PREFIXES[0], PREFIXES[-1]))
        figures[f"act_{size}_{name}k1_over_k8_batch{rows}_cpu_ratio"] = first / last
  return figures


def _act(policy: Any, params: Any) -> tuple[Any, Any]:
  return jax.jit(policy.act, static_argnames="sampling"), params
