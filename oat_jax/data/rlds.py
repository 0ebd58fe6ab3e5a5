"""Reads the numeric part of an RLDS dataset, a TFDS directory of TFRecord shards, into arrays.

One record is one episode. Its steps are stored feature by feature, all steps of a feature in one
flat list, so an episode's actions are one reshape away. Metadata is read as plain JSON: the two
files are small and stable, and importing tensorflow_datasets would cost more than reading them.

Axis letters: L all steps of all episodes concatenated, E episodes, A action dims, S state dims.
"""

from collections.abc import Iterator
import hashlib
import json
import math
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np
import tqdm

from oat_jax.data import tfrecord

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # where dataset_info.json has none


class Fields(NamedTuple):
  """Which features to read; names are paths in features.json.

  action, state: paths below `steps/`. Features of any fixed shape are flattened to one axis; the
    state features are concatenated along it, in order.
  task: path of a string feature below `steps/`, or starting with `episode_metadata/`; one task
    named "" where empty.
  """

  action: str = "action"
  state: tuple[str, ...] = ("observation/state",)
  task: str = ""


_FIELDS = Fields()


class Episodes(NamedTuple):
  """All episodes of a split. Steps of episode e are starts_E[e] to starts_E[e + 1]."""

  actions_LA: np.ndarray  # float32, dataset units
  states_LS: np.ndarray  # float32, dataset units
  starts_E: np.ndarray  # int64 (E + 1,)
  tasks_E: np.ndarray  # int32 (E,), index into task_names
  task_names: tuple[str, ...]  # sorted, unique, each of them used

  @property
  def num_episodes(self) -> int:
    return len(self.tasks_E)


def find_directory(path: str | os.PathLike) -> pathlib.Path:
  """Returns the directory holding features.json: `path` itself or its newest version (`1.0.0`).

  Raises:
    FileNotFoundError: there is no such directory.
    ValueError: it is empty, not a TFDS directory, or its shards are not TFRecord files.
  """
  directory = pathlib.Path(path)
  if not directory.is_dir():
    raise FileNotFoundError(f"{path}: no such local directory; expected an RLDS (TFDS) directory")
  names = sorted(entry.name for entry in directory.iterdir())
  if not names:
    raise ValueError(f"{path}: the directory is empty; expected a TFDS directory or its versions")
  if not _is_tfds(directory):
    versions = [name for name in names if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    newest = max(versions, key=lambda name: tuple(map(int, name.split("."))), default="")
    if not newest or not _is_tfds(directory / newest):
      raise ValueError(
        f"{directory / newest}: not a TFDS directory, which holds features.json and "
        f"dataset_info.json or versions such as 1.0.0; {path} holds {', '.join(names[:8])}"
      )
    directory /= newest
  file_format = _json(directory / "dataset_info.json").get("fileFormat", "tfrecord")
  if file_format != "tfrecord":
    raise ValueError(
      f"{directory / 'dataset_info.json'}: fileFormat is '{file_format}'; only 'tfrecord' is "
      "read so far (array_record is planned): convert the dataset to tfrecord"
    )
  return directory


def read(
  path: str | os.PathLike, split: str = "train", fields: Fields = _FIELDS, progress: bool = True
) -> Episodes:
  """Reads the actions, states and tasks of every episode of a split, in the order of the files.

  Args:
    path: a TFDS directory or its parent, see `find_directory`.
    split: the name of a split in dataset_info.json.
    fields: the features to read. Numeric ones of any dtype are cast to float32.
    progress: whether to show a progress bar once reading has taken two seconds.

  Raises:
    FileNotFoundError: the directory or one of the split's shards is missing.
    ValueError: the split or a field does not exist (the message lists those that do), a field has
      no fixed numeric shape, a shard is corrupt or holds another number of records than
      dataset_info.json says, an episode is empty, its features disagree in length, its steps
      disagree in their task, or an action or state is NaN or infinite.
  """
  directory = find_directory(path)
  features = _features(directory / "features.json")
  if not fields.state:
    raise ValueError("Fields.state names no feature; it needs at least one, e.g. observation/state")
  below_steps = not fields.task.startswith("episode_metadata/")
  action = _numeric(f"steps/{fields.action}", features, directory)
  states = [_numeric(f"steps/{name}", features, directory) for name in fields.state]
  task = f"steps/{fields.task}" if below_steps else fields.task
  if fields.task:
    _check_text(task, features, directory)

  actions, observed, tasks = [], [], []
  for where, payload in _records(_shards(directory, split), progress):
    try:
      spans = tfrecord.parse_example(payload, {action.name, *(s.name for s in states), task})
      actions.append(_values(payload, spans, action))
      parts = [_values(payload, spans, state) for state in states]
      names = _texts(payload, spans, task) if fields.task else [""]
      lengths = {f.name: len(v) for f, v in zip((action, *states), (actions[-1], *parts))}
      if fields.task and below_steps:
        lengths[task] = len(names)
      if len(set(lengths.values())) > 1:
        raise ValueError(f"features disagree in their number of steps: {lengths}")
      if not len(actions[-1]):
        raise ValueError("the episode has no steps; remove it from the dataset")
      if len(set(names)) != 1:
        raise ValueError(f"'{task}' must name one task per episode, not {sorted(set(names))[:8]}")
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
    observed.append(np.concatenate(parts, axis=1))
    tasks.append(names[0])

  task_names = tuple(sorted(set(tasks)))
  index = {name: i for i, name in enumerate(task_names)}
  return Episodes(
    actions_LA=np.concatenate(actions),
    states_LS=np.concatenate(observed),
    starts_E=np.cumsum([0, *map(len, actions)], dtype=np.int64),
    tasks_E=np.array([index[name] for name in tasks], np.int32),
    task_names=task_names,
  )


def fingerprint(episodes: Episodes) -> str:
  """Returns 16 hex digits of the SHA-256 of all contents, equal for equal episodes only."""
  digest = hashlib.sha256(json.dumps(episodes.task_names).encode())
  for array in episodes[:-1]:
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()[:16]


class _Feature(NamedTuple):
  name: str
  kind: str  # "numeric", "text", or why it can be neither
  shape: tuple[int, ...] = ()
  dtype: str = ""


def _is_tfds(directory: pathlib.Path) -> bool:
  return all((directory / name).is_file() for name in ("features.json", "dataset_info.json"))


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise ValueError(f"{path}: not a JSON file: {error}") from error
  if type(content) is not dict:
    raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
  return content


def _features(path: pathlib.Path) -> dict[str, _Feature]:
  """Flattens features.json to the leaves, named as the records name them."""
  leaves = {}

  def visit(node, name):
    if "featuresDict" in node:
      for key, child in node["featuresDict"]["features"].items():
        visit(child, f"{name}/{key}" if name else key)
    elif "sequence" in node and name == "steps":
      visit(node["sequence"]["feature"], name)
    else:
      leaves[name] = _leaf(node, name)

  try:
    visit(_json(path), "")
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: not the features.json of TFDS 4.4 or newer: {error!r}") from error
  return leaves


def _leaf(node: dict[str, Any], name: str) -> _Feature:
  if "text" in node:
    return _Feature(name, "text")
  if "tensor" not in node:
    return _Feature(name, f"of class {node['pythonClassName'].rsplit('.', 1)[-1]}")
  tensor = node["tensor"]
  shape = tuple(map(int, tensor["shape"].get("dimensions", ())))
  if tensor["dtype"] in ("string", "object"):
    kind = "text"
  elif tensor.get("encoding", "none") != "none":
    kind = f"a tensor in encoding '{tensor['encoding']}'"
  elif min(shape, default=1) < 1:
    kind = f"a tensor without fixed shape, {list(shape)}"
  else:
    kind = "numeric"
  return _Feature(name, kind, shape, tensor["dtype"])


def _numeric(name: str, features: dict[str, _Feature], directory: pathlib.Path) -> _Feature:
  below_steps = [feature for feature in features.values() if feature.name.startswith("steps/")]
  return _find(name, "numeric", below_steps, directory)


def _check_text(name: str, features: dict[str, _Feature], directory: pathlib.Path) -> None:
  shape = _find(name, "text", list(features.values()), directory).shape
  if shape:
    raise ValueError(f"{directory / 'features.json'}: '{name}' is text{list(shape)}, not one text")


def _find(name: str, kind: str, features: list[_Feature], directory: pathlib.Path) -> _Feature:
  """Returns the feature of that name and kind, or raises, listing those of its kind."""
  found = next((feature for feature in features if feature.name == name), None)
  if found is None or found.kind != kind:
    problem = f"there is no feature '{name}'" if found is None else f"'{name}' is {found.kind}"
    known = sorted(f.name.removeprefix("steps/") for f in features if f.kind == kind)
    raise ValueError(
      f"{directory / 'features.json'}: {problem}; expected one of the {kind} features: "
      f"{', '.join(known) or 'it has none'}"
    )
  return found


def _shards(directory: pathlib.Path, split: str) -> list[tuple[pathlib.Path, int]]:
  """Returns path and number of records of every shard of the split; all of them exist."""
  path = directory / "dataset_info.json"
  info = _json(path)
  try:
    dataset, splits = info["name"], {entry["name"]: entry for entry in info["splits"]}
  except (KeyError, TypeError) as error:
    raise ValueError(f"{path}: not the dataset_info.json of TFDS: {error!r}") from error
  if split not in splits:
    raise ValueError(f"{path}: there is no split '{split}'; it has {', '.join(splits) or 'none'}")
  lengths = [int(length) for length in splits[split].get("shardLengths", ())]
  if not sum(lengths):
    raise ValueError(f"{path}: split '{split}' holds no records; its shardLengths are {lengths}")
  template = splits[split].get("filepathTemplate") or _TEMPLATE
  shards = []
  for i, length in enumerate(lengths):
    values = {
      "DATASET": dataset,
      "SPLIT": split,
      "FILEFORMAT": "tfrecord",
      "SHARD_INDEX": f"{i:05d}",
      "NUM_SHARDS": f"{len(lengths):05d}",
      "SHARD_X_OF_Y": f"{i:05d}-of-{len(lengths):05d}",
    }
    try:
      shard = directory / template.format_map(values)
    except (KeyError, ValueError) as error:
      known = ", ".join(values)
      raise ValueError(f"{path}: filepathTemplate '{template}' may use {known} only") from error
    if not shard.is_file():
      raise FileNotFoundError(
        f"{shard}: shard {i} of {len(lengths)} of split '{split}' is missing; fetch it again"
      )
    shards.append((shard, length))
  return shards


def _records(
  shards: list[tuple[pathlib.Path, int]], progress: bool
) -> Iterator[tuple[str, memoryview]]:
  """Yields where it is and the payload of every record."""
  total = sum(length for _, length in shards)
  with tqdm.tqdm(
    desc="reading episodes", unit=" episodes", total=total, delay=2, disable=not progress
  ) as bar:
    for path, length in shards:
      file = tfrecord.TFRecordFile(path)
      if len(file) != length:
        raise ValueError(
          f"{path}: holds {len(file)} records, but dataset_info.json says {length}; "
          "fetch the shard or dataset_info.json again"
        )
      for record in range(length):
        yield f"{path}: record {record}", file[record]
        bar.update()


def _values(payload: memoryview, spans: dict[str, tfrecord.Span], feature: _Feature) -> np.ndarray:
  """Returns float32 (steps, values) of one numeric feature of one episode."""
  kind, start, end = _span(spans, feature.name)
  if kind == tfrecord.BYTES:
    raise ValueError(f"'{feature.name}' holds bytes; features.json says {feature.dtype}")
  if kind == tfrecord.INTS:
    values = tfrecord.ints(payload, start, end)
    if feature.dtype == "uint64":  # which TFDS stores as the int64 of the same bits
      values = values.view(np.uint64)
    values = values.astype(np.float32)
  else:
    values = tfrecord.floats(payload, start, end)
  width = math.prod(feature.shape)
  if len(values) % width:
    raise ValueError(
      f"'{feature.name}' holds {len(values)} values, no multiple of {width}, its size a step"
    )
  values = values.reshape(-1, width)
  bad = np.argwhere(~np.isfinite(values))
  if len(bad):
    step, dim = bad[0].tolist()
    raise ValueError(f"'{feature.name}' is {values[step, dim]} at step {step}, dimension {dim}")
  return values


def _texts(payload: memoryview, spans: dict[str, tfrecord.Span], name: str) -> list[str]:
  kind, start, end = _span(spans, name)
  if kind not in (tfrecord.BYTES, tfrecord.EMPTY):
    raise ValueError(f"'{name}' holds numbers; features.json says text")
  return [value.decode("utf-8") for value in tfrecord.bytes_(payload, start, end)]


def _span(spans: dict[str, tfrecord.Span], name: str) -> tfrecord.Span:
  if name not in spans:
    raise ValueError(f"the record has no feature '{name}', though features.json has it")
  return spans[name]
