"""The figures of the comparison of policies."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, and none is opened
from matplotlib import pyplot as plt
import numpy as np

from oat_jax.study import compare_figures

Settings = Sequence[Mapping[str, Any]]


def draw(target: pathlib.Path, settings: Settings) -> list[tuple[str, str]]:
  """Draws all that there is something to draw of; returns (caption, file) of each."""
  style = compare_figures.styles(list(dict.fromkeys(each["method"] for each in settings)))
  made = [("success by method", "success.png")]
  _success(target / "success.png", settings, style)
  curves = {
    "tokens": "tokens spent on a chunk, mean",
    "milliseconds": "milliseconds from observation to chunk, batch 1",
  }
  for (name, label), key in zip(curves.items(), ("tokens", "act_ms")):
    if any(each[key] for each in settings):
      made.append((f"success against {name}", f"{name}.png"))
      _curves(target / f"{name}.png", settings, style, label, key)
  return made


def _replans(settings: Settings) -> list[str]:
  return sorted({R for each in settings for R in each["success"]}, key=int)


def _rates(settings: Settings, R: str) -> tuple[np.ndarray, np.ndarray]:
  """Success in %, and the lengths of its interval below and above, (2, n)."""
  of = [each["success"][R]["overall"] for each in settings]
  rate, low, high = (
    100 * np.array([each[name] for each in of]) for name in ("rate", "low", "high")
  )
  return rate, np.stack([rate - low, high - rate])


def _success(path: pathlib.Path, settings: Settings, style: Mapping[str, Any]) -> None:
  """A row for each method, with all its tokens; a panel for each R."""
  most: dict[str, Mapping[str, Any]] = {}
  for each in sorted(settings, key=lambda s: s["num_tokens"]):
    if not each["refinement"]:
      most[each["method"]] = each
  replans, rows = _replans(settings), [most[name] for name in style]
  size = (4.2 * len(replans), 0.8 + 0.36 * len(rows))
  figure, axes = plt.subplots(1, len(replans), figsize=size, squeeze=False, sharey=True)
  for axis, R in zip(axes.flat, replans):
    rate, around = _rates(rows, R)
    for y, each in enumerate(rows):
      look = style[each["method"]]
      axis.errorbar(
        rate[y], y, xerr=around[:, y : y + 1], fmt=look["marker"], color=look["color"], capsize=3
      )
    axis.set(xlim=(0, 100), xlabel="success, % (95 % Wilson)")
    axis.set_title(f"{R} steps executed of each chunk", fontsize=9)
    axis.grid(alpha=0.3, axis="x")
  tokens = lambda s: f" ({s['num_tokens']})" if s["num_tokens"] else ""
  axes[0, 0].set_yticks(range(len(rows)), [each["method"] + tokens(each) for each in rows])
  axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)  # shared; the first method on top
  figure.tight_layout()
  _save(figure, path)


def _curves(
  path: pathlib.Path,
  settings: Settings,
  style: Mapping[str, Any],
  label: str,
  key: str,
) -> None:
  """Success over what it costs: a curve of prefixes for each method; stars: refinement."""
  replans = _replans(settings)
  figure, axes = plt.subplots(
    1, len(replans), figsize=(4.6 * len(replans), 3.9), squeeze=False, sharey=True
  )
  drawn = [each for each in settings if each[key]]
  for axis, R in zip(axes.flat, replans):
    for name in dict.fromkeys(each["method"] for each in drawn):
      for refinement in (False, True):
        own = [s for s in drawn if s["method"] == name and s["refinement"] == refinement]
        if not own:
          continue
        rate, around = _rates(own, R)
        look = dict(style[name])
        if refinement:
          inside = look["color"] if look["ls"] == "-" else "white"  # as the lines differ
          look |= {"marker": "*", "ms": 11, "ls": "", "mfc": inside}
          look["label"] = f"{name}, refinement"
        x = [each[key] for each in own]
        axis.errorbar(x, rate, around, capsize=2, lw=1.3, elinewidth=0.7, **look)
    axis.set_xscale("log")
    ticks = [
      t for t in (0.5, 1, 2, 4, 8, 16, 32, 64, 128) if _inside(t, [each[key] for each in drawn])
    ]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.set(xlabel=label, ylim=(0, 100))
    axis.set_title(f"{R} steps executed of each chunk", fontsize=9)
    axis.grid(alpha=0.3)
  axes[0, 0].set_ylabel("success, % (95 % Wilson)")
  handles, labels = axes[0, 0].get_legend_handles_labels()
  columns = 5
  height = 0.05 * -(-len(labels) // columns)
  figure.legend(handles, labels, loc="upper center", ncol=columns, fontsize=8, frameon=False)
  figure.tight_layout(rect=(0, 0, 1, 0.98 - height))
  _save(figure, path)


def _inside(tick: float, values: Sequence[float]) -> bool:
  return 0.8 * min(values) <= tick <= 1.25 * max(values)


def _save(figure: Any, path: pathlib.Path) -> None:
  figure.savefig(path, dpi=140)
  plt.close(figure)
