"""Milliseconds of encoding and decoding one chunk, by tokenizer and prefix; medians.

Timed as a user calls them: numpy actions in, checks at the boundary, the compiled program inside.
The calibration kernel's product is 2.15 GFLOP: how far both batch sizes are from the core's limit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from oat_jax import tokenizers
from oat_jax.bench import clock
from oat_jax.bench import models

ROWS = 4096  # of the large batch
PREFIXES = (1, 2, 4, 8)


def run(configs: Mapping[str, Any], scale: float = 1.0) -> dict[str, float]:
  """Every `tokenizer_NAME` of `configs` gives figures `NAME_...`; those fitted see fake chunks."""
  figures = {}
  for key, config in configs.items():
    if config.kind == "tokenizer":
      print(f"measuring {key}", flush=True)
      figures |= _costs(key, config.model, scale)
  return figures


def _costs(name: str, config: Mapping[str, Any], scale: float) -> dict[str, float]:
  tokenizer = tokenizers.make(config, models.SPEC, models.statistics()["actions"])
  chunks_WCA = smooth_chunks(ROWS)
  if tokenizer.init is not None:
    params = jax.jit(tokenizer.init)(jax.random.key(0))
  else:
    assert tokenizer.fit is not None  # a tokenizer is one or the other
    params = tokenizer.fit(chunks_WCA, np.ones(chunks_WCA.shape[:2], bool), np.zeros(ROWS, int))
  N = tokenizer.max_tokens
  prefixes = {K for K in PREFIXES if tokenizer.prefix_decodable and K < N} | {N}
  actions_1CA = chunks_WCA[:1]
  tokens_1N = np.asarray(tokenizer.encode(params, actions_1CA))
  calls = {"encode": lambda: tokenizer.encode(params, actions_1CA)}
  for K in sorted(prefixes):
    calls[f"decode_k{K}"] = lambda K=K: tokenizer.decode(params, tokens_1N, np.int32(K))
  costs = clock.typical_costs(calls, max(1, round(100 * scale)))
  figures = {}
  for call, cost in costs.items():
    figures[f"{name}_{call}_cpu_ms"] = 1e3 * cost.cpu_s
    figures[f"{name}_{call}_wall_ms"] = 1e3 * cost.wall_s
  both = costs["encode"].cpu_s + costs[f"decode_k{N}"].cpu_s
  figures[f"{name}_encode_and_decode_cpu_ms"] = 1e3 * both
  rows = max(2, round(ROWS * min(1, scale)))
  large = clock.cost(lambda: tokenizer.encode(params, chunks_WCA[:rows]), 2, warm_up=1)
  rates = {1: 1 / costs["encode"].cpu_s, rows: rows / large.cpu_s}
  figures[f"{name}_encode_batch{rows}_over_batch1_rate"] = rates[rows] / rates[1]
  flops = None if tokenizer.host_encode else _flops(tokenizer.encode, params, actions_1CA)
  for count, rate in rates.items():
    figures[f"{name}_encode_batch{count}_chunks_per_cpu_s"] = rate
    if flops is not None:
      figures[f"{name}_encode_batch{count}_gflop_per_cpu_s"] = flops * rate / 1e9
  return figures


def _flops(call: Callable[..., Any], *args: Any) -> float:
  """Returns what XLA counts for one call; the body of a loop (VQ's levels) counts once."""
  counts = jax.jit(call).lower(*args).compile().cost_analysis()
  assert counts is not None  # XLA's backends for CPU and GPU count
  return counts["flops"]


def smooth_chunks(count: int) -> np.ndarray:
  """Returns float32 (count, C, A) in [-1, 1]: sums of a few slow waves of random phase."""
  C, A = models.SPEC.action_horizon, models.SPEC.action_dim
  rng = np.random.default_rng(0)
  cycles_W3CA = rng.uniform(0, 2, (count, 3, 1, A)) * np.arange(C)[:, None] / C
  phases_W31A = rng.uniform(0, 1, (count, 3, 1, A))
  return np.sin(2 * np.pi * (cycles_W3CA + phases_W31A)).mean(1).astype(np.float32)
