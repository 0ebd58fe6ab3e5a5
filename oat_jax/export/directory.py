"""The export directory on disk: what its files are, and that they are whole.

spec.json             the `Spec`
params.safetensors    parameters, named as in "network/encoder/w"
NAME.jax_exported     functions of them, as jax.export serialises them
selftest.safetensors  inputs of the functions, and what they gave where they were exported
README.md             the model card
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from oat_jax import batch as batch_lib
from oat_jax import files
from oat_jax import parameters

# 1: the first, to which fields may be added: what is missing has a default, what a reader does not
# know is left out. Of another version a reader says which oat_jax reads it.
FORMAT_VERSION = 1

PARAMETERS, SELFTEST, CARD, SPEC = (
  "params.safetensors",
  "selftest.safetensors",
  "README.md",
  "spec.json",
)


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a model is, for those who have not trained it. Units are those of its dataset.

  Attributes:
    kind: policy or tokenizer.
    name: of the model, e.g. autoregressive.
    batch: shapes, cameras, tasks, names of action dimensions and of datasets.
    dtype: how the network's parameters are stored.
    state: the features that `state` is made of, one behind the other, as the dataset names them.
    observation: {name: {dtype, shape, range}} of what is observed; B, T stand for their sizes.
    actions: {low, high, units}: the training range (datasets, A), inside which every chunk lies;
      units, of states too, are `batch.OWN_UNITS`, or say what the dataset was brought to.
    limits: {low, high, rate}: what a robot is ever told, (A,); rate is the largest change from step
      to step, or None where nobody knows it. See `limits`.
    statistics: {actions, state: {min, max, mean, std, q01, q99}} of the training data, (datasets,
      A) and (datasets, S); of a tokenizer those of actions alone.
    tokens: {vocab_size, max_tokens, budgets, prefix_decodable, pad_id}, or None without tokens.
    sampling: {temperature, top_k} of the tokens.
    tolerances: {K: tolerance} with which a chunk ends early and spends K tokens on average.
    functions: {name: {file, inputs, outputs, platforms, calling_convention}}.
    arrays: {name: [dtype, shape]} of the parameters.
    sha256: {file: hex digits}.
    checkpoint: {step, digest, workdir, dataset_fingerprint}.
    versions: of the packages that wrote this.
    source: the configurations that the functions can be built from again.
    demonstrated: {suite, begin, end}: the episode seeds whose goals the training data show, so that
      nobody reports success on them; None where the data do not tell.
  """

  kind: str
  name: str
  batch: batch_lib.BatchSpec
  dtype: str
  state: tuple[str, ...]
  observation: Mapping[str, Any]
  actions: Mapping[str, Any]
  limits: Mapping[str, Any]
  statistics: Mapping[str, Any]
  tokens: Mapping[str, Any] | None
  sampling: Mapping[str, Any]
  tolerances: Mapping[str, float]
  functions: Mapping[str, Any]
  arrays: Mapping[str, Any]
  sha256: Mapping[str, str]
  checkpoint: Mapping[str, Any]
  versions: Mapping[str, str]
  source: Mapping[str, Any]
  demonstrated: Mapping[str, Any] | None = None


class Content(NamedTuple):
  """All that a directory holds, read and compared with its spec."""

  path: pathlib.Path
  spec: Spec
  params: dict[str, Any]
  functions: dict[str, bytes]
  selftest: dict[str, np.ndarray]


def description(spec: Spec) -> dict[str, Any]:
  """Returns what one who acts with an export needs to know of it, as plain values.

  A server tells it to its clients; arrays, functions and files are left out.
  """
  return {
    "kind": spec.kind,
    "model": spec.name,
    "batch": dataclasses.asdict(spec.batch),
    "dtype": spec.dtype,
    "state": list(spec.state),
    "observation": dict(spec.observation),
    "units": spec.actions["units"],
    "limits": dict(spec.limits),
    "tokens": None if spec.tokens is None else dict(spec.tokens),
    "sampling": dict(spec.sampling),
    "tolerances": dict(spec.tolerances),
    "checkpoint": dict(spec.checkpoint),
    "demonstrated": None if spec.demonstrated is None else dict(spec.demonstrated),
    "versions": dict(spec.versions),
  }


def write(
  path: str | os.PathLike,
  spec: Spec,
  params: Mapping[str, np.ndarray],
  functions: Mapping[str, bytes],
  selftest: Mapping[str, np.ndarray],
  card: str,
) -> None:
  """Writes a new directory, whole or not at all; `arrays` and `sha256` of the spec are filled in.

  Args:
    path: not there yet, or empty.
    params: arrays by name, as `parameters.to_arrays` gives them.
    functions: serialised, by the names in `spec.functions`.
    selftest: arrays by name.
    card: text of the model card.

  Raises:
    ValueError: `path` holds something.
  """
  content = {PARAMETERS: parameters.to_bytes(params), SELFTEST: parameters.to_bytes(selftest)}
  content |= {spec.functions[name]["file"]: data for name, data in functions.items()}
  spec = dataclasses.replace(
    spec,
    arrays=parameters.described(params.items()),
    sha256={name: parameters.sha256(data) for name, data in content.items()},
  )
  described = {"format_version": FORMAT_VERSION} | dataclasses.asdict(spec)
  with files.new_directory(path) as partial:
    for name, data in content.items():
      (partial / name).write_bytes(data)
    (partial / CARD).write_text(card)
    (partial / SPEC).write_text(json.dumps(described, indent=2) + "\n")


def read(path: str | os.PathLike) -> Content:
  """Reads a directory that `write` wrote.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is cut short, changed, foreign, or of another version.
  """
  path = pathlib.Path(path)
  spec = _read_spec(path)
  content = {name: _read_file(path, name, spec) for name in spec.sha256}
  arrays = parameters.from_bytes(content[PARAMETERS], path / PARAMETERS)
  found = parameters.described(arrays.items())
  parameters.compare(found, spec.arrays, f"{path / SPEC} describes")
  return Content(
    path,
    spec,
    parameters.nested(arrays),
    {name: content[about["file"]] for name, about in spec.functions.items()},
    parameters.from_bytes(content[SELFTEST], path / SELFTEST),
  )


def _read_spec(path: pathlib.Path) -> Spec:
  where = path / SPEC
  if not where.is_file():
    held = sorted(each.name for each in path.glob("*")) if path.is_dir() else "nothing"
    raise FileNotFoundError(f"{path} is no export: it has no {SPEC}; it holds {held}")
  try:
    content = json.loads(where.read_text())
    version = content.pop("format_version")
    if version == FORMAT_VERSION:
      content["batch"] = batch_lib.BatchSpec(**content["batch"])
      content["state"] = tuple(content["state"])
      known = {field.name for field in dataclasses.fields(Spec)}
      spec = Spec(**{name: value for name, value in content.items() if name in known})
      needed = {PARAMETERS, SELFTEST, *(about["file"] for about in spec.functions.values())}
      if set(spec.sha256) != needed:
        raise ValueError(f"its files are {sorted(spec.sha256)}; expected {sorted(needed)}")
      return spec
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{where} does not describe an export: {type(error).__name__}: {error}"
    ) from error
  raise ValueError(
    f"{where} has format version {version}; this oat_jax reads version {FORMAT_VERSION}: "
    "read it with the oat_jax that its 'versions' name, or export the checkpoint again"
  )


def _read_file(path: pathlib.Path, name: str, spec: Spec) -> bytes:
  if pathlib.PurePath(name).name != name:
    raise ValueError(f"{path / SPEC} names the file '{name}', which is not one of its directory")
  if not (path / name).is_file():
    raise FileNotFoundError(
      f"{path} has no {name}, which its spec.json describes; copy the whole directory"
    )
  data = (path / name).read_bytes()
  found = parameters.sha256(data)
  if found != spec.sha256[name]:
    raise ValueError(
      f"{path / name} is not the file that spec.json describes: it is cut short, changed or "
      f"another export's ({len(data)} bytes of sha256 {found}; expected {spec.sha256[name]})"
    )
  return data
