"""A tokenizer on disk: a directory that holds all that encoding and decoding need.

spec.json            format_version, config, spec (BatchSpec), vocab_size, max_tokens,
                     arrays {name: [dtype, shape]}, sha256 of params.safetensors
params.safetensors   the parameters, named as in "network/encoder/w"
"""

from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any
import uuid

import jax
import numpy as np
import safetensors
import safetensors.numpy

from oat_jax.batch import BatchSpec
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Params
from oat_jax.tokenizers.tokenizer import Tokenizer

FORMAT_VERSION = 2
# What safetensors can write and read back as numpy arrays.
DTYPES = ("bool", "float16", "float32", "float64")
DTYPES += tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


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
  path = pathlib.Path(path).absolute()
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise ValueError(f"{path} exists and is no empty directory; save a tokenizer to a new one")
  arrays = {}
  for name, x in _flat(jax.device_get(params)):
    arrays[name] = np.array(x, np.asarray(x).dtype.newbyteorder("="), order="C")
  for name, x in arrays.items():
    if x.dtype.name not in DTYPES:
      raise ValueError(f"parameter '{name}' is {x.dtype}; one of {', '.join(DTYPES)} can be saved")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
      first = np.argwhere(~np.isfinite(x))[0].tolist()
      raise ValueError(f"parameter '{name}' holds NaN or infinity at index {first}")
  _make(tokenizer.config, tokenizer.spec, arrays)
  data = safetensors.numpy.save(arrays)
  content = {
    "format_version": FORMAT_VERSION,
    "config": tokenizer.config,
    "spec": dataclasses.asdict(tokenizer.spec),
    "vocab_size": tokenizer.vocab_size,
    "max_tokens": tokenizer.max_tokens,
    "arrays": {name: _describe(x) for name, x in arrays.items()},
    "sha256": hashlib.sha256(data).hexdigest(),
  }
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
  partial.mkdir(parents=True)
  try:
    (partial / "params.safetensors").write_bytes(data)
    (partial / "spec.json").write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


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
  found = hashlib.sha256(data).hexdigest()
  if found != sha:
    raise ValueError(
      f"{path / 'params.safetensors'} is not the file that spec.json describes: it is cut short, "
      f"changed or another tokenizer's ({len(data)} bytes of sha256 {found}; expected {sha})"
    )
  try:
    views = safetensors.numpy.load(data)
  except (safetensors.SafetensorError, KeyError) as error:
    raise ValueError(f"{path / 'params.safetensors'} cannot be read: {error}") from error
  arrays = {name: views[name].copy() for name in sorted(views)}  # views are read-only
  _compare({name: _describe(x) for name, x in arrays.items()}, described, f"{where} describes")
  try:
    tokenizer = _make(config, spec, arrays)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error
  for name, value in known.items():
    if getattr(tokenizer, name) != value:
      raise ValueError(
        f"{where} says {name} {value}; its config makes a tokenizer of {getattr(tokenizer, name)}"
      )
  return tokenizer, _nested(arrays)


def _make(config: Mapping[str, Any], spec: BatchSpec, arrays: dict[str, np.ndarray]) -> Tokenizer:
  """Returns the tokenizer of a config; ValueError unless the arrays are parameters of it."""
  params = _nested(arrays)
  if "statistics/min" not in arrays:
    raise ValueError(f"a tokenizer's parameters hold statistics; these are {sorted(arrays)}")
  tokenizer = tokenizer_lib.make(config, spec, params["statistics"])
  if tokenizer.init is not None:
    own = {name: _describe(x) for name, x in _flat(jax.eval_shape(tokenizer.init, _key()))}
    found = {name: _describe(x) for name, x in arrays.items()}
    _compare(found, own, f"tokenizer '{config['name']}' of this config has")
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


def _compare(found: dict[str, Any], wanted: dict[str, Any], who: str) -> None:
  """Raises ValueError, naming the first array, where two descriptions disagree."""
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise ValueError(
        f"parameter '{name}': {who} {wanted.get(name, 'none')}, the parameters hold "
        f"{found.get(name, 'none')}"
      )


def _describe(x: Any) -> list[Any]:
  return [str(x.dtype), list(x.shape)]


def _flat(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (name, leaf), sorted by name; ValueError for what names alone could not rebuild."""
  if not isinstance(tree, Mapping):
    yield where, tree
    return
  if not tree:
    raise ValueError(f"parameters '{where}' are empty: nothing of them would be saved")
  for key in sorted(tree, key=str):
    if not isinstance(key, str) or not key or "/" in key:
      raise ValueError(f"parameters '{where}' have the key {key!r}; names without '/' can be saved")
    yield from _flat(tree[key], f"{where}/{key}" if where else key)


def _nested(arrays: Mapping[str, np.ndarray]) -> Params:
  params: dict[str, Any] = {}
  for name, x in arrays.items():
    *parents, last = name.split("/")
    at = params
    for parent in parents:
      at = at.setdefault(parent, {})
    at[last] = x
  return params
