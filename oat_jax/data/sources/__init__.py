"""Formats that `convert` reads: one module each, named as `--from` names it.

A module offers `open_source(path, options) -> Source`, which lists the episodes without reading
them, and raises FileNotFoundError or ValueError where `path` is not of its format. To add a format,
add a file; modules whose names begin with an underscore are no formats.
"""

from collections.abc import Callable, Iterable, Mapping
import importlib
import pathlib
import pkgutil
import re
from typing import Any, NamedTuple

import numpy as np
from tensorflow_datasets import features as tfds_features

IMAGE_FORMATS = ("jpeg", "png")

# Of `episode_metadata`: where an episode is from. Sources add to it what else they know.
ORIGIN = {"file": tfds_features.Text(), "episode": tfds_features.Text()}


class Options(NamedTuple):
  """What a user may choose; a source ignores what does not concern it.

  language: every episode's instruction, instead of the source's own.
  image_format: "jpeg" or "png"; where empty, encoded images stay as they are and others become
    JPEG of quality 95.
  tolerance: seconds that a video's frame may be off its timestamp.
  """

  language: str = ""
  image_format: str = ""
  tolerance: float = 1e-4


class Key(NamedTuple):
  """Names an episode: its split, its file relative to the source's path, its name in there."""

  split: str
  file: str
  episode: str


class Broken(NamedTuple):
  """A file that cannot be opened at all, and why."""

  file: str
  reason: str


class Source(NamedTuple):
  """An opened source.

  name: a name for the dataset, from the source; not yet in the letters that TFDS allows.
  description: what it is, in a sentence.
  features: tfds's FeaturesDict; where `read` gives records, whatever has its `to_json` and
    `save_config`.
  keys: all episodes in the order in which they are to be read, splits one after another.
  read: returns an episode as `write.serialize` takes it, or its record; its steps may be a
    generator. It raises ValueError, naming step and feature, for content that is bad.
  broken: files whose episodes are unknown.
  left_out: what the dataset will not have of the source, in words.
  """

  name: str
  description: str
  features: Any
  keys: list[Key]
  read: Callable[[Key], Mapping[str, Any] | bytes]
  broken: tuple[Broken, ...] = ()
  left_out: tuple[str, ...] = ()


def formats() -> list[str]:
  """Returns the names of all formats."""
  return [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]


def open_source(name: str, path: pathlib.Path, options: Options) -> Source:
  """Opens `path` as format `name`.

  Raises:
    ValueError: there is no such format, or the content is not of it.
    FileNotFoundError: there is nothing at `path`.
    ImportError: a package is missing that this format needs.
  """
  if name not in formats():
    raise ValueError(f"format is '{name}'; it must be one of: {', '.join(formats())}")
  if options.image_format not in ("", *IMAGE_FORMATS):
    raise ValueError(
      f"image format is '{options.image_format}'; it must be one of: {', '.join(IMAGE_FORMATS)}"
    )
  if not path.exists():
    raise FileNotFoundError(f"{path}: no such file or directory")
  return importlib.import_module(f"{__name__}.{name}").open_source(path, options)


def missing(package: str) -> ImportError:
  """Returns the error to raise where a format's package is not installed."""
  return ImportError(f"{package} is not installed; run pip install 'oat-jax[convert]'")


def natural(name: str) -> list[Any]:
  """A sort key that puts demo_10 behind demo_9."""
  return [(not part.isdigit(), int(part or 0) if part.isdigit() else 0, part)
          for part in re.split(r"(\d+)", name)]  # fmt: skip


def episode(
  observation: Mapping[str, Any],
  action_TA: np.ndarray,
  *,
  language: str | list[str],
  metadata: Mapping[str, Any],
  success: bool = False,
  reward_T: np.ndarray | None = None,
  streams: Mapping[str, Iterable[Any]] | None = None,
) -> dict[str, Any]:
  """Returns an episode in RLDS's structure, after checking it; T steps.

  Args:
    observation: name -> values (T, ...), arrays or lists.
    action_TA: what was done in the steps; stored as float32.
    language: the instruction, or one a step.
    metadata: `episode_metadata`.
    success: whether the last step is terminal.
    reward_T: zeros where None.
    streams: name -> further observations, made one by one when the step is asked for.

  Raises:
    ValueError: no steps, numbers of steps that disagree, NaN or infinite values.
  """
  steps = len(action_TA)
  if action_TA.ndim != 2:
    raise ValueError(f"'action' has shape {list(action_TA.shape)}; it must be (steps, dims)")
  if not steps:
    raise ValueError("the episode has no steps")
  columns = {"action": action_TA.astype(np.float32)}
  columns["reward"] = np.zeros(steps, np.float32) if reward_T is None else reward_T
  columns |= {f"observation/{name}": values for name, values in observation.items()}
  if isinstance(language, list):
    columns["language_instruction"] = np.array(language)
  for name, values in columns.items():
    if len(values) != steps:
      raise ValueError(f"'{name}' has {len(values)} steps, 'action' has {steps}")
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
      bad = np.argwhere(~np.isfinite(values))
      if len(bad):
        step, *dims = bad[0].tolist()
        where = f"step {step}, dimension {dims[0] if len(dims) == 1 else dims}"
        raise ValueError(f"'{name}' is {values[tuple(bad[0])]} at {where}")

  def make_steps():
    iterators = {name: iter(stream) for name, stream in (streams or {}).items()}
    for t in range(steps):
      seen = {name: values[t] for name, values in observation.items()}
      yield {
        "observation": seen | {name: next(frames) for name, frames in iterators.items()},
        "action": columns["action"][t],
        "language_instruction": language if isinstance(language, str) else language[t],
        "is_first": t == 0,
        "is_last": t == steps - 1,
        "is_terminal": success and t == steps - 1,
        "reward": np.float32(columns["reward"][t]),
        "discount": np.float32(1),
      }

  return {"steps": make_steps(), "episode_metadata": dict(metadata)}
