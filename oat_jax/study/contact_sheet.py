"""The contact sheet of a dataset: frames of some episodes, and their actions over time.

Axis letters: L steps (all, or of an episode), E episodes, A action dims, N frames of an episode.
"""

import math
import os
import pathlib
from typing import Any
import warnings

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, and none is opened
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
import numpy as np

from oat_jax.data import images
from oat_jax.study import dataset as dataset_lib

_CURVE, _BAND, _MEAN, _SOFT = "#1f4e79", "#d6e6f2", "#e07b39", "#777777"
_DPI = 110
_MOST_PIXELS = 60_000  # in height; Agg ends at 2**16

# Inches. An episode is a title over its frames, cameras down and steps across, and beside them its
# actions, a panel each.
_WIDTH = 14.0
_MARGIN = 0.3
_HEAD = 0.75
_TITLE = 0.4
_BODY = 1.5  # the least height below the title
_CAMERA = 0.36  # the name, on at most two lines, beside a camera's frames
_STEP = 0.2  # the steps above the first camera's
_TILE = 1.0  # the least height of a frame
_FRAMES = 5.0  # the most width of three frames
_GAP = 0.05  # between frames
_PANEL = 1.1  # the least height of a panel, of which these are left free:
_LEFT, _ABOVE, _BELOW = 0.5, 0.22, 0.2
_SHAPE = 1.4  # width of a panel by its height, as near as can be


def check(path: str | os.PathLike) -> None:
  """Raises ValueError, before anything is read, where `path` cannot become a PNG file."""
  path = pathlib.Path(path)
  if path.suffix.lower() != ".png":
    raise ValueError(f"{path}: the sheet is a PNG file; give a name that ends in .png")
  if path.is_dir():
    raise ValueError(f"{path} is a directory; give the name of a file")


def draw(path: str | os.PathLike, dataset: dataset_lib.Dataset, episodes: int = 4) -> None:
  """Draws episodes, evenly chosen over the split, into a PNG file.

  Args:
    path: the file, replaced if there is one; its directory is made if missing.
    dataset: what to draw.
    episodes: how many, all if there are fewer.

  Raises:
    ValueError: `path` is no PNG file, `episodes` is below 1, or a frame does not decode; the
      message names file, record, step and feature.
    OSError: the file cannot be written.
  """
  check(path)
  if episodes < 1:
    raise ValueError(f"episodes is {episodes}; it must be at least 1")
  count = dataset.episodes.num_episodes
  chosen = np.unique(np.linspace(0, count - 1, min(episodes, count)).round().astype(int)).tolist()
  sheet = _Sheet(dataset, chosen)
  try:
    sheet.draw()
    sheet.save(pathlib.Path(path))
  finally:
    sheet.close()


class _Sheet:
  """A figure whose parts are placed in inches from its top left corner."""

  def __init__(self, dataset: dataset_lib.Dataset, chosen: list[int]):
    self._dataset, episodes = dataset, dataset.episodes
    self._chosen = chosen
    self._bounds = [episodes.starts_E[e : e + 2].tolist() for e in chosen]
    actions, cameras = len(dataset.names["actions"]), len(episodes.cameras)

    aspect = max((w / h for sizes in dataset.sizes.values() for h, w in sizes), default=1.0)
    least = max(_BODY, _STEP + cameras * (_TILE + _GAP))
    # Where it is the width that limits them, frames are not as high as the space for them.
    tile = lambda body: min((body - _STEP) / max(1, cameras) - _GAP, _FRAMES / 3 / aspect)
    best = float("inf")
    for rows in range(1, actions + 1):
      across = -(-actions // rows)
      down = -(-actions // across)
      body = max(least, down * _PANEL)
      used = cameras and _CAMERA + 3 * (tile(body) * aspect + _GAP) + 0.15
      width = (_WIDTH - 2 * _MARGIN - used) / across
      misfit = abs(math.log(width / (body / down) / _SHAPE))
      if misfit < best:
        best = misfit
        self._body, self._across, self._down, self._panel_width = body, across, down, width
        self._tile, self._aspect, self._panels_left = tile(body), aspect, _MARGIN + used
    self._row = _TITLE + self._body + 0.3
    self._height = _HEAD + len(chosen) * self._row
    self._figure = plt.figure(figsize=(_WIDTH, self._height))

  def draw(self) -> None:
    self._header()
    for row, (episode, (first, end)) in enumerate(zip(self._chosen, self._bounds)):
      top = _HEAD + row * self._row
      steps_N = np.unique([0, (end - first - 1) // 2, end - first - 1])
      self._title(top, episode, end - first)
      for i, (name, camera) in enumerate(self._dataset.episodes.cameras.items()):
        y = top + _TITLE + _STEP + i * (self._tile + _GAP)
        self._frames(y, name, _decode(camera, episode, steps_N), steps_N if i == 0 else None)
      self._panels(top + _TITLE, first, end, steps_N)

  def save(self, path: pathlib.Path) -> None:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a language without a font here
        self._figure.savefig(path, dpi=min(_DPI, _MOST_PIXELS / self._height))
    except OSError as error:
      raise OSError(f"{path} cannot be written ({error}); give another file") from error

  def close(self) -> None:
    plt.close(self._figure)

  def _header(self) -> None:
    dataset, episodes = self._dataset, self._dataset.episodes
    counts = f"{episodes.num_episodes:,} episodes, {len(episodes.actions_LA):,} steps"
    self._text(_MARGIN, 0.36, dataset.title, size=15, weight="bold")
    self._text(_MARGIN, 0.6, f"{dataset.split}: {counts}", size=9, color=_SOFT)
    handles = [
      Line2D([], [], color=_CURVE, lw=1.6, label="action by step"),
      Line2D([], [], color=_MEAN, lw=1, ls="--", label="mean of all steps"),
      Patch(color=_BAND, label="q01 to q99 of all steps"),
    ]
    self._figure.legend(
      handles=handles, loc="upper right", ncol=3, fontsize=9, frameon=False, borderaxespad=0,
      borderpad=0, bbox_to_anchor=(1 - _MARGIN / _WIDTH, 1 - 0.25 / self._height),
    )  # fmt: skip

  def _title(self, top: float, episode: int, steps: int) -> None:
    language = self._dataset.episodes.task_names[self._dataset.episodes.tasks_E[episode]]
    language = " ".join(language.split()) or "no language"
    language = language if len(language) <= 125 else f"{language[:122]}..."
    rule = 1 - (top + 0.05) / self._height
    ends = [_MARGIN / _WIDTH, 1 - _MARGIN / _WIDTH]
    self._figure.add_artist(Line2D(ends, [rule, rule], color="#cccccc", lw=0.8))
    length = f"{steps:,} step{'s' * (steps > 1)}"
    self._text(_MARGIN, top + 0.3, f"episode {episode:,}  ({length})", 9, color=_SOFT)
    self._text(_MARGIN + 1.9, top + 0.3, language, size=10.5)

  def _frames(
    self, top: float, camera: str, frames: np.ndarray, steps_N: np.ndarray | None
  ) -> None:
    """Draws a camera's frames, and their steps above them if given."""
    width = self._tile * self._aspect
    camera = f"camera {camera}" if camera.isdigit() else camera
    self._text(
      _MARGIN + 0.14, top + self._tile / 2, _cut(camera, self._tile, 2), 8, rotation=90,
      ha="center", va="center",
    )  # fmt: skip
    for i, frame in enumerate(frames):
      left = _MARGIN + _CAMERA + i * (width + _GAP)
      axis = self._axis(left, top, width, self._tile)
      axis.imshow(frame)
      axis.set_axis_off()
      if steps_N is not None:
        self._text(left + width / 2, top - 0.06, f"step {steps_N[i]:,}", 8, ha="center")

  def _panels(self, top: float, first: int, end: int, steps_N: np.ndarray) -> None:
    """Draws every action dimension over the steps of an episode, those of its frames marked."""
    names, height = self._dataset.names["actions"], self._body / self._down
    for dim, name in enumerate(names):
      row, column = divmod(dim, self._across)
      left = self._panels_left + column * self._panel_width + _LEFT
      width = self._panel_width - _LEFT
      y = top + row * height + _ABOVE
      axis = self._axis(left, y, width, height - _ABOVE - _BELOW)
      self._curve(axis, dim, self._dataset.episodes.actions_LA[first:end, dim])
      if self._dataset.episodes.cameras:
        for step in steps_N:
          axis.axvline(step, color=_SOFT, lw=0.5, ls=":", zorder=1)
      if dim + self._across < len(names):  # the panel below has the numbers
        axis.tick_params(labelbottom=False)
      self._text(left, y - 0.05, _cut(name, width), 8.5, weight="bold")

  def _curve(self, axis: Any, dim: int, x_L: np.ndarray) -> None:
    """Draws one dimension, in the same range in all episodes of the sheet."""
    dataset, statistics = self._dataset, self._dataset.statistics["actions"]
    low, high = float(statistics.q01[dim]), float(statistics.q99[dim])
    axis.axhspan(low, high, color=_BAND, lw=0)
    axis.axhline(float(statistics.mean[dim]), color=_MEAN, lw=0.9, ls="--")
    axis.plot(x_L, color=_CURVE, lw=1.4, marker="o" if len(x_L) == 1 else None, ms=4)
    drawn = [dataset.episodes.actions_LA[first:end, dim] for first, end in self._bounds]
    low, high = min(low, *map(np.min, drawn)), max(high, *map(np.max, drawn))
    above = 0.08 * (high - low) or 1e-3 * max(1.0, abs(low))
    beside = 0.01 * (len(x_L) - 1) or 0.5
    axis.set(xlim=(-beside, len(x_L) - 1 + beside), ylim=(low - above, high + above))
    axis.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True, min_n_ticks=1))
    axis.yaxis.set_major_locator(ticker.MaxNLocator(3, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.5g}"))
    axis.tick_params(labelsize=7, length=2, pad=2, color=_SOFT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#bbbbbb")

  def _axis(self, left: float, top: float, width: float, height: float) -> Any:
    sizes = (
      left / _WIDTH,
      1 - (top + height) / self._height,
      width / _WIDTH,
      height / self._height,
    )
    return self._figure.add_axes(sizes)

  def _text(self, x: float, y: float, text: str, size: float, **how: Any) -> None:
    """Writes text on the baseline `y`; a dollar is a dollar."""
    self._figure.text(x / _WIDTH, 1 - y / self._height, text, size=size, parse_math=False, **how)


def _decode(camera: images.Camera, episode: int, steps_N: np.ndarray) -> np.ndarray:
  """Returns frames of an episode in the size that it has them."""
  first = int(camera.starts_E[episode])
  frame = camera.records.read(episode, *camera.spans_L2[first].tolist())
  return camera._replace(size=images.header(frame)[:2])(first + steps_N)


def _cut(text: str, width: float, lines: int = 1) -> str:
  """Breaks and cuts text of 8 points to a width in inches."""
  letters = max(4, int(width / 0.075))
  if len(text) > lines * letters:
    text = f"{text[: lines * letters - 2]}.."
  return "\n".join(text[i : i + letters] for i in range(0, len(text), letters))
