"""Models of the shipped configs on fake data, for sections that measure computing alone."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax import policies
from oat_jax import tokenizers
from oat_jax.data import normalization

SPEC = batch_lib.BatchSpec(
  observation_steps=2,
  action_horizon=32,
  action_dim=4,
  state_dim=39,
  task_names=("a", "b", "c", "d"),
)


def statistics() -> dict[str, dict[str, np.ndarray]]:
  rng = np.random.default_rng(0)
  draw = lambda dims: normalization.stack([normalization.compute(rng.uniform(-1, 1, (512, dims)))])
  return {"actions": draw(SPEC.action_dim), "state": draw(SPEC.state_dim)}


def tokenizer(config: Mapping[str, Any]) -> tuple[Any, Any]:
  """Returns (tokenizer, params)."""
  made = tokenizers.make(config, SPEC, statistics()["actions"])
  return made, jax.jit(made.init)(jax.random.key(0))


def of_run(config: Any, tokenizer_config: Mapping[str, Any]) -> tuple[Any, Any]:
  """Returns (model, params) of a run of a tokenizer, or of a policy over that tokenizer."""
  if config.kind == "tokenizer":
    return tokenizer(config.model)
  return policy(config.model, tokenizer_config)


def policy(
  config: Mapping[str, Any], tokenizer_config: Mapping[str, Any] | None = None
) -> tuple[Any, Any]:
  """Returns (policy, params); without a tokenizer's config, of a policy that has no tokens."""
  if tokenizer_config is None:
    made = policies.make(config, SPEC, statistics())
    return made, jax.jit(made.init)(jax.random.key(1))
  inner, inner_params = tokenizer(tokenizer_config)
  made = policies.make(config, SPEC, statistics(), inner)
  return made, jax.jit(made.init)(jax.random.key(1), inner_params)
