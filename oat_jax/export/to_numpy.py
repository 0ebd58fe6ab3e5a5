"""Decoding of tokens for machines without jax: the decoder's operations, written down for numpy.

Any tokenizer can be exported so, because what is written is the program that jax traces, not the
model: see `numpy_decode`, whose file goes into the directory.
"""

from collections.abc import Mapping
import io
import json
import os
import pathlib
from typing import Any

import jax
from jax.extend import core
import numpy as np

from oat_jax import files
from oat_jax import tokenizers
from oat_jax.export import numpy_decode
from oat_jax.export import samples
from oat_jax.export import steps
from oat_jax.export import versions
from oat_jax.tokenizers.tokenizer import Tokenizer
from oat_jax.train import models

FORMAT_VERSION = 1


def export(
  workdir: str | os.PathLike, out: str | os.PathLike, step: int | str | None = None
) -> None:
  """Writes a new directory with the decoder of a run's tokenizer, or of a policy's.

  It holds decode.py, program.json, arrays.npz, spec.json and selftest.npz.

  Raises:
    ValueError, FileNotFoundError: there is no tokenizer, or `out` holds something.
  """
  trained = models.load(workdir, steps.chosen(workdir, step))
  if trained.tokenizer is None:
    raise ValueError(f"{workdir} holds a policy without tokens; there is nothing to decode")
  params = trained.params if trained.config.kind == "tokenizer" else trained.params["tokenizer"]
  tokenizer = trained.tokenizer
  if "dtype" in tokenizer.config:  # numpy knows no bfloat16
    values = dict(tokenizer.config) | {"dtype": "float32"}
    tokenizer = tokenizers.make(values, tokenizer.spec, params["statistics"])
  program, arrays = write_down(tokenizer, params)
  spec = tokenizer.spec
  known = params["statistics"]
  content = {
    "format_version": FORMAT_VERSION,
    "name": tokenizer.config["name"],
    "vocab_size": tokenizer.vocab_size,
    "max_tokens": tokenizer.max_tokens,
    "budgets": list(tokenizer.budgets),
    "action_horizon": spec.action_horizon,
    "action_dim": spec.action_dim,
    "action_names": list(spec.action_names),
    "num_datasets": spec.num_datasets,
    "dataset_names": list(spec.dataset_names),
    "actions": {"low": known["min"].tolist(), "high": known["max"].tolist()},
    "step": trained.step,
    "versions": versions.of("jax", "numpy"),
  }
  with files.new_directory(out) as partial:
    text = pathlib.Path(numpy_decode.__file__).read_text()
    (partial / "decode.py").write_text(text)
    (partial / "program.json").write_text(json.dumps(program) + "\n")
    (partial / "spec.json").write_text(json.dumps(content, indent=2) + "\n")
    (partial / "arrays.npz").write_bytes(_npz(arrays))
    (partial / "selftest.npz").write_bytes(_npz(_selftest(tokenizer, params)))


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
  buffer = io.BytesIO()
  np.savez(buffer, **dict(arrays))  # pyright: ignore[reportArgumentType]
  return buffer.getvalue()


def _selftest(tokenizer: Tokenizer, params: Any) -> dict[str, np.ndarray]:
  dataset_B = np.arange(samples.ROWS, dtype=np.int32) % tokenizer.spec.num_datasets
  decode = lambda tokens_BN, K: np.asarray(tokenizer.decode(params, tokens_BN, K, dataset_B))
  tokens_BN, actions = samples.decoded(tokenizer, decode)
  named = {f"actions_{K}": x for K, x in actions.items()}
  return named | {"tokens": tokens_BN, "dataset": dataset_B}


def write_down(tokenizer: Tokenizer, params: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns (the program of decoding one row, its constants by name).

  Raises:
    ValueError: it holds an operation that `numpy_decode` does not have.
  """
  of = lambda tokens_1N, num_tokens, dataset_1: tokenizer.decode(
    params, tokens_1N, num_tokens, dataset_1
  )
  one = jax.ShapeDtypeStruct((1, tokenizer.max_tokens), np.int32)
  number, dataset_1 = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((), (1,)))
  writer = _Writer()
  return writer.program(jax.make_jaxpr(of)(one, number, dataset_1)), writer.arrays


class _Writer:
  """Numbers the values of a program; what is called inside it becomes part of it."""

  def __init__(self):
    self.arrays: dict[str, np.ndarray] = {}
    self._count = 0

  def program(self, closed: Any) -> dict[str, Any]:
    inputs = [self._number() for _ in closed.jaxpr.invars]
    steps: list[Any] = []
    outputs = self._inline(closed, inputs, steps)
    return {"inputs": inputs, "steps": steps, "outputs": outputs}

  def _number(self) -> int:
    self._count += 1
    return self._count

  def _constant(self, value: Any) -> str:
    name = f"constant_{len(self.arrays)}"
    self.arrays[name] = np.asarray(value)
    return name

  def _inline(self, closed: Any, inputs: list[Any], steps: list[Any]) -> list[Any]:
    """Appends the steps of a program that is called on `inputs`; returns its results' numbers."""
    at: dict[Any, Any] = dict(zip(closed.jaxpr.invars, inputs))
    at |= {var: self._constant(x) for var, x in zip(closed.jaxpr.constvars, closed.consts)}
    read = lambda x: self._constant(x.val) if isinstance(x, core.Literal) else at[x]
    for eqn in closed.jaxpr.eqns:
      name, operands = eqn.primitive.name, [read(x) for x in eqn.invars]
      called = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params), None)
      if called is not None and name != "scan":
        if not hasattr(called, "consts"):
          called = core.ClosedJaxpr(called, ())
        results = self._inline(called, operands, steps)
      else:
        results = [self._number() for _ in eqn.outvars]
        settings = self._settings(name, eqn)
        settings = jax.tree.map(lambda x: int(x) if isinstance(x, np.integer) else x, settings)
        settings["dtypes"] = [str(var.aval.dtype) for var in eqn.outvars]
        steps.append([name, operands, results, settings])
      at |= dict(zip(eqn.outvars, results))
    return [read(x) for x in closed.jaxpr.outvars]

  def _settings(self, name: str, eqn: Any) -> dict[str, Any]:
    p = eqn.params
    if name == "scan":
      if p["reverse"]:
        raise ValueError("the decoder scans backwards, which numpy_decode does not")
      return {
        "num_consts": p["num_consts"],
        "num_carry": p["num_carry"],
        "length": p["length"],
        "body": self.program(p["jaxpr"]),
      }
    if name not in numpy_decode.OPERATIONS:
      raise ValueError(f"the decoder uses '{name}', which numpy_decode.OPERATIONS does not have")
    shape = list(eqn.outvars[0].aval.shape)
    if name in ("reshape", "squeeze", "expand_dims"):
      return {"shape": shape}
    if name == "broadcast_in_dim":
      return {"shape": shape, "dimensions": list(p["broadcast_dimensions"])}
    if name == "iota":
      return {"shape": shape, "dimension": p["dimension"]}
    if name == "slice":
      strides = p["strides"] or (1,) * len(p["start_indices"])
      return {"slices": list(zip(p["start_indices"], p["limit_indices"], strides))}
    if name == "round" and p["rounding_method"].name != "TO_NEAREST_EVEN":
      raise ValueError("the decoder rounds halves away from zero, which numpy_decode does not")
    if name == "dot_general":
      return {"dimensions": p["dimension_numbers"]}
    if name == "pad":
      return {"config": p["padding_config"]}
    if name in ("gather", "scatter", "scatter-add"):
      return _indexing(name, p)
    keep = ("axes", "axis", "dimension", "dimensions", "permutation", "reverse", "y")
    return {key: p[key] for key in keep if key in p}


def _indexing(name: str, p: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what says where slices begin, in the words of gather."""
  d = p["dimension_numbers"]
  mode = p["mode"].name if p["mode"] is not None else "FILL_OR_DROP"
  if name == "gather":
    return {
      "offset": list(d.offset_dims),
      "collapsed": list(d.collapsed_slice_dims),
      "start_map": list(d.start_index_map),
      "batch": list(d.operand_batching_dims),
      "index_batch": list(d.start_indices_batching_dims),
      "sizes": list(p["slice_sizes"]),
      "fill": mode == "FILL_OR_DROP",
      "fill_value": p["fill_value"],
    }
  if mode == "CLIP":
    raise ValueError("the decoder scatters to clipped places, which numpy_decode does not")
  return {
    "offset": list(d.update_window_dims),
    "collapsed": list(d.inserted_window_dims),
    "start_map": list(d.scatter_dims_to_operand_dims),
    "batch": list(d.operand_batching_dims),
    "index_batch": list(d.scatter_indices_batching_dims),
  }
