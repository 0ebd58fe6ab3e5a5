"""The figures of the comparison of tokenizers."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, and none is opened
from matplotlib import pyplot as plt
from matplotlib import ticker
import numpy as np

from oat_jax.study.figures import COARSE_TO_FINE
from oat_jax.tokenizers import analysis
from oat_jax.train import models

# Okabe and Ito's colours, which colour-blind readers tell apart: one a family of methods, which is
# the name up to "_". Its members differ in marker and line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")
_FEW = 32  # more tokens than this are not drawn over K
_CHUNKS, _ROWS = 3, 512  # drawn, and among how many they are chosen


def draw(target: pathlib.Path, methods: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Draws the figures that need measurements only; returns (caption, file) of each."""
  style = styles(list(methods))
  made = [("rate and distortion", "rate_distortion.png"), ("error by prefix", "prefixes.png")]
  _rate_distortion(target / made[0][1], methods, style)
  few = {name: each for name, each in methods.items() if each["facts"]["max_tokens"] <= _FEW}
  if few:
    _prefixes(target / made[1][1], few, style)
  modelled = {name: each for name, each in methods.items() if each["model"]}
  if modelled:
    made.append(("modelability", "modelability.png"))
    _modelability(target / made[2][1], modelled, style)
  return made if few else [each for each in made if each[1] != "prefixes.png"]


def styles(names: list[str]) -> dict[str, dict[str, Any]]:
  families = list(dict.fromkeys(name.partition("_")[0] for name in names))
  styles = {}
  for f, family in enumerate(families):
    members = [name for name in names if name.partition("_")[0] == family]
    for i, name in enumerate(members):
      styles[name] = {
        "color": _COLOURS[f % len(_COLOURS)],
        "marker": _MARKERS[(f + i) % len(_MARKERS)],
        "ls": _LINES[i % len(_LINES)],
        "label": name,
      }
  return styles


def _rate_distortion(
  path: pathlib.Path, methods: Mapping[str, Any], style: Mapping[str, Any]
) -> None:
  """Error over bits, a curve over its budgets for each method and a mark where it ends."""
  figure, axis = plt.subplots(figsize=(7.6, 4.4))
  for name, each in methods.items():
    at = np.array(each["facts"]["budgets"]) - 1
    bits, mse = (np.array(each["mean"]["prefixes"][key])[at] for key in ("bits", "mse"))
    few = len(bits) <= _FEW
    axis.plot(bits, mse, lw=1.4, ms=4, alpha=0.9, markevery=None if few else [-1], **style[name])
    axis.plot(bits[-1:], mse[-1:], marker=style[name]["marker"], color=style[name]["color"], ms=9)
  _log_bits(axis)
  axis.set(xlabel="bits per chunk", ylabel="held-out MSE, normalised actions")
  axis.set_title("large marks: all tokens; curves: their prefixes", fontsize=9)
  _finish(figure, axis, path)


def _prefixes(path: pathlib.Path, methods: Mapping[str, Any], style: Mapping[str, Any]) -> None:
  """Error over the budgets, mean and range over seeds."""
  figure, axis = plt.subplots(figsize=(7.6, 4.4))
  most = max(each["facts"]["max_tokens"] for each in methods.values())
  for name, each in methods.items():
    budgets = np.array(each["facts"]["budgets"])
    mse_SN = np.array([figures["prefixes"]["mse"] for figures in each["by_seed"].values()])
    mse_SK = mse_SN[:, budgets - 1]
    axis.plot(budgets, mse_SK.mean(0), lw=1.4, ms=5, **style[name])
    axis.fill_between(
      budgets, mse_SK.min(0), mse_SK.max(0), color=style[name]["color"], alpha=0.15, lw=0
    )
  axis.set(xlabel="tokens K", ylabel="held-out MSE, normalised actions")
  axis.set_title("mean over seeds; shaded: lowest to highest", fontsize=9)
  axis.xaxis.set_major_locator(ticker.MaxNLocator(min(most, 16), integer=True, min_n_ticks=1))
  _finish(figure, axis, path)


def _modelability(path: pathlib.Path, methods: Mapping[str, Any], style: Mapping[str, Any]) -> None:
  """What a small policy makes of the tokens: error of its samples over its bits per chunk."""
  figure, axis = plt.subplots(figsize=(7.6, 4.4))
  for name, each in methods.items():
    bits, mse = (each["model"]["mean"][key] for key in ("bits", "sampled_mse"))
    own = each["mean"]["mse"]
    how = style[name] | {"ls": "none"}
    axis.plot([bits, bits], [own, mse], color=how["color"], lw=0.8, alpha=0.5)
    axis.plot(bits, mse, ms=8, **how)
    axis.plot(bits, own, marker="_", ms=9, color=how["color"])
  _log_bits(axis)
  axis.set(
    xlabel="bits per chunk under the policy, held out", ylabel="held-out MSE, normalised actions"
  )
  title = "marks: chunks sampled from the policy; bars: the tokenizer's own error"
  axis.set_title(title, fontsize=9)
  _finish(figure, axis, path)


def table(path: pathlib.Path, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  """Draws a table of text, every column as wide as its longest cell."""
  lines = [heads, *rows]
  widths = [max(len(line[i]) for line in lines) + 2 for i in range(len(heads))]
  size = (0.085 * sum(widths), 0.27 * len(lines) + 0.1)
  figure, axis = plt.subplots(figsize=size)
  axis.set_axis_off()
  drawn = axis.table(
    [list(row) for row in rows],
    colLabels=list(heads),
    colWidths=[width / sum(widths) for width in widths],
    cellLoc="right",
    bbox=(0, 0, 1, 1),  # pyright: ignore[reportArgumentType]
    edges="horizontal",
  )
  drawn.auto_set_font_size(False)
  drawn.set_fontsize(9)
  for (line, column), cell in drawn.get_celld().items():
    cell.set_linewidth(0.8 if line == 0 else 0.2)
    cell.set_text_props(ha="left" if column == 0 else "right", weight="bold" if not line else None)
  figure.subplots_adjust(0.01, 0.02, 0.99, 0.98)
  figure.savefig(path, dpi=140)
  plt.close(figure)


def chunks(
  path: pathlib.Path, trained: Mapping[str, models.Trained], windows: Any
) -> tuple[str, str]:
  """Held-out chunks decoded from 1, 2, 4, ... tokens, a column a tokenizer; as `draw` returns.

  A row is a chunk, in the dimension that moves most; of those with the most motion, since a still
  one shows nothing, they are those of low, median and high error with the first tokenizer.
  """
  batch = windows(np.linspace(0, len(windows) - 1, min(_ROWS, len(windows))).astype(int))
  truth_BCA, mask_BC = batch["actions"], batch["action_mask"]
  decoded = {name: _decoded(each, batch) for name, each in trained.items()}
  whole_B = mask_BC.all(1) if mask_BC.all(1).any() else np.ones(len(mask_BC), bool)
  motion_B = np.ptp(truth_BCA, axis=1).sum(1)
  moving = np.flatnonzero(whole_B & (motion_B >= np.quantile(motion_B[whole_B], 0.8)))
  finest_BCA = list(next(iter(decoded.values())).values())[-1]
  error_B = np.square(finest_BCA - truth_BCA).sum((1, 2))
  ranked = moving[np.argsort(error_B[moving])]
  rows = ranked[np.unique(np.linspace(0, len(ranked) - 1, _CHUNKS + 2)[1:-1].astype(int))]
  size = (4.2 * len(trained), 2.3 * len(rows) + 0.6)
  figure, axes = plt.subplots(
    len(rows), len(trained), figsize=size, squeeze=False, sharex=True, sharey="row"
  )
  shown = sorted({K for by_k in decoded.values() for K in by_k})
  colours = {
    K: COARSE_TO_FINE(0.1 + 0.85 * i / max(1, len(shown) - 1)) for i, K in enumerate(shown)
  }
  for i, row in enumerate(rows):
    dim = int(np.argmax(np.ptp(truth_BCA[row], axis=0)))
    for axis, (name, by_k) in zip(axes[i], decoded.items()):
      axis.plot(truth_BCA[row, :, dim], color="black", lw=2.8, alpha=0.35, label="demonstrated")
      for K, decoded_BCA in by_k.items():
        axis.plot(
          decoded_BCA[row, :, dim], color=colours[K], lw=1.4, label=f"{K} token{'s' * (K > 1)}"
        )
      axis.tick_params(labelsize=7)
      if i == 0:
        axis.set_title(name, fontsize=10)
      if i == len(rows) - 1:
        axis.set_xlabel("step of the chunk", fontsize=8)
    axes[i, 0].set_ylabel(f"action dimension {dim}", fontsize=8)
  entries = {}
  for axis in axes.flat:
    entries |= dict(zip(*reversed(axis.get_legend_handles_labels())))
  figure.legend(
    entries.values(), entries, loc="upper center", ncol=len(entries), fontsize=8, frameon=False
  )
  figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / size[1]))
  figure.savefig(path, dpi=140)
  plt.close(figure)
  return "chunks, coarse to fine", path.name


def _decoded(trained: models.Trained, batch: Mapping[str, Any]) -> dict[int, np.ndarray]:
  """Returns {K: actions_BCA} for powers of two up to N, and N."""
  tokenizer = trained.tokenizer
  assert tokenizer is not None
  N, dataset_B = tokenizer.max_tokens, batch["dataset"]
  tokens_BN = tokenizer.encode(trained.params, batch["actions"], batch["action_mask"], dataset_B)
  decode = lambda K: np.asarray(tokenizer.decode(trained.params, tokens_BN, K, dataset_B))
  return {K: decode(K) for K in analysis.powers_of_two(N)}


def _log_bits(axis: Any) -> None:
  axis.set_xscale("log", base=2)
  axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda bits, _: f"{bits:g}"))


def _finish(figure: Any, axis: Any, path: pathlib.Path) -> None:
  """Makes the errors' axis logarithmic, adds grid and legend, and writes the file."""
  axis.set_yscale("log")
  low, high = axis.get_ylim()
  plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
  wide = high / low > 5  # else every tick, not those of 1, 2 and 5 only, has its number
  axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if wide else (1,)))
  axis.yaxis.set_major_formatter(plain)
  axis.yaxis.set_minor_formatter(ticker.NullFormatter() if wide else plain)
  axis.grid(alpha=0.3, lw=0.5, which="major" if wide else "both")
  axis.tick_params(labelsize=8)
  axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
  figure.tight_layout()
  figure.savefig(path, dpi=140)
  plt.close(figure)
