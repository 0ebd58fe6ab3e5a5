"""One record, a tf.train.Example, becomes one episode's arrays.

A record stores its steps feature by feature, all steps of a feature in one flat list, so an
episode's actions are one reshape away, and a frame nobody asks for costs no more than its length.

Axis letters: L steps of the episode, A action dims, S state dims, D language dims.
"""

import math
import re
from typing import Any, NamedTuple
import zlib

import numpy as np

from oat_jax.data import directory as directory_lib
from oat_jax.data import images
from oat_jax.data import standardize
from oat_jax.data import tfrecord

Spans = dict[str, tfrecord.Span]


class Wanted(NamedTuple):
  """The features to read, found in a directory's features.json."""

  standard: standardize.Standard
  numeric: dict[str, directory_lib.Feature]  # by the path that the standard uses
  cameras: dict[str, directory_lib.Feature]  # by the camera's name
  task: directory_lib.Feature | None
  language: directory_lib.Feature | None = None


class Episode(NamedTuple):
  """What is kept of a record."""

  actions_LA: np.ndarray  # float32, dataset units
  states_LS: np.ndarray  # float32, dataset units
  tasks: list[str]  # one, or one a step
  spans_L2: dict[str, np.ndarray]  # by camera, uint32: first byte within the payload, length
  sizes: dict[str, tuple[int, int]]  # by camera: height, width
  language_LD: np.ndarray | None = None  # float32; one row where the episode has one embedding


def wanted(
  directory: directory_lib.Directory, standard: standardize.Standard, language: str = ""
) -> Wanted:
  """Finds features in a directory; ValueError lists what it has instead.

  Args:
    directory: the dataset.
    standard: what becomes actions, states, tasks and frames.
    language: the numeric feature that embeds the instruction; none if "".
  """
  # A camera without a feature is black in every frame: this dataset lacks it, others have it.
  cameras = {name: directory.find(path, "image") for name, path in standard.cameras if path}
  for name, feature in cameras.items():
    if not re.fullmatch(r"\w+", name):
      raise ValueError(f"camera name '{name}': write letters, digits and underscores")
    if feature.dtype != "uint8" or feature.shape[-1:] not in ((1,), (3,)):
      raise ValueError(
        f"{directory.path / 'features.json'}: '{feature.name}' is {feature.dtype}"
        f"{list(feature.shape)}; camera '{name}' needs uint8 with 1 or 3 channels"
      )
  return Wanted(
    standard,
    {path: directory.find(path, "numeric") for path in standard.features},
    cameras,
    directory.find(standard.task, "text") if standard.task else None,
    directory.find(language, "numeric") if language else None,
  )


def parse(payload: Any, features: Wanted) -> Episode:
  """Reads one record.

  Raises:
    ValueError: it is no tf.train.Example, misses a feature, has no steps, its features disagree in
      their number of steps, a number is NaN or infinite, or an image's header is wrong; the message
      names feature and step.
  """
  leaves = [*features.numeric.values(), *features.cameras.values()]
  leaves += [leaf for leaf in (features.task, features.language) if leaf]
  spans = tfrecord.parse_example(payload, {name for leaf in leaves for name in _stored(leaf)})
  values = {path: _values(payload, spans, leaf) for path, leaf in features.numeric.items()}
  lengths = {leaf.name: len(values[path]) for path, leaf in features.numeric.items()}
  tasks, language_LD = [""], None
  if features.task:
    tasks = _texts(payload, spans, features.task.name)
    lengths |= _length(features.task, len(tasks), "texts")
  if features.language:
    language_LD = _values(payload, spans, features.language)
    lengths |= _length(features.language, len(language_LD), "embeddings")
  frames = {}
  for camera, leaf in features.cameras.items():
    frames[camera] = tfrecord.bytes_spans(payload, *_bytes(spans, leaf)[1:])
    lengths[leaf.name] = len(frames[camera][0])
  if len(set(lengths.values())) > 1:
    raise ValueError(f"features disagree in their number of steps: {lengths}")
  if not max(lengths.values()):
    raise ValueError("the episode has no steps; remove it from the dataset")

  sizes, spans_L2 = {}, {}
  for camera, (starts, sizes_L) in frames.items():
    leaf = features.cameras[camera]
    try:
      sizes[camera] = images.inspect(payload, starts, sizes_L)
    except ValueError as error:
      raise ValueError(f"'{leaf.name}': {error}") from error
    if any(want not in (None, got) for want, got in zip(leaf.shape, sizes[camera])):
      height, width = sizes[camera]
      raise ValueError(
        f"'{leaf.name}': the images are {height}x{width}; features.json says {list(leaf.shape)}"
      )
    spans_L2[camera] = np.array([starts, sizes_L], np.uint32).T
  actions_LA, states_LS = features.standard.convert(values)
  for name, array in (("actions", actions_LA), ("states", states_LS)):
    if name and not np.isfinite(array).all():
      step, dim = np.argwhere(~np.isfinite(array))[0].tolist()
      raise ValueError(
        f"standardised {name} are {array[step, dim]} at step {step}, dimension {dim}"
      )
  return Episode(actions_LA, states_LS, tasks, spans_L2, sizes, language_LD)


def _length(leaf: directory_lib.Feature, count: int, what: str) -> dict[str, int]:
  """Returns the number of steps that a feature says; {} for an episode's own, which has one."""
  if leaf.name.startswith("steps/"):
    return {leaf.name: count}
  if count != 1:
    raise ValueError(f"'{leaf.name}' holds {count} {what}; an episode has one")
  return {}


def _values(
  payload: Any, spans: dict[str, tfrecord.Span], leaf: directory_lib.Feature
) -> np.ndarray:
  """Returns float32 (steps, values) of one numeric feature."""
  width = math.prod(size or 1 for size in leaf.shape)
  if leaf.encoding in ("bytes", "zlib"):
    values = _unpack(payload, spans, leaf)
  else:
    kind, start, end = _span(spans, _stored(leaf)[0])
    if kind == tfrecord.BYTES:
      raise ValueError(f"'{leaf.name}' holds bytes; features.json says {leaf.dtype}")
    if kind == tfrecord.INTS:
      values = tfrecord.ints(payload, start, end)
      if leaf.dtype == "uint64":  # which TFDS stores as the int64 of the same bits
        values = values.view(np.uint64)
    else:
      values = tfrecord.floats(payload, start, end)
    if len(values) % width:
      raise ValueError(
        f"'{leaf.name}' holds {len(values)} values, no multiple of {width}, its size a step"
      )
    if leaf.encoding == "ragged":
      _check_rows(payload, spans, leaf, len(values) // width)
  values = values.astype(np.float32, copy=False).reshape(-1, width)
  if not np.isfinite(values).all():
    step, dim = np.argwhere(~np.isfinite(values))[0].tolist()
    raise ValueError(f"'{leaf.name}' is {values[step, dim]} at step {step}, dimension {dim}")
  return values


def _stored(leaf: directory_lib.Feature) -> tuple[str, ...]:
  """Returns the names in the record of what a feature is stored as."""
  if leaf.encoding == "ragged":
    return f"{leaf.name}/ragged_flat_values", f"{leaf.name}/ragged_row_lengths_0"
  return (leaf.name,)


def _check_rows(payload: Any, spans: Spans, leaf: directory_lib.Feature, steps: int) -> None:
  """Checks that a sequence has its fixed length in each step."""
  name = _stored(leaf)[1]
  kind, start, end = _span(spans, name)
  if kind not in (tfrecord.INTS, tfrecord.EMPTY):
    raise ValueError(f"'{name}' holds no integers")
  rows = tfrecord.ints(payload, start, end)
  if len(rows) != steps or (rows != leaf.shape[0]).any():
    raise ValueError(
      f"'{name}' is {rows[:8].tolist()}; {steps} steps of {leaf.shape[0]} elements were expected"
    )


def _unpack(
  payload: Any, spans: dict[str, tfrecord.Span], leaf: directory_lib.Feature
) -> np.ndarray:
  """Returns the values of a tensor that was written as bytes, one string a step."""
  dtype = np.dtype(leaf.dtype)
  size = math.prod(size or 1 for size in leaf.shape) * dtype.itemsize
  steps = []
  for step, data in enumerate(tfrecord.bytes_(payload, *_bytes(spans, leaf)[1:])):
    if leaf.encoding == "zlib":
      try:
        data = _unzip(data, size)
      except (ValueError, zlib.error) as error:
        raise ValueError(f"'{leaf.name}' at step {step}: {error}") from error
    if len(data) != size:
      raise ValueError(
        f"'{leaf.name}' at step {step} has {len(data)} bytes; {dtype}{list(leaf.shape)} has {size}"
      )
    steps.append(np.frombuffer(data, dtype))
  return np.concatenate(steps) if steps else np.zeros(0, dtype)


def _unzip(data: bytes, size: int) -> bytes:
  """Decompresses, but no further than `size`: a few damaged bytes can mean gigabytes."""
  stream = zlib.decompressobj()
  data = stream.decompress(data, size + 1)
  if len(data) > size:
    raise ValueError(f"there are more than {size} bytes")
  if not stream.eof:
    raise ValueError("the compressed bytes are incomplete")
  return data


def _texts(payload: Any, spans: Spans, name: str) -> list[str]:
  kind, start, end = _span(spans, name)
  if kind not in (tfrecord.BYTES, tfrecord.EMPTY):
    raise ValueError(f"'{name}' holds numbers; features.json says text")
  texts = []
  for step, value in enumerate(tfrecord.bytes_(payload, start, end)):
    try:
      texts.append(value.decode("utf-8"))
    except UnicodeDecodeError as error:
      raise ValueError(f"'{name}' at step {step} is no UTF-8 text: {error}") from error
  return texts


def _bytes(spans: Spans, leaf: directory_lib.Feature) -> tfrecord.Span:
  span = _span(spans, leaf.name)
  if span[0] not in (tfrecord.BYTES, tfrecord.EMPTY):
    raise ValueError(f"'{leaf.name}' holds numbers; features.json says {leaf.kind}")
  return span


def _span(spans: Spans, name: str) -> tfrecord.Span:
  if name not in spans:
    raise ValueError(f"the record has no feature '{name}', though features.json has it")
  return spans[name]
