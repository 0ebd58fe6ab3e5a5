"""Strips of frames: what a success and a failure of a policy look like.

Axis letters: N frames of an episode.
"""

from collections.abc import Sequence
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL import PngImagePlugin

from oat_jax.envs import env as env_lib
from oat_jax.evaluate import evaluation as evaluation_lib
from oat_jax.evaluate import rollout
from oat_jax.evaluate import video

ENDINGS = {"success": True, "failure": False}
MOMENTS = 8
_SHOWN = 320  # pixels of a frame
_TRIES = 2  # episodes of each ending: one may end otherwise when it is acted again
_KEY = "oat_jax"  # of the text in a PNG that says what it shows


class Strip(NamedTuple):
  """Frames of one episode of a report."""

  row: rollout.Episode
  frames: list[Image.Image]
  steps: list[int]  # of the frames


def make(
  target: pathlib.Path, evaluation: evaluation_lib.Evaluation, setting: evaluation_lib.Setting
) -> dict[str, Strip]:
  """Returns {"success", "failure": strip} of a known setting, from `target`/*.png or made anew.

  Both are of one task, the one with the most of its rarer ending: in it the success of median
  length and the first failure. An ending that no episode has, or none again, is left out. A file is
  used again while model, versions, view and the episode's row are the same.

  Raises:
    RuntimeError, ImportError: nothing can be rendered here.
  """
  rows = evaluation.known[setting]
  suite = env_lib.suite(evaluation.facts["suite"])
  facts = {name: evaluation.facts[name] for name in ("model", "versions")}
  facts["view"] = [suite.video_camera, *suite.video_view]
  found = {name: _read(target / f"{name}.png", facts, rows) for name in ENDINGS}
  if any(strip is None and _any(rows, ENDINGS[name]) for name, strip in found.items()):
    left, top, side = suite.video_view
    pixels = round(_SHOWN / side)
    frames = evaluation.replay(candidates(rows), MOMENTS, pixels)
    ends = {row.success: row for row in reversed(frames)}  # the best of each ending
    for name, success in ENDINGS.items():
      path = target / f"{name}.png"
      path.unlink(missing_ok=True)
      if success in ends:
        row, x, y = ends[success], round(left * pixels), round(top * pixels)
        cut = [frame[y : y + _SHOWN, x : x + _SHOWN] for frame in frames[row]]
        _write(path, facts | {"row": row._asdict()}, cut)
      found[name] = _read(path, facts, rows)
  return {name: strip for name, strip in found.items() if strip is not None}


def candidates(rows: Sequence[rollout.Episode]) -> list[rollout.Episode]:
  """Returns the episodes to be shown, the best of each ending first."""
  tasks = list(dict.fromkeys(row.task for row in rows))
  of = lambda task, success: [row for row in rows if (row.task, row.success) == (task, success)]
  rarer = {task: min(len(of(task, True)), len(of(task, False))) for task in tasks}
  task = max(tasks, key=lambda task: rarer[task])
  successes = of(task, True) or [row for row in rows if row.success]
  failures = of(task, False) or [row for row in rows if not row.success]
  median = np.median([row.steps for row in successes]) if successes else 0
  successes.sort(key=lambda row: abs(row.steps - median))
  return successes[:_TRIES] + failures[:_TRIES]


def _any(rows: Sequence[rollout.Episode], success: bool) -> bool:
  return any(row.success == success for row in rows)


def _write(path: pathlib.Path, said: dict[str, Any], frames: Sequence[np.ndarray]) -> None:
  """Writes frames side by side; the file is whole or not there."""
  strip = Image.fromarray(np.concatenate(frames, axis=1))
  text = PngImagePlugin.PngInfo()
  text.add_text(_KEY, json.dumps(said))
  temporary = path.with_suffix(".partial")
  strip.save(temporary, "png", pnginfo=text)
  temporary.replace(path)


def _read(
  path: pathlib.Path, facts: dict[str, Any], rows: Sequence[rollout.Episode]
) -> Strip | None:
  """Returns the strip of a file; None where there is none, or one of something else."""
  try:
    with Image.open(path) as strip:
      said = json.loads(strip.info[_KEY])
      row = rollout.Episode(**said.pop("row"))
      steps = video.moments(row.steps, MOMENTS)
      if said != facts or row not in rows or strip.size != (len(steps) * _SHOWN, _SHOWN):
        return None
      cut = lambda i: strip.crop((i * _SHOWN, 0, (i + 1) * _SHOWN, _SHOWN)).convert("RGB")
      return Strip(row, [cut(i) for i in range(len(steps))], steps)
  except (OSError, KeyError, TypeError, ValueError):
    return None
