"""Whether the 95 % intervals of a scaling law hold the truth, over synthetic sweeps.

Each trial has the design of a small sweep, 4 sizes x 4 amounts of data x 2 seeds, losses of a law
that is known and lognormal noise, alike for all runs or, beside it, three times as wide where data
are few as where they are many.
"""

from collections.abc import Mapping
import time
from typing import Any

import numpy as np
import tqdm

from oat_jax.scaling import power_law

TRIALS, RESAMPLES = 200, 200
SIZES = (60e3, 250e3, 1e6, 2e6)
WINDOWS = (2500.0, 5e3, 1e4, 2e4)
SEEDS = 2
NAMES = ("parameters", "windows")
# Errors from 0.036 down to 0.013, as a small tokenizer has them.
TRUTH = power_law.Law(np.array(0.004), np.array([2.0, 0.9]), np.array([0.45, 0.5]))
# Name: standard deviations of ln L by amount of data.
NOISES = {
  "noise1": (0.01,) * 4,
  "noise2": (0.02,) * 4,
  "noise5": (0.05,) * 4,
  "uneven": (0.032, 0.024, 0.016, 0.01),
}


def run(configs: Mapping[str, Any], scale: float = 1.0) -> dict[str, float]:
  """Returns figures of `scale` of the trials for each noise; `configs` is not needed."""
  del configs
  trials = max(2, round(TRIALS * scale))
  figures: dict[str, float] = {"law_trials": trials}
  for name, noise in NOISES.items():
    figures |= {f"law_{name}_{key}": value for key, value in coverage(noise, trials).items()}
  return figures


def sweep(noise: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns x (R, 2), losses (R,) and groups (R,) of one synthetic sweep."""
  cells = [(N, D) for N in SIZES for D in WINDOWS]
  x_R2 = np.repeat(cells, SEEDS, axis=0)
  groups_R = np.repeat(np.arange(len(cells)), SEEDS)
  sigma_R = np.array(noise)[groups_R % len(WINDOWS)]
  draws_R = np.random.default_rng(seed).standard_normal(len(x_R2))
  return x_R2, TRUTH(x_R2) * np.exp(sigma_R * draws_R), groups_R


def coverage(noise: tuple[float, ...], trials: int) -> dict[str, float]:
  """Returns the share of intervals that hold the truth, median |error| and median width, for E and
  both exponents, and CPU seconds a fit.
  """
  truth = np.array([TRUTH.E, *TRUTH.alpha_V])
  inside, errors, widths = [], [], []
  start = time.process_time()
  for trial in tqdm.trange(trials, desc="sweeps", unit="sweep"):
    x_R2, loss_R, groups_R = sweep(noise, trial)
    fitted = power_law.fit(x_R2, loss_R, NAMES, groups_R, resamples=RESAMPLES, seed=trial)
    values = np.array([fitted.law.E, *fitted.law.alpha_V])
    many_B3 = np.concatenate([fitted.laws.E[:, None], fitted.laws.alpha_V], axis=1)
    low, high = fitted.interval(many_B3)
    inside.append((low <= truth) & (truth <= high))
    errors.append(np.abs(values - truth))
    widths.append(high - low)
  seconds = time.process_time() - start
  found = {"cpu_s_per_fit": seconds / trials}
  for i, name in enumerate(("E", *(f"exponent_{name}" for name in NAMES))):
    found[f"{name}_coverage"] = float(np.mean(inside, axis=0)[i])
    found[f"{name}_median_error"] = float(np.median(errors, axis=0)[i])
    found[f"{name}_median_width"] = float(np.median(widths, axis=0)[i])
  return found
