"""The figures of a scaling law's report."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, and none is opened
from matplotlib import pyplot as plt
from matplotlib import ticker
import numpy as np

from oat_jax.scaling import allocation
from oat_jax.scaling import power_law
from oat_jax.scaling.law_table import Rows

_LOSS = {
  "mse": "held-out MSE, normalised actions",
  "cross_entropy": "held-out cross-entropy, nats per token",
  "chunk_mse": "held-out MSE of chunks",
}
_BLUE, _ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito, which colour-blind readers tell apart


def short(value: float) -> str:
  """Returns e.g. 62.5k for 62,500."""
  for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if value >= size:
      return f"{value / size:.3g}{unit}"
  return f"{value:.3g}"


def compute(path: pathlib.Path, rows: Rows, fitted: power_law.Fit, cost: allocation.Cost) -> None:
  """Loss against FLOPs: every run with its way, the lowest of them all, the law's best."""
  figure, axis = plt.subplots(figsize=(7.6, 4.8))
  sizes = _levels(rows, "parameters")
  K = rows["K"][0]
  for _, colour, of_R, _ in sizes:
    for run in dict.fromkeys(rows["run"][of_R]):
      way = (rows.history["run"] == run) & (rows.history["K"] == K)
      axis.plot(
        rows.history["flops"][way], rows.history["loss"][way], color=colour, lw=0.7, alpha=0.3
      )
    axis.plot(
      rows["flops"][of_R], rows["loss"][of_R], "o", color=colour, ms=5, mec="white", mew=0.5
    )
  every = np.isfinite(rows.history["loss"]) & (rows.history["K"] == K)
  order = np.argsort(rows.history["flops"][every])
  flops_R, loss_R = (rows.history[name][every][order] for name in ("flops", "loss"))
  lowest_R = np.minimum.accumulate(loss_R)
  axis.step(flops_R, lowest_R, where="post", color="black", lw=1.3, label="lowest of all runs")
  if not {*fitted.names} & {*fitted.not_identified}:
    low, high = rows["flops"].min(), rows["flops"].max()
    flops_C = np.geomspace(low, 10 * high, 80)
    best = allocation.optimum(fitted.law, cost, flops_C).loss
    band = fitted.interval(allocation.optimum(fitted.laws, cost, flops_C).loss)
    seen = flops_C <= high
    axis.fill_between(flops_C, *band, color=_ORANGE, alpha=0.15, lw=0)
    axis.plot(flops_C[seen], best[seen], color=_ORANGE, lw=1.8, label="the law's best use (95 %)")
    axis.plot(flops_C[~seen], best[~seen], color=_ORANGE, lw=1.8, ls="--", label="beyond the runs")
  axis.set(xscale="log", xlabel="training FLOPs", ylabel=_loss(rows))
  for _, colour, _, name in sizes:
    axis.plot([], [], "o", color=colour, ms=5, label=name)
  axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
  _finish(figure, [axis], path)


def variables(path: pathlib.Path, rows: Rows, fitted: power_law.Fit) -> None:
  """Loss against parameters, a curve for each amount of data, and the other way round."""
  figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.6), sharey=True)
  pair = ("parameters", rows.data)
  ends: list[list[tuple[float, str, Any]]] = [[], []]
  for t, axis in enumerate(axes):
    along, across = pair[t], pair[1 - t]
    x_R = rows[along]
    line = np.geomspace(x_R.min() / 1.25, x_R.max() * 1.25, 60)
    for value, colour, of_R, name in _levels(rows, across):
      points = np.stack([line, np.full_like(line, value)][:: 1 if t == 0 else -1], axis=1)
      curve, band = fitted.law(points), fitted.interval(fitted.laws(points))
      axis.fill_between(line, *band, color=colour, alpha=0.12, lw=0)
      axis.plot(line, curve, color=colour, lw=1.4)
      axis.plot(x_R[of_R], rows["loss"][of_R], "o", color=colour, ms=5, mec="white", mew=0.5)
      ends[t].append((curve[-1], name, colour))
    axis.set(xscale="log", xlabel=_counted(along))
    _ticks(axis, _levels(rows, along))
  for axis, each in zip(axes, ends):  # once both have drawn, for they share their heights
    _label(axis, each)
  axes[0].set_ylabel(_loss(rows))
  _finish(figure, axes, path, title="points: runs; curves: the law, shaded: its 95 %")


def residuals(path: pathlib.Path, rows: Rows, fitted: power_law.Fit) -> None:
  """What the law leaves, in %: against its prediction, by size and by data."""
  figure, axes = plt.subplots(1, 3, figsize=(11.4, 3.7), sharey=True)
  left_R = 100 * np.expm1(fitted.residuals())
  jitter_R = np.random.default_rng(0).uniform(-0.12, 0.12, len(left_R))
  sizes = _levels(rows, "parameters")
  predicted_R = fitted.law(fitted.x_RV)
  for _, colour, of_R, _ in sizes:
    axes[0].plot(predicted_R[of_R], left_R[of_R], "o", color=colour, ms=5, mec="white", mew=0.5)
  axes[0].set(xscale="log", xlabel="the law's loss", ylabel="measured over fitted, %")
  for axis, along in zip(axes[1:], ("parameters", rows.data)):
    for i, (_, colour, of_R, _) in enumerate(_levels(rows, along)):
      axis.plot(i + jitter_R[of_R], left_R[of_R], "o", color=colour, ms=5, mec="white", mew=0.5)
      axis.plot([i - 0.25, i + 0.25], 2 * [left_R[of_R].mean()], color="black", lw=1.6)
    axis.set_xticks(range(len(_levels(rows, along))), [each[3] for each in _levels(rows, along)])
    axis.set_xlabel(_counted(along))
  for axis in axes:
    axis.axhline(0, color="black", lw=0.8)
    axis.axhspan(-100 * fitted.noise, 100 * fitted.noise, color="gray", alpha=0.12, lw=0)
    axis.grid(alpha=0.3, lw=0.5, axis="y")
    axis.tick_params(labelsize=8)
  _plain(axes[0].xaxis, axes[0].get_xlim())
  figure.suptitle("shaded: one standard deviation; bars: means", fontsize=9)
  _save(figure, path)


def frontier(path: pathlib.Path, rows: Rows, fitted: power_law.Fit, cost: allocation.Cost) -> None:
  """The best parameters and data for a budget, with the runs that were measured."""
  figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.4))
  low, high = rows["flops"].min(), rows["flops"].max()
  flops_C = np.geomspace(low / 3, high * 30, 80)
  best = allocation.optimum(fitted.law, cost, flops_C)
  many = allocation.optimum(fitted.laws, cost, flops_C)
  seen = (flops_C >= low) & (flops_C <= high)
  for axis, name, measured in zip(axes, ("parameters", "data"), ("parameters", rows.data)):
    band, value = fitted.interval(getattr(many, name)), getattr(best, name)
    exponent = float(getattr(best, f"{name}_exponent"))
    between = fitted.interval(getattr(many, f"{name}_exponent"))
    axis.fill_between(flops_C, *band, color=_ORANGE, alpha=0.18, lw=0)
    axis.plot(flops_C, value, color=_ORANGE, lw=1.6, ls="--")
    axis.plot(flops_C[seen], value[seen], color=_ORANGE, lw=2.2)
    axis.plot(rows["flops"], rows[measured], "o", color="gray", ms=4, alpha=0.7, mew=0)
    axis.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=_counted(measured))
    axis.set_title(
      f"grows as $C^{{{exponent:.2f}}}$ ({between[0]:.2f} to {between[1]:.2f})", fontsize=10
    )
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short(value)))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.grid(alpha=0.3, lw=0.5)
    axis.tick_params(labelsize=8)
  figure.suptitle(
    "line: the law's optimum, dashed beyond the runs (dots); shaded: 95 %", fontsize=9
  )
  _save(figure, path)


def bits(path: pathlib.Path, rows: Rows, fitted: power_law.Fit | None) -> None:
  """A tokenizer's error against the bits of its prefix, at all the data: a curve for each size."""
  figure, axis = plt.subplots(figsize=(6.6, 4.4))
  full = rows[rows.data] > 0.999 * rows[rows.data].max()
  line = np.geomspace(rows["bits"].min(), rows["bits"].max(), 60)
  ends = []
  for value, colour, of_R, name in _levels(rows, "parameters"):
    shown = of_R & full
    if not shown.any():
      continue
    axis.plot(
      rows["bits"][shown], rows["loss"][shown], "o", color=colour, ms=5, mec="white", mew=0.5
    )
    end = np.exp(np.log(rows["loss"][shown & (rows["bits"] > 0.999 * line[-1])]).mean())
    if fitted is not None:
      fixed = (np.full_like(line, value), np.full_like(line, rows[rows.data].max()))
      curve = fitted.law(np.stack([*fixed, line], axis=1))
      axis.plot(line, curve, color=colour, lw=1.4)
      end = curve[-1]
    ends.append((end, name, colour))
  axis.set(xscale="log", xlabel="bits of the prefix", ylabel=_loss(rows))
  axis.set_xticks(np.unique(rows["bits"]))
  axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.0f}"))
  axis.xaxis.set_minor_locator(ticker.NullLocator())
  _label(axis, ends)
  _finish(figure, [axis], path)


def exponents(path: pathlib.Path, fits: Mapping[int, power_law.Fit]) -> None:
  """The exponents by the length of the prefix; hollow where the data do not tell them."""
  figure, axis = plt.subplots(figsize=(6.6, 3.8))
  names = next(iter(fits.values())).names
  for t, (name, colour, marker) in enumerate(zip(names, (_BLUE, _ORANGE), "os")):
    for K, fitted in fits.items():
      low, high = (each[t] for each in fitted.interval(fitted.laws.alpha_V))
      at, told = K + 0.12 * (t - 0.5), name not in fitted.not_identified
      axis.plot([at, at], [low, high], color=colour, lw=1.4, alpha=1 if told else 0.35)
      axis.plot(
        at, fitted.law.alpha_V[t], marker, color=colour, mfc=colour if told else "white", ms=6
      )
    axis.plot([], [], marker, color=colour, ms=6, label=f"of {name}")
  largest = max(float(fitted.law.alpha_V.max()) for fitted in fits.values())
  axis.set(xlabel="tokens K", ylabel="exponent, 95 %", xticks=list(fits), ylim=(0, 2 * largest))
  axis.grid(alpha=0.3, lw=0.5)
  axis.tick_params(labelsize=8)
  axis.legend(fontsize=8, frameon=False, title="hollow: not identified", title_fontsize=8)
  _save(figure, path)


def _levels(rows: Rows, name: str) -> list[tuple[float, Any, np.ndarray, str]]:
  """Returns (value, colour, its rows, label) of each value of a column, from light to dark."""
  values = power_law.values_of(rows[name])
  found = []
  for i, value in enumerate(values):
    of_R = np.abs(np.log(rows[name] / value)) < 1e-3
    sizes = set(rows["size"][of_R]) if name == "parameters" else set()
    label = sizes.pop() if len(sizes) == 1 and "" not in sizes else short(value)
    colour = plt.get_cmap("viridis_r")(0.15 + 0.8 * i / max(1, len(values) - 1))
    found.append((float(value), colour, of_R, label))
  return found


def _counted(name: str) -> str:
  return {"windows": "different training windows", "examples": "examples seen"}.get(name, name)


def _loss(rows: Rows) -> str:
  return _LOSS.get(rows.metric, rows.metric)


def _ticks(axis: Any, levels: Sequence[tuple[float, Any, np.ndarray, str]]) -> None:
  """Puts a tick at each value that was run; of many, at some."""
  shown = levels[:: -(-len(levels) // 8)]
  axis.set_xticks([each[0] for each in shown], [each[3] for each in shown])
  axis.xaxis.set_minor_locator(ticker.NullLocator())


def _label(axis: Any, ends: Sequence[tuple[float, str, Any]]) -> None:
  """Writes each curve's name behind its end, none upon another. Call before `_finish`."""
  axis.set_yscale("log")
  low, high = np.log(axis.get_ylim())
  heights, least = [], 0.055
  for value, name, colour in sorted(ends):
    height = (np.log(value) - low) / (high - low)
    heights.append(max(height, heights[-1] + least) if heights else height)
    axis.text(
      1.015, heights[-1], name, color=colour, fontsize=8, va="center", transform=axis.transAxes
    )


def _finish(figure: Any, axes: Sequence[Any], path: pathlib.Path, title: str = "") -> None:
  for axis in axes:
    axis.set_yscale("log")
    _plain(axis.yaxis, axis.get_ylim())
    axis.grid(alpha=0.3, lw=0.5)
    axis.tick_params(labelsize=8)
  if title:
    figure.suptitle(title, fontsize=9)
  _save(figure, path)


def _plain(axis: Any, limits: tuple[float, float]) -> None:
  """Ticks of a logarithmic axis that spans little have plain numbers, some in a decade."""
  wide = limits[1] / limits[0] > 30
  axis.set_major_locator(ticker.LogLocator(subs=(1,) if wide else (1, 1.5, 2, 3, 4, 5, 7)))
  axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
  axis.set_minor_formatter(ticker.NullFormatter())


def _save(figure: Any, path: pathlib.Path) -> None:
  figure.tight_layout()
  figure.savefig(path, dpi=140)
  plt.close(figure)
