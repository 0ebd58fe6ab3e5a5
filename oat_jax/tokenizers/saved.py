"""A tokenizer on disk: a directory that holds all that encoding and decoding need.

spec.json            format_version, config, spec (BatchSpec), vocab_size, max_tokens,
                     arrays {name: [dtype, shape]}, sha256 of params.safetensors
params.safetensors   the parameters, named as in "network/encoder/w"
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from oat_jax import files
from oat_jax import parameters
from oat_jax.batch import BatchSpec
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Params
from oat_jax.tokenizers.tokenizer import Tokenizer

FORMAT_VERSION = 2


def save(path: str | os.PathLike, tokenizer: Tokenizer, params: Params) -> None:
  """Writes a directory that `load` reads; it is there whole, or not at all.

  Args:
    path: a new directory, or an empty one.
    tokenizer: as `tokenizer.make` returned it.
    params: nested dicts of arrays, its own.

  Raises:
    ValueError: `path` holds something, or the parameters are another tokenizer's, not finite, or
      nothing that can be saved.
  """
  arrays = parameters.to_arrays(jax.device_get(params))
  _make(tokenizer.config, tokenizer.spec, arrays)
  data = parameters.to_bytes(arrays)
  content = {
    "format_version": FORMAT_VERSION,
    "config": tokenizer.config,
    "spec": dataclasses.asdict(tokenizer.spec),
    "vocab_size": tokenizer.vocab_size,
    "max_tokens": tokenizer.max_tokens,
    "arrays": parameters.described(arrays.items()),
    "sha256": parameters.sha256(data),
  }
  with files.new_directory(path) as partial:
    (partial / "params.safetensors").write_bytes(data)
    (partial / "spec.json").write_text(json.dumps(content, indent=2) + "\n")


def load(path: str | os.PathLike) -> tuple[Tokenizer, Params]:
  """Returns (tokenizer, params as numpy arrays) of a directory that `save` wrote.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is broken, another tokenizer's or another version's.
  """
  path = pathlib.Path(path)
  for name in ("spec.json", "params.safetensors"):
    if not (path / name).is_file():
      held = sorted(each.name for each in path.glob("*")) if path.is_dir() else "nothing"
      raise FileNotFoundError(f"{path} is no saved tokenizer: it has no {name}; it holds {held}")
  where = path / "spec.json"
  try:
    content = json.loads(where.read_text())
    version = content["format_version"]
    if version == FORMAT_VERSION:
      spec = BatchSpec(**content["spec"])
      known = {name: content[name] for name in ("vocab_size", "max_tokens")}
      config, described, sha = dict(content["config"]), dict(content["arrays"]), content["sha256"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{where} is not a tokenizer's description: {type(error).__name__}: {error}"
    ) from error
  if version != FORMAT_VERSION:
    raise ValueError(
      f"{where} has format version {version}; this oat_jax reads version {FORMAT_VERSION}"
    )
  data = (path / "params.safetensors").read_bytes()
  found = parameters.sha256(data)
  if found != sha:
    raise ValueError(
      f"{path / 'params.safetensors'} is not the file that spec.json describes: it is cut short, "
      f"changed or another tokenizer's ({len(data)} bytes of sha256 {found}; expected {sha})"
    )
  arrays = parameters.from_bytes(data, path / "params.safetensors")
  parameters.compare(parameters.described(arrays.items()), described, f"{where} describes")
  try:
    tokenizer = _make(config, spec, arrays)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error
  for name, value in known.items():
    if getattr(tokenizer, name) != value:
      raise ValueError(
        f"{where} says {name} {value}; its config makes a tokenizer of {getattr(tokenizer, name)}"
      )
  return tokenizer, parameters.nested(arrays)


def _make(config: Mapping[str, Any], spec: BatchSpec, arrays: dict[str, np.ndarray]) -> Tokenizer:
  """Returns the tokenizer of a config; ValueError unless the arrays are parameters of it."""
  params = parameters.nested(arrays)
  if "statistics/min" not in arrays:
    raise ValueError(f"a tokenizer's parameters hold statistics; these are {sorted(arrays)}")
  tokenizer = tokenizer_lib.make(config, spec, params["statistics"])
  if tokenizer.init is not None:
    own = parameters.described(parameters.flat(jax.eval_shape(tokenizer.init, _key())))
    found = parameters.described(arrays.items())
    parameters.compare(found, own, f"tokenizer '{config['name']}' of this config has")
    return tokenizer
  chunk_1CA = np.zeros((1, spec.action_horizon, spec.action_dim), np.float32)
  dataset_B = np.zeros(1, np.int32)
  try:
    tokens_1N = jax.eval_shape(tokenizer.encode, params, chunk_1CA, None, dataset_B)
    jax.eval_shape(tokenizer.decode, params, tokens_1N, 1, dataset_B)
  except (ValueError, KeyError, TypeError, IndexError) as error:
    raise ValueError(
      f"tokenizer '{config['name']}' cannot work with {sorted(arrays)}: {error}"
    ) from error
  return tokenizer


def _key() -> jax.ShapeDtypeStruct:
  return jax.eval_shape(lambda: jax.random.key(0))
