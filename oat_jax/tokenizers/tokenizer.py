"""The tokenizer contract: chunks of actions in the dataset's units <-> ordered tokens.

A tokenizer is a NamedTuple of pure functions and static facts; its parameters, statistics included,
are a plain pytree. `make(config, spec, statistics)` of this module finds the tokenizer by its name,
and is the only way in.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
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
# -> Tokenizer`. A name with a dot is such a module of anyone's.
MODULES = {
  "oat": "oat_jax.tokenizers.oat",
  "quest": "oat_jax.tokenizers.quest",
  "vq": "oat_jax.tokenizers.vq",
  "bin": "oat_jax.tokenizers.binning",
  "fast": "oat_jax.tokenizers.fast",
}


class Tokenizer(NamedTuple):
  """Pure functions and static facts of one tokenizer (axis letters as in oat_jax/batch.py).

  A learned tokenizer has `init`, `axes` and `loss`, a fitted one has `fit`; what it has not is
  None. `make` fills in the last three attributes, and arguments that are left out: a tokenizer's
  own file is always given a mask, ids in range, and one of the budgets.

  Attributes:
    encode: (params, actions_BCA, action_mask_BC=None, dataset_B=None) -> tokens_BN int32 in 0 ..
      vocab_size - 1.
    decode: (params, tokens_BN, num_tokens=None, dataset_B=None) -> actions_BCA float32 inside the
      training range; a total function: every token sequence and every num_tokens in 1 .. max_tokens
      gives a finite chunk, which does not depend on the tokens behind the prefix. num_tokens may be
      traced; None means all.
    spec: the batch that it was made for.
    vocab_size: V, `pad_id` included.
    max_tokens: N.
    prefix_decodable: whether it is trained so that fewer tokens give a coarser chunk.
    init: key -> params: `network`, which gradients train, `statistics`, and what `update` changes.
    axes: () -> the trained parameters' tree with tuples of logical axis names.
    loss: (params, batch, key) -> (scalar, {name: scalar}); with `update`, the dict also holds what
      that takes, under "update".
    update: (params, aux["update"]) -> params: what gradients do not train, e.g. a codebook's moving
      averages.
    fit: (actions_WCA, action_mask_WC, dataset_W) -> params of numpy arrays: `statistics`, `fitted`;
      host code.
    host_encode: encode is host code, called back from compiled programs.
    pad_id: fills up shorter sequences where lengths vary, and decodes to nothing.
    decodable: (params, tokens_BN, num_tokens=None) -> bool (B,), false where decode falls back on
      something that the tokens do not say; None where every sequence says a chunk.
    budgets: the prefix lengths that decode differently; a num_tokens between two of them counts as
      the lower one. They begin with 1 and end with max_tokens; all between, if empty.
    coordinates: float32 (V, L) numpy: where ids lie, so that near ones mean nearly the same at
      every position; None where they do not.
    evaluate: (params, batch) -> {"mse": (B, N) of chunks decoded from the first 1 .. N tokens, in
      normalised units, "tokens": (B, N)}.
    config: the values that it was made from.
  """

  encode: Callable[..., jax.Array]
  decode: Callable[..., jax.Array]
  spec: BatchSpec
  vocab_size: int
  max_tokens: int
  prefix_decodable: bool = False
  init: Any = None
  axes: Any = None
  loss: Any = None
  update: Any = None
  fit: Any = None
  host_encode: bool = False
  pad_id: int | None = None
  decodable: Any = None
  budgets: tuple[int, ...] = ()
  coordinates: Any = None
  evaluate: Any = None
  config: Mapping[str, Any] = {}


def make(
  config: Mapping[str, Any], spec: BatchSpec, statistics: Statistics | None = None
) -> Tokenizer:
  """Returns the tokenizer that `config["name"]` names.

  Args:
    config: values of the tokenizer's own `Config`, plus `name`.
    spec: horizon, action width and number of datasets.
    statistics: of the training actions; needed by `init` and `fit` only, because parameters carry
      them.

  Raises:
    ValueError: an unknown name, a config key that the tokenizer does not have, or statistics of
      another width or number of datasets.
  """
  module, frozen = freeze(config)
  if statistics is not None:
    shape, wanted = np.shape(statistics["min"]), (spec.num_datasets, spec.action_dim)
    if shape != wanted:
      raise ValueError(
        f"the statistics have shape {list(shape)}; {list(wanted)} (datasets, action dimensions) "
        "are needed"
      )
  values = {"name": config["name"]} | dataclasses.asdict(frozen)
  return contract(module.make(frozen, spec, statistics)._replace(config=values))


def contract(tokenizer: Tokenizer) -> Tokenizer:
  """Returns the contract's tokenizer around the functions that one file gives; see `Tokenizer`."""
  made = _total(tokenizer)
  return _checked(made._replace(evaluate=_evaluate(made)))


def freeze(config: Mapping[str, Any]) -> tuple[Any, Any]:
  """Returns the module that `config["name"]` names and its checked `Config`; errors as `make`'s."""
  return config_lib.freeze_model(config, MODULES)


def budget(tokenizer: Tokenizer, num_tokens: jax.Array | int) -> jax.Array:
  """Returns the prefix length that `num_tokens` counts as: the largest budget up to it."""
  budgets = jnp.asarray(tokenizer.budgets, jnp.int32)
  return jnp.max(jnp.where(budgets <= num_tokens, budgets, budgets[0]))


def _total(tokenizer: Tokenizer) -> Tokenizer:
  """Fills in what callers may leave out, and makes decode see only what it can decode."""
  N = tokenizer.max_tokens
  made = tokenizer._replace(budgets=tokenizer.budgets or tuple(range(1, N + 1)))
  if made.budgets[0] != 1 or made.budgets[-1] != N:
    raise ValueError(
      f"prefix lengths {made.budgets} must begin with 1 and end with {N}, all tokens"
    )

  # Parameters may come as numpy arrays, which traced values do not index.
  arrays = lambda params: jax.tree.map(jnp.asarray, params)

  def encode(params, actions_BCA, action_mask_BC=None, dataset_B=None):
    actions_BCA = jnp.asarray(actions_BCA, jnp.float32)
    if action_mask_BC is None:
      action_mask_BC = jnp.ones(actions_BCA.shape[:2], bool)
    params = params if tokenizer.host_encode else arrays(params)
    return tokenizer.encode(params, actions_BCA, action_mask_BC, dataset_B)

  def decode(params, tokens_BN, num_tokens=None, dataset_B=None):
    params, tokens_BN = arrays(params), jnp.asarray(tokens_BN)
    tokens_BN = jnp.clip(tokens_BN, 0, made.vocab_size - 1)
    num_tokens = N if num_tokens is None else num_tokens
    return tokenizer.decode(params, tokens_BN, budget(made, num_tokens), dataset_B)

  return made._replace(encode=encode, decode=decode)


def _evaluate(tokenizer: Tokenizer) -> Callable[..., dict[str, jax.Array]]:
  def evaluate(params, batch):
    tokens_BN = tokenizer.encode(params, batch["actions"], batch["action_mask"], batch["dataset"])

    def error(num_tokens):
      actions_BCA = tokenizer.decode(params, tokens_BN, num_tokens, batch["dataset"])
      return chunk_mse(params["statistics"], batch, actions_BCA)

    budgets = jnp.arange(1, tokenizer.max_tokens + 1)
    return {"mse": jax.lax.map(error, budgets).T, "tokens": tokens_BN}

  return evaluate


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


def reconstruction_loss(
  predicted_XCA: jax.Array,
  target_XCA: jax.Array,
  mask_XCA: jax.Array,
  cumulative_weight: float = 0.0,
  cumulative_dims: Sequence[int] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the masked mean squared error of normalised actions, and its parts by name.

  Args:
    predicted_XCA, target_XCA, mask_XCA: with any leading axes X.
    cumulative_weight: of the squared error of running sums, added to it.
    cumulative_dims: the dimensions of those sums, which should be displacements: there correlated
      errors add up to a position error, which the plain loss does not see.
  """
  mse = masked_mse(predicted_XCA, target_XCA, mask_XCA)
  if not cumulative_weight:
    return mse, {"mse": mse}
  dims = np.asarray(cumulative_dims)
  error_XCA = jnp.where(mask_XCA, predicted_XCA - target_XCA, 0)[..., dims]
  sums_XCA = jnp.cumsum(error_XCA, axis=-2)
  cumulative_mse = masked_mse(sums_XCA, jnp.zeros_like(sums_XCA), mask_XCA[..., dims])
  return mse + cumulative_weight * cumulative_mse, {"mse": mse, "cumulative_mse": cumulative_mse}


def check_cumulative(weight: float, dims: Sequence[int], action_dim: int) -> None:
  """Raises ValueError unless a tokenizer's `cumulative_weight` and `cumulative_dims` fit."""
  config_lib.at_least(weight, 0, "config.model.cumulative_weight")
  if weight and not dims:
    raise ValueError(
      "config.model.cumulative_weight is set, but cumulative_dims names no dimension"
    )
  if any(not 0 <= dim < action_dim for dim in dims):
    raise ValueError(
      f"config.model.cumulative_dims {tuple(dims)} leaves 0..{action_dim - 1}, the action's "
      "dimensions"
    )


def masked_mse(predicted_BCA: jax.Array, target_BCA: jax.Array, mask_BCA: jax.Array) -> jax.Array:
  """Returns the mean squared error where the mask is true."""
  error_BCA = jnp.where(mask_BCA, predicted_BCA - target_BCA, 0)
  return jnp.sum(jnp.square(error_BCA)) / jnp.sum(mask_BCA)


def valid(batch: Mapping[str, Any]) -> jax.Array:
  """Returns bool (B, C, A), false on padded steps and dimensions."""
  return batch["action_mask"][..., None] & batch["action_dim_mask"][:, None]


def _row(statistics: Mapping[str, jax.Array], name: str, dataset_B: jax.Array | None) -> jax.Array:
  rows = statistics[name][:1] if dataset_B is None else statistics[name][dataset_B]
  return rows[:, None, :]


def _checked(tokenizer: Tokenizer) -> Tokenizer:
  """Compiles encode and decode, and checks concrete arguments at the Python boundary."""
  spec, N, V = tokenizer.spec, tokenizer.max_tokens, tokenizer.vocab_size
  jit_encode = tokenizer.encode if tokenizer.host_encode else jax.jit(tokenizer.encode)
  jit_decode = jax.jit(tokenizer.decode)

  def check_dataset(dataset, rows):
    if dataset is None and spec.num_datasets > 1:
      raise ValueError(f"there are {spec.num_datasets} datasets: say whose statistics hold")
    if dataset is not None and jnp.shape(dataset) != (rows,):
      raise ValueError(f"dataset has shape {list(jnp.shape(dataset))}; expected [{rows}]")
    if dataset is not None and concrete(dataset):
      ids_B = np.asarray(dataset)
      if ((ids_B < 0) | (ids_B >= spec.num_datasets)).any():
        raise ValueError(f"dataset {ids_B.tolist()} is outside 0..{spec.num_datasets - 1}")

  def check_actions(what, actions_BCA, action_mask, dataset):
    shape = tuple(jnp.shape(actions_BCA))
    if len(shape) != 3 or shape[1:] != (spec.action_horizon, spec.action_dim):
      wanted = f"[B, {spec.action_horizon}, {spec.action_dim}]"
      raise ValueError(f"{what}: actions have shape {list(shape)}; expected {wanted}")
    if action_mask is not None and jnp.shape(action_mask) != shape[:2]:
      raise ValueError(
        f"{what}: the mask has shape {list(jnp.shape(action_mask))}; expected {list(shape[:2])}"
      )
    if concrete(actions_BCA) and concrete(action_mask):
      valid = True if action_mask is None else np.asarray(action_mask)[..., None]
      with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        bad = np.argwhere(~np.isfinite(np.asarray(actions_BCA, np.float32)) & valid)
      if len(bad):
        raise ValueError(
          f"{what}: actions hold NaN or infinity at [row, step, dimension] {bad[0].tolist()}"
        )
    check_dataset(dataset, shape[0])

  def encode(params, actions_BCA, action_mask=None, dataset=None):
    check_actions("encode", actions_BCA, action_mask, dataset)
    # Inside a trace, nothing that an inner jit has kept from another one, with other shardings.
    run = jit_encode if concrete(actions_BCA) else tokenizer.encode
    return run(params, actions_BCA, action_mask, dataset)

  def fit(actions_WCA, action_mask_WC, dataset_W):
    check_actions("fit", actions_WCA, action_mask_WC, dataset_W)
    assert tokenizer.fit is not None
    return tokenizer.fit(actions_WCA, action_mask_WC, dataset_W)

  def check_tokens(tokens_BN, num_tokens):
    shape, dtype = tuple(jnp.shape(tokens_BN)), jnp.result_type(tokens_BN)
    if len(shape) != 2 or shape[1] != N or not jnp.issubdtype(dtype, jnp.integer):
      raise ValueError(
        f"decode: tokens are {dtype}{list(shape)}; expected integers of shape [B, {N}]"
      )
    check_num_tokens(num_tokens, N)
    if concrete(tokens_BN) and concrete(num_tokens):
      used = np.asarray(tokens_BN)[:, : int(num_tokens)]
      bad = np.argwhere((used < 0) | (used >= V))
      if len(bad):
        raise ValueError(
          f"decode: token {used[tuple(bad[0])]} at [row, position] {bad[0].tolist()} is outside "
          f"0..{V - 1}"
        )

  def decode(params, tokens_BN, num_tokens=None, dataset=None):
    num_tokens = N if num_tokens is None else num_tokens
    check_tokens(tokens_BN, num_tokens)
    check_dataset(dataset, jnp.shape(tokens_BN)[0])
    run = jit_decode if concrete(tokens_BN) else tokenizer.decode
    return run(params, tokens_BN, num_tokens, dataset)

  jit_decodable = None if tokenizer.decodable is None else jax.jit(tokenizer.decodable)

  def decodable(params, tokens_BN, num_tokens=None):
    num_tokens = N if num_tokens is None else num_tokens
    check_tokens(tokens_BN, num_tokens)
    assert jit_decodable is not None
    return jit_decodable(params, tokens_BN, num_tokens)

  return tokenizer._replace(
    encode=encode,
    decode=decode,
    decodable=None if jit_decodable is None else decodable,
    fit=None if tokenizer.fit is None else fit,
  )


def check_num_tokens(num_tokens: Any, max_tokens: int) -> None:
  """Raises ValueError unless `num_tokens` is one integer; where concrete, in 1 .. max_tokens."""
  if jnp.shape(num_tokens) or not jnp.issubdtype(jnp.result_type(num_tokens), jnp.integer):
    raise ValueError(f"num_tokens is {num_tokens}; it must be one integer in 1..{max_tokens}")
  if concrete(num_tokens) and not 1 <= int(num_tokens) <= max_tokens:
    raise ValueError(f"num_tokens is {int(num_tokens)}; it must be in 1..{max_tokens}")


def concrete(x: Any) -> bool:
  """Whether a value can be looked at: false inside a trace."""
  return not isinstance(x, core.Tracer)
