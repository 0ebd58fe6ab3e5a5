"""The figures of the quickstart's report.

Each is a PNG of equal cells, so that a page can cut it and lay the cells out as its width allows.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, and none is opened
from matplotlib import pyplot as plt
import numpy as np

from oat_jax.train import models

COARSE_TO_FINE = plt.get_cmap("viridis_r")
CELL = (3.0, 2.3)  # inches
COLUMNS = 4  # at most
_DPI = 200
_INK, _SOFT, _RULE, _FINE = "#1c2733", "#6b7885", "#dfe4e8", COARSE_TO_FINE(0.75)


def chunk(path: pathlib.Path, trained: models.Trained, windows: Any) -> int:
  """A held-out chunk decoded from 1, 2, 4, ... tokens over the truth: coarse to fine.

  Returns the number of cells, one for each action dimension, as the figures below do.
  """
  tokenizer, params = trained.tokenizer, trained.params
  assert tokenizer is not None
  N = tokenizer.max_tokens
  budgets = [K for K in (1, 2, 4, 8, 16, 32) if K <= N]
  batch = windows(np.linspace(0, len(windows) - 1, min(512, len(windows))).astype(int))
  actions_BCA, mask_BC = batch["actions"], batch["action_mask"]
  tokens_BN = tokenizer.encode(params, actions_BCA, mask_BC)
  # Of the whole chunks with the most motion (a still one shows nothing), the one of median error.
  whole_B = mask_BC.all(1) if mask_BC.all(1).any() else np.ones(len(mask_BC), bool)
  motion_B = np.ptp(actions_BCA, axis=1).sum(1)
  moving = np.flatnonzero(whole_B & (motion_B >= np.quantile(motion_B[whole_B], 0.9)))
  error_B = np.square(np.asarray(tokenizer.decode(params, tokens_BN, N)) - actions_BCA).sum((1, 2))
  row = moving[np.argsort(error_B[moving])[len(moving) // 2]]
  truth_CA = actions_BCA[row]
  decoded = {K: np.asarray(tokenizer.decode(params, tokens_BN, K))[row] for K in budgets}
  shown = np.stack([truth_CA, *decoded.values()])
  low, high = shown.min(), shown.max()
  margin = 0.06 * (high - low)
  figure, axes = _cells(truth_CA.shape[1])
  for dim, axis in enumerate(axes):
    axis.plot(truth_CA[:, dim], color=_INK, lw=4, alpha=0.22, label="demonstrated")
    for i, K in enumerate(budgets):
      color = COARSE_TO_FINE(0.1 + 0.85 * i / max(1, len(budgets) - 1))
      axis.plot(decoded[K][:, dim], color=color, lw=1.6, label=f"{K} token{'s' * (K > 1)}")
    axis.set_ylim(low - margin, high + margin)
    _name(axis, f"action dimension {dim}", "step of the chunk")
  flattest = axes[np.ptp(shown, axis=(0, 1)).argmin()]  # has most room
  flattest.legend(fontsize=7.5, frameon=False, labelcolor=_SOFT, handlelength=1.4)
  _save(figure, path)
  return len(axes)


def reconstruction(path: pathlib.Path, mse: Mapping[str, float]) -> int:
  """Held-out reconstruction error by K."""
  figure, axes = _cells(1)
  budgets = [int(K) for K in mse]
  axes[0].plot(budgets, list(mse.values()), "o-", color=_FINE, ms=4)
  axes[0].set(xticks=budgets, ylim=(0, None))
  _name(axes[0], "held-out MSE, normalised actions", "tokens K")
  _save(figure, path)
  return len(axes)


def anytime(path: pathlib.Path, summary: Mapping[str, Any]) -> int:
  """Success and milliseconds by K: what a policy that may stop early trades."""
  figure, (left, right) = _cells(2)
  horizon = summary["action_horizon"]
  by_replan = {str(summary["replan"]): summary["success"], **summary["success_other_replan"]}
  for i, (R, rates) in enumerate(by_replan.items()):
    overall = rates["overall"]
    rate, low, high = (
      np.array([100 * v[n] for v in overall.values()]) for n in ("rate", "low", "high")
    )
    budgets = np.array([int(K) for K in overall]) * 1.035**i  # so that intervals do not overlap
    left.errorbar(
      budgets, rate, (rate - low, high - rate), fmt="o-" if i == 0 else "o--", ms=4, capsize=2.5,
      lw=1.8 if i == 0 else 1.2, color=_FINE if i == 0 else _SOFT,
      label=f"{R} of {horizon} steps executed",
    )  # fmt: skip
  plain = 100 * next(iter(summary["regression_success"]["overall"].values()))["rate"]
  left.axhline(plain, color="#d1495b", ls=":", lw=1.4, zorder=1)
  label = f"regression MLP, {summary['replan']} steps"
  left.plot([], [], color="#d1495b", ls=":", lw=1.4, label=label)
  left.set_ylim(0, 103)
  left.legend(fontsize=7.5, frameon=False, labelcolor=_SOFT, loc="lower right")
  _name(left, "success, %, with 95 % intervals", "tokens K")
  latency = summary["act_ms"]
  budgets = [int(K) for K in latency]
  for name, label, style in (
    ("p95", "95th percentile", {"fmt": "o--", "color": _SOFT, "ms": 3, "lw": 1}),
    ("p50", "median", {"fmt": "o-", "color": _FINE, "ms": 4, "lw": 1.8}),
  ):
    if all(name in v for v in latency.values()):
      right.errorbar(budgets, [v[name] for v in latency.values()], label=label, **style)
  right.set_ylim(bottom=0)
  right.legend(fontsize=7.5, frameon=False, labelcolor=_SOFT, loc="lower right")
  _name(right, "milliseconds a chunk, batch 1", "tokens K")
  for axis in (left, right):
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [str(K) for K in budgets])
    axis.minorticks_off()
  _save(figure, path)
  return 2


def training(path: pathlib.Path, curves: Mapping[str, list[dict[str, float]]]) -> int:
  """Training loss of every run, and its held-out value: of decoded chunks, inside the range."""
  held_out = {
    "tokenizer": ("train/mse", "validation/mse_"),
    "policy": ("train/loss", "validation/cross_entropy_"),
    "regression": ("train/loss", "validation/chunk_mse"),
  }
  figure, axes = _cells(len(curves))
  for axis, (name, rows) in zip(axes, curves.items()):
    train_name, held_name = held_out[name]
    points = [(row["step"], row[train_name]) for row in rows if train_name in row]
    axis.plot(*zip(*points), lw=1.2, color=_SOFT, alpha=0.7, label="training")
    points = []
    for row in rows:
      values = [value for key, value in row.items() if key.startswith(held_name)]
      if values:
        points.append((row["step"], np.mean(values)))
    axis.plot(*zip(*points), "o-", ms=4, lw=1.8, color=_FINE, label="held out")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7.5, frameon=False, labelcolor=_SOFT)
    _name(axis, f"{name}: {'cross-entropy' if name == 'policy' else 'MSE'}", "step")
  _save(figure, path)
  return len(axes)


def shape(count: int) -> tuple[int, int]:
  """Returns the rows and columns of a figure of so many cells."""
  columns = min(count, COLUMNS)
  return -(-count // columns), columns


def _cells(count: int) -> tuple[Any, list[Any]]:
  """A figure with an axis in each cell, its margins inside it."""
  rows, columns = shape(count)
  width, height = CELL
  figure = plt.figure(figsize=(columns * width, rows * height))
  axes = []
  for i in range(count):
    row, column = divmod(i, columns)
    left, bottom = column + 0.5 / width, rows - 1 - row + 0.48 / height
    size = ((width - 0.66) / width / columns, (height - 0.86) / height / rows)
    axis = figure.add_axes((left / columns, bottom / rows, *size))
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_RULE)
    axis.tick_params(labelsize=8, length=0, labelcolor=_SOFT)
    axis.grid(color=_RULE, lw=0.7)
    axis.set_axisbelow(True)
    axes.append(axis)
  return figure, axes


def _name(axis: Any, what: str, over: str) -> None:
  axis.set_title(what, fontsize=9, loc="left", color=_INK, pad=8)
  axis.set_xlabel(over, fontsize=8, color=_SOFT)


def _save(figure: Any, path: pathlib.Path) -> None:
  figure.savefig(path, dpi=_DPI)
  plt.close(figure)
