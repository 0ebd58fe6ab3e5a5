"""AdamW by parameter name: a rule must say of each parameter if it is frozen or decayed."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from oat_jax.train import config as config_lib

# First match wins, on the path "network/encoder/blocks_0/w_up".
GROUPS = (
  (
    "frozen",
    r"^(statistics|action_statistics|tokenizer|fitted|codebook)/|/frozen_[^/]*/",
  ),
  (
    "no_decay",
    r"(^|/)(b|table|registers|queries|summary|missing|masked_latent|[a-z_]*(scale|positions))$",
  ),
  ("decay", r"(^|/)w(_[a-z]+)?$"),
)
# The encoders of cameras' frames, which learn at a rate of their own.
IMAGES = r"/images(_[^/]*)?/"


def groups(params: Any) -> Any:
  """Returns the params' tree with group names; ValueError for a leaf that no rule covers."""

  def one(path, _):
    name = path_name(path)
    for group, pattern in GROUPS:
      if re.search(pattern, name):
        return group
    raise ValueError(f"parameter '{name}' is in no optimiser group; add it to GROUPS in {__name__}")

  return jax.tree_util.tree_map_with_path(one, params)


def trained(params: Any) -> Any:
  """Returns the params' tree with None for what gradients do not change, whatever its dtype."""
  return jax.tree.map(lambda group, x: None if group == "frozen" else x, groups(params), params)


def count(params: Any) -> int:
  """Returns how many numbers gradients change."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(trained(params)))


def merge(trained: Any, params: Any) -> Any:
  """Returns params with the leaves of `trained`, a tree as the function of that name makes it."""
  return jax.tree.map(
    lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None
  )


def path_name(path: Any) -> str:
  return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def schedule(config: config_lib.Optimizer, steps: int) -> optax.Schedule:
  """Linear warm-up, then constant or a cosine to zero at `steps`."""
  warmup = optax.linear_schedule(0.0, config.learning_rate, max(1, config.warmup_steps))
  if config.schedule == "constant":
    after = optax.constant_schedule(config.learning_rate)
  else:
    after = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - config.warmup_steps))
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def make(config: config_lib.Optimizer, steps: int) -> optax.GradientTransformation:
  """Returns the optimiser of a run of `steps` steps; it takes gradients of `trained(params)`."""

  decayed = lambda params: jax.tree.map(lambda group: group == "decay", groups(params))
  # One for all, rather than one a group: states of groups name every parameter of the others, which
  # costs the host as much of each step as the parameters themselves.
  adamw = optax.adamw(
    schedule(config, steps), config.b1, config.b2, weight_decay=config.weight_decay, mask=decayed
  )
  inner = optax.chain(optax.clip_by_global_norm(config.clip), adamw)

  def update(updates, state, params=None):
    updates, state = inner.update(updates, state, trained(params))
    # Every update is a multiple of its learning rate, the decay of weights included.
    rated = lambda path, x: x * config.image_rate if re.search(IMAGES, path_name(path)) else x
    return jax.tree_util.tree_map_with_path(rated, updates), state

  return optax.GradientTransformation(lambda params: inner.init(trained(params)), update)


def ema_decay(config: config_lib.Optimizer, step: jax.Array) -> jax.Array:
  """Decay of the parameters' average after step `step` (counted from 0)."""
  return jnp.minimum(config.ema_max, 1 - (1.0 + step) ** -config.ema_power)
