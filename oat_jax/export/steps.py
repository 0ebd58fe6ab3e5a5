"""Which checkpoint of a run is exported."""

import json
import os
import pathlib
from typing import Any

from oat_jax.train import checkpoint
from oat_jax.train import config as config_lib
from oat_jax.train import models


def chosen(workdir: str | os.PathLike, step: int | str | None) -> int | None:
  """Returns the step that is meant: a number, `best` of the run, or None for the newest.

  Raises:
    ValueError: it is no number, or the run keeps no best step.
  """
  if step is None or isinstance(step, int):
    return step
  if step == "best":
    return best(workdir)
  if not step.isdigit():
    raise ValueError(f"--step={step}: expected a number, or best")
  return int(step)


def best(workdir: str | os.PathLike) -> int:
  """Returns the kept step whose held-out `config.keep_best` is least.

  Raises:
    ValueError: the run keeps no best step.
  """
  config = config_lib.freeze(models.read_description(workdir)["config"])
  kept = checkpoint.steps(workdir)
  if not config.keep_best:
    raise ValueError(
      f"--step=best: {workdir} has no best step, as config.keep_best is not set; name a step of "
      f"{kept}"
    )
  name = f"validation/{config.keep_best}"
  rows = [row for row in _rows(workdir) if name in row and row["step"] in kept]
  if not rows:
    raise ValueError(f"{workdir}/metrics.jsonl has no '{name}' of a step that was kept: {kept}")
  return min(rows, key=lambda row: row[name])["step"]


def held_out(workdir: str | os.PathLike, step: int) -> dict[str, float]:
  """Returns {metric: value} of the held-out data, as last measured up to a step; {} if never."""
  values: dict[str, float] = {}
  for row in _rows(workdir):
    found = {k: v for k, v in row.items() if k.startswith("validation/")}
    if found and row["step"] <= step:
      values = {name.removeprefix("validation/"): value for name, value in found.items()}
  return values


def _rows(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
