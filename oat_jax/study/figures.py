"""The figures of the quickstart's report."""

from collections.abc import Mapping
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, and none is opened
from matplotlib import pyplot as plt
import numpy as np

from oat_jax.train import models

COARSE_TO_FINE = plt.get_cmap("viridis_r")


def chunk(path: pathlib.Path, trained: models.Trained, windows: Any) -> None:
  """A held-out chunk decoded from 1, 2, 4, ... tokens over the truth: coarse to fine."""
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
  A = truth_CA.shape[1]
  columns = min(A, 4)
  rows = -(-A // columns)
  size = (3.2 * columns, 2.6 * rows)
  figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
  for dim, axis in enumerate(axes.flat):
    if dim >= A:
      axis.axis("off")
      continue
    axis.plot(truth_CA[:, dim], color="black", lw=2.5, alpha=0.35, label="demonstrated")
    for i, K in enumerate(budgets):
      color = COARSE_TO_FINE(0.1 + 0.85 * i / max(1, len(budgets) - 1))
      axis.plot(decoded[K][:, dim], color=color, lw=1.4, label=f"{K} token{'s' * (K > 1)}")
    axis.set_title(f"action dimension {dim}", fontsize=9)
    axis.set_xlabel("step of the chunk", fontsize=8)
    axis.tick_params(labelsize=7)
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="upper center", ncol=len(labels), fontsize=8, frameon=False)
  figure.tight_layout(rect=(0, 0, 1, 0.92))
  _save(figure, path)


def reconstruction(path: pathlib.Path, mse: Mapping[str, float]) -> None:
  """Held-out reconstruction error by K."""
  figure, axis = plt.subplots(figsize=(4.5, 3.2))
  budgets = [int(K) for K in mse]
  axis.plot(budgets, list(mse.values()), "o-", color=COARSE_TO_FINE(0.7))
  axis.set(xlabel="tokens K", ylabel="held-out MSE, normalised actions", xticks=budgets)
  axis.set_ylim(bottom=0)
  axis.grid(alpha=0.3)
  figure.tight_layout()
  _save(figure, path)


def anytime(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
  """Success and milliseconds by K: what a policy that may stop early trades."""
  figure, axis = plt.subplots(figsize=(5.6, 3.6))
  horizon = summary["action_horizon"]
  by_replan = {str(summary["replan"]): summary["success"], **summary["success_other_replan"]}
  for i, (R, rates) in enumerate(sorted(by_replan.items(), key=lambda item: int(item[0]))):
    overall = rates["overall"]
    budgets = [int(K) for K in overall]
    rate, low, high = (
      np.array([100 * v[n] for v in overall.values()]) for n in ("rate", "low", "high")
    )
    axis.errorbar(
        np.asarray(budgets) + 0.08 * i, rate, (rate - low, high - rate), fmt="o-", capsize=3,
        color=COARSE_TO_FINE(0.55 + 0.4 * i), label=f"executing {R} of {horizon} steps",
    )  # fmt: skip
  floor = 100 * next(iter(summary["regression_success"]["overall"].values()))["rate"]
  axis.axhline(
    floor, color="gray", ls=":", lw=1.2, label=f"regression MLP, {summary['replan']} steps"
  )
  axis.set(xlabel="tokens K", ylabel="success, % (95 % Wilson)", ylim=(0, 100))
  latency = summary["act_ms"]
  right = axis.twinx()
  right.plot(
    [int(K) for K in latency], [v["p50"] for v in latency.values()], "s--", color="tab:red", lw=1
  )
  right.set_ylabel("milliseconds per chunk (p50)", color="tab:red")
  right.set_ylim(bottom=0)
  axis.set_xticks([int(K) for K in latency])
  axis.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, frameon=False)
  axis.grid(alpha=0.3)
  figure.tight_layout()
  _save(figure, path)


def training(path: pathlib.Path, curves: Mapping[str, list[dict[str, float]]]) -> None:
  """Training loss of every run, and its held-out value: of decoded chunks, inside the range."""
  held_out = {
    "tokenizer": ("train/mse", "validation/mse_"),
    "policy": ("train/loss", "validation/cross_entropy_"),
    "regression": ("train/loss", "validation/chunk_mse"),
  }
  figure, axes = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 3), squeeze=False)
  for axis, (name, rows) in zip(axes.flat, curves.items()):
    train_name, held_name = held_out[name]
    points = [(row["step"], row[train_name]) for row in rows if train_name in row]
    axis.plot(*zip(*points), lw=1, color="tab:gray", label="training")
    points = []
    for row in rows:
      values = [value for key, value in row.items() if key.startswith(held_name)]
      if values:
        points.append((row["step"], np.mean(values)))
    axis.plot(*zip(*points), "o-", ms=4, color=COARSE_TO_FINE(0.7), label="held out")
    axis.set_title(name, fontsize=10)
    axis.set(
      xlabel="step", ylabel="cross-entropy" if name == "policy" else "MSE, normalised actions"
    )
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
  figure.tight_layout()
  _save(figure, path)


def _save(figure: Any, path: pathlib.Path) -> None:
  figure.savefig(path, dpi=140)
  plt.close(figure)
