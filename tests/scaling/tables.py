"""Tables of sweeps that were not run, of a law that is known."""

import csv
import json

import numpy as np

SIZES = {"60k": 61_234, "250k": 243_000, "1m": 905_000, "2m": 2_040_000}
WINDOWS = (2500, 5000, 10_000, 20_000)


def rows_of(
  kind="tokenizer", sizes=tuple(SIZES), windows=WINDOWS, seeds=(0, 1), prefixes=(1, 4, 8)
):
  """Two evaluated steps of every run of a small sweep."""
  rng = np.random.default_rng(0)
  rows = []
  for size in sizes:
    for D in windows:
      for seed in seeds:
        steps, noise = D * 20 // 64, rng.normal(0, 0.02)
        run = f"{size}_{D}_{seed}"
        for step in (steps // 2, steps):
          for K in prefixes:
            N, bits = SIZES[size], K * 9.97
            loss = (0.003 + 2 / N**0.45 + 0.9 / D**0.5) * (8 / K) ** 0.7
            loss *= np.exp(noise + rng.normal(0, 0.003)) * (1.2 if step < steps else 1)
            metric = "mse" if kind == "tokenizer" else "cross_entropy"
            rows.append(
              {
                **{"run": run, "kind": kind, "size": size, "seed": seed, "parameters": N},
                **{"windows": D, "examples": step * 64, "flops": 190 * N * step * 64.0},
                **{"step": step, "steps": steps, "metric": metric, "K": K, "bits": bits},
                **{"loss": loss, "evaluation_set": "c0ffee" * 6, "config": "{}"},
                **{"axes": json.dumps({"size": size, "data": D, "seed": seed})},
                **{"code": "oat_jax 0.1.0", "device": "cpu"},
              }
            )
  return rows


def write(path, rows):
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  return path
