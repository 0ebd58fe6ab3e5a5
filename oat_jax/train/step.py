"""The train step: a free function (state, batch) -> (state, metrics), jitted only here."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from oat_jax.nn import partitioning
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.parallel import sharding
from oat_jax.train import config as config_lib
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train.state import TrainState

Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def train_step(
  state: TrainState,
  batch: Any,
  *,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  config: config_lib.Optimizer,
  seed: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update; randomness is a function of the seed and the step, so a resumed run repeats it."""
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
  grads = optimizer_lib.without_frozen(grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  decay = optimizer_lib.ema_decay(config, state.step)
  # In this form an average of equal values stays equal to them: frozen parameters keep every bit.
  average = lambda old, new: old + (1 - decay) * (new - old)
  ema_params = jax.tree.map(average, state.ema_params, params)
  metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)} | aux
  return TrainState(state.step + 1, params, ema_params, opt_state), metrics


def compile_train_step(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  config: config_lib.Optimizer,
  seed: int,
  mesh: jax.sharding.Mesh,
  shardings: TrainState,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the jitted step: state sharded as born and donated, batch sharded over its rows."""

  def step(state, batch):
    with partitioning.rules(sharding.RULES, mesh):
      return train_step(state, batch, loss=loss, optimizer=optimizer, config=config, seed=seed)

  return jax.jit(
    step,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
    donate_argnums=0,
  )
