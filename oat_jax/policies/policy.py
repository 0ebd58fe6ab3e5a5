"""The policy contract: what has been observed -> a chunk of actions in the dataset's units.

A policy is a NamedTuple of pure functions; the frozen tokenizer and all statistics are inside its
parameters, so that a checkpoint of a policy is all that acting needs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from oat_jax import batch as batch_lib
from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

Params = Any

# One file a policy: it holds `Config`, a frozen dataclass, and `make(config, spec, statistics,
# tokenizer) -> Policy`.
MODULES = {
  "autoregressive": "oat_jax.policies.autoregressive",
  "regression": "oat_jax.policies.regression",
  "diffusion": "oat_jax.policies.diffusion",
}


class Sampling(NamedTuple):
  """How a token is drawn from its logits; static, so each setting is a program of its own.

  Attributes:
    temperature: 0 takes the most likely token.
    top_k: draws among the k most likely tokens only; 0 means all.
  """

  temperature: float = 0.0
  top_k: int = 0


class Policy(NamedTuple):
  """Pure functions and static facts of one policy (axis letters as in oat_jax/batch.py).

  Attributes:
    init: key -> params. A policy over tokens takes the trained tokenizer's parameters: init(key,
      tokenizer_params).
    axes: () -> the trained parameters' tree with tuples of logical axis names.
    loss: (params, batch, key) -> (scalar, {name: scalar}).
    evaluate: (params, batch) -> {name: (B,) or (B, N)}, one row an example, to be averaged over
      held-out data.
    act: (params, batch, key, num_tokens=None, sampling=Sampling(), tolerance=None) -> (actions_BCA,
      info). `batch` needs `observation`, `observation_mask` and `dataset` only. num_tokens, in 1 ..
      max_tokens, may be traced; None means all. A policy that `refines` takes a tolerance, which
      may be traced: a row's tokens end where the mean squared change that those behind them would
      make, expected in normalised units, is no more. For a policy over tokens `info` holds
      `tokens_BN` and `num_tokens`, int32 (B,): how many were generated for each row, fewer than
      asked for where the tokenizer's prefixes end at certain lengths only or the row ended early;
      with a tolerance also `refinement_BX`, the change expected behind each block of tokens.
    prepare: (params, batch) -> {name: array} to be computed once for each training window and added
      to its batches (tokens of the frozen tokenizer), or None.
    spec: the batch that it was made for.
    max_tokens: N, or 1 for a policy without tokens.
    budgets: the prefix lengths that differ, ascending; (1,) for a policy without tokens.
    refines: whether `act` takes a tolerance.
  """

  init: Callable[..., Params]
  axes: Callable[[], Any]
  loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
  evaluate: Callable[..., dict[str, jax.Array]]
  act: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
  prepare: Callable[..., dict[str, jax.Array]] | None
  spec: BatchSpec
  max_tokens: int
  budgets: tuple[int, ...] = (1,)
  refines: bool = False


def make(
  config: Mapping[str, Any],
  spec: BatchSpec,
  statistics: Mapping[str, Mapping[str, Any]] | None = None,
  tokenizer: Tokenizer | None = None,
) -> Policy:
  """Returns the policy that `config["name"]` names.

  Args:
    config: values of the policy's own `Config`, plus `name`.
    spec: shapes of its batches.
    statistics: {"state": ..., "actions": ...} of the training split; needed by `init` only.
    tokenizer: the frozen tokenizer, for a policy over tokens.

  Raises:
    ValueError: an unknown name, or a config key that the policy does not have.
  """
  module, frozen = freeze(config)
  return _checked(module.make(frozen, spec, statistics, tokenizer))


def freeze(config: Mapping[str, Any]) -> tuple[Any, Any]:
  """Returns the module that `config["name"]` names and its checked `Config`; errors as `make`'s."""
  return config_lib.freeze_model(config, MODULES)


def _checked(policy: Policy) -> Policy:
  """Checks what `act` is given, at the Python boundary; under jit that is up to the caller."""

  def act(params, batch, key, num_tokens=None, sampling=Sampling(), tolerance=None):
    if all(map(tokenizer_lib.concrete, jax.tree.leaves(batch))):
      batch_lib.check(batch, policy.spec, batch_lib.ACTING)
    if tolerance is None:
      return policy.act(params, batch, key, num_tokens, sampling)
    if not policy.refines:
      raise ValueError(
        "a tolerance is given, but this policy has not learned how much tokens refine: it has none "
        "in order, or config.model.refinement is false"
      )
    return policy.act(params, batch, key, num_tokens, sampling, tolerance)

  return policy._replace(act=act)
