"""The tokenizer contract: chunks of actions in the dataset's units <-> ordered tokens.

A tokenizer is a NamedTuple of pure functions and static facts; its parameters, statistics included,
are a plain pytree. `make(config, spec, statistics)` of this module finds the tokenizer by its name,
and is the only way in.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import core
import jax.numpy as jnp
import numpy as np

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec

Params = Any
Statistics = Mapping[str, np.ndarray]  # min, max, mean, std, q01, q99: each (datasets, A)

# One file a tokenizer: it holds `Config`, a frozen dataclass, and `make(config, spec, statistics)
# -> Tokenizer`.
MODULES = {"oat": "oat_jax.tokenizers.oat"}


class Tokenizer(NamedTuple):
  """Pure functions and static facts of one tokenizer (axis letters as in oat_jax/batch.py).

  Attributes:
    init: key -> params.
    axes: () -> the trained parameters' tree with tuples of logical axis names.
    encode: (params, actions_BCA, action_mask_BC=None, dataset_B=None) -> tokens_BN int32 in 0 ..
      vocab_size - 1.
    decode: (params, tokens_BN, num_tokens=None, dataset_B=None) -> actions_BCA float32 inside the
      training range; a total function: every token sequence and every num_tokens in 1 .. max_tokens
      gives a finite chunk, which does not depend on the tokens behind the prefix. num_tokens may be
      traced; None means all.
    loss: (params, batch, key) -> (scalar, {name: scalar}).
    evaluate: (params, batch) -> {name: (B,) or (B, N)}, one row an example, to be averaged over
      held-out data.
    spec: the batch that it was made for.
    vocab_size: V.
    max_tokens: N.
    prefix_decodable: whether fewer tokens give a coarser chunk by construction.
  """

  init: Callable[..., Params]
  axes: Callable[[], Any]
  encode: Callable[..., jax.Array]
  decode: Callable[..., jax.Array]
  loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
  evaluate: Callable[..., dict[str, jax.Array]]
  spec: BatchSpec
  vocab_size: int
  max_tokens: int
  prefix_decodable: bool


def make(
  config: Mapping[str, Any], spec: BatchSpec, statistics: Statistics | None = None
) -> Tokenizer:
  """Returns the tokenizer that `config["name"]` names.

  Args:
    config: values of the tokenizer's own `Config`, plus `name`.
    spec: horizon, action width and number of datasets.
    statistics: of the training actions; needed by `init` only, because trained parameters carry
      them.

  Raises:
    ValueError: an unknown name, or a config key that the tokenizer does not have.
  """
  module, frozen = freeze(config)
  return _checked(module.make(frozen, spec, statistics))


def freeze(config: Mapping[str, Any]) -> tuple[Any, Any]:
  """Returns the module that `config["name"]` names and its checked `Config`; errors as `make`'s."""
  return config_lib.freeze_model(config, MODULES)


def normalize(
  statistics: Mapping[str, jax.Array], x_BCA: jax.Array, dataset_B: jax.Array | None
) -> jax.Array:
  """Actions (B, C, A) in the dataset's units to those of the network; no dataset: the first."""
  row = lambda name: _row(statistics, name, dataset_B)
  return (x_BCA - row("offset")) * row("scale")


def denormalize(
  statistics: Mapping[str, jax.Array], x_BCA: jax.Array, dataset_B: jax.Array | None
) -> jax.Array:
  """Back to the dataset's units, clipped to the range that was seen in training."""
  row = lambda name: _row(statistics, name, dataset_B)
  return jnp.clip(x_BCA / row("scale") + row("offset"), row("min"), row("max"))


def chunk_mse(
  statistics: Mapping[str, jax.Array], batch: Mapping[str, Any], actions_BCA: jax.Array
) -> jax.Array:
  """Returns (B,): mean squared error of a decoded chunk, in normalised units, without padding."""
  of = lambda x_BCA: normalize(statistics, x_BCA, batch["dataset"])
  mask_BCA = valid(batch)
  error_BCA = jnp.where(mask_BCA, of(actions_BCA) - of(batch["actions"]), 0)
  return jnp.sum(jnp.square(error_BCA), (1, 2)) / jnp.sum(mask_BCA, (1, 2))


def valid(batch: Mapping[str, Any]) -> jax.Array:
  """Returns bool (B, C, A), false on padded steps and dimensions."""
  return batch["action_mask"][..., None] & batch["action_dim_mask"][:, None]


def _row(statistics: Mapping[str, jax.Array], name: str, dataset_B: jax.Array | None) -> jax.Array:
  rows = statistics[name][:1] if dataset_B is None else statistics[name][dataset_B]
  return rows[:, None, :]


def _checked(tokenizer: Tokenizer) -> Tokenizer:
  """Compiles encode and decode, and checks concrete arguments at the Python boundary."""
  spec, N, V = tokenizer.spec, tokenizer.max_tokens, tokenizer.vocab_size
  jit_encode, jit_decode = jax.jit(tokenizer.encode), jax.jit(tokenizer.decode)

  def check_dataset(dataset, rows):
    if dataset is None and spec.num_datasets > 1:
      raise ValueError(f"there are {spec.num_datasets} datasets: say whose statistics hold")
    if dataset is not None and jnp.shape(dataset) != (rows,):
      raise ValueError(f"dataset has shape {list(jnp.shape(dataset))}; expected [{rows}]")
    if dataset is not None and concrete(dataset):
      ids_B = np.asarray(dataset)
      if ((ids_B < 0) | (ids_B >= spec.num_datasets)).any():
        raise ValueError(f"dataset {ids_B.tolist()} is outside 0..{spec.num_datasets - 1}")

  def encode(params, actions_BCA, action_mask=None, dataset=None):
    shape = tuple(jnp.shape(actions_BCA))
    if len(shape) != 3 or shape[1:] != (spec.action_horizon, spec.action_dim):
      wanted = f"[B, {spec.action_horizon}, {spec.action_dim}]"
      raise ValueError(f"encode: actions have shape {list(shape)}; expected {wanted}")
    if action_mask is not None and jnp.shape(action_mask) != shape[:2]:
      raise ValueError(
        f"encode: the mask has shape {list(jnp.shape(action_mask))}; expected {list(shape[:2])}"
      )
    if concrete(actions_BCA) and concrete(action_mask):
      valid = True if action_mask is None else np.asarray(action_mask)[..., None]
      bad = np.argwhere(~np.isfinite(np.asarray(actions_BCA)) & valid)
      if len(bad):
        raise ValueError(
          f"encode: actions hold NaN or infinity at [row, step, dimension] {bad[0].tolist()}"
        )
    check_dataset(dataset, shape[0])
    # Inside a trace, nothing that an inner jit has kept from another one, with other shardings.
    run = jit_encode if concrete(actions_BCA) else tokenizer.encode
    return run(params, actions_BCA, action_mask, dataset)

  def decode(params, tokens_BN, num_tokens=None, dataset=None):
    shape, dtype = tuple(jnp.shape(tokens_BN)), jnp.result_type(tokens_BN)
    if len(shape) != 2 or shape[1] != N or not jnp.issubdtype(dtype, jnp.integer):
      raise ValueError(
        f"decode: tokens are {dtype}{list(shape)}; expected integers of shape [B, {N}]"
      )
    num_tokens = N if num_tokens is None else num_tokens
    check_num_tokens(num_tokens, N)
    if concrete(tokens_BN) and concrete(num_tokens):
      used = np.asarray(tokens_BN)[:, : int(num_tokens)]
      bad = np.argwhere((used < 0) | (used >= V))
      if len(bad):
        raise ValueError(
          f"decode: token {used[tuple(bad[0])]} at [row, position] {bad[0].tolist()} is outside "
          f"0..{V - 1}"
        )
    check_dataset(dataset, shape[0])
    run = jit_decode if concrete(tokens_BN) else tokenizer.decode
    return run(params, tokens_BN, num_tokens, dataset)

  return tokenizer._replace(encode=encode, decode=decode)


def check_num_tokens(num_tokens: Any, max_tokens: int) -> None:
  """Raises ValueError unless `num_tokens` is one integer; where concrete, in 1 .. max_tokens."""
  if jnp.shape(num_tokens) or not jnp.issubdtype(jnp.result_type(num_tokens), jnp.integer):
    raise ValueError(f"num_tokens is {num_tokens}; it must be one integer in 1..{max_tokens}")
  if concrete(num_tokens) and not 1 <= int(num_tokens) <= max_tokens:
    raise ValueError(f"num_tokens is {int(num_tokens)}; it must be in 1..{max_tokens}")


def concrete(x: Any) -> bool:
  """Whether a value can be looked at: false inside a trace."""
  return not isinstance(x, core.Tracer)
