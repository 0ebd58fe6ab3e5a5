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

Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, Any]]]
Update = Callable[[Any, Any], Any]


def train_step(
  state: TrainState,
  batch: Any,
  *,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  config: config_lib.Optimizer,
  seed: int,
  update: Update | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update; randomness is a function of the seed and the step, so a resumed run repeats it.

  Only what gradients train is differentiated and averaged; the rest is kept, or changed by
  `update(params, aux["update"])`, to the last bit.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  trained = optimizer_lib.trained(state.params)
  whole = lambda trained: loss(optimizer_lib.merge(trained, state.params), batch, key)
  (value, aux), grads = jax.value_and_grad(whole, has_aux=True)(trained)
  changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
  trained = optax.apply_updates(trained, changes)
  params, rest = optimizer_lib.merge(trained, state.params), state.ema_params
  if update is not None:
    params = rest = update(params, aux["update"])
    aux = {name: value for name, value in aux.items() if name != "update"}
  decay = optimizer_lib.ema_decay(config, state.step)
  average = lambda old, new: old + (1 - decay) * (new - old)
  averaged = jax.tree.map(average, optimizer_lib.trained(state.ema_params), trained)
  ema_params = optimizer_lib.merge(averaged, rest)
  metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)} | aux
  return TrainState(state.step + 1, params, ema_params, opt_state), metrics


def compile_train_step(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  config: config_lib.Optimizer,
  seed: int,
  mesh: jax.sharding.Mesh,
  shardings: TrainState,
  update: Update | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the jitted step: state sharded as born and donated, batch sharded over its rows."""

  def step(state, batch):
    with partitioning.rules(sharding.RULES, mesh):
      return train_step(
        state, batch, loss=loss, optimizer=optimizer, config=config, seed=seed, update=update
      )

  return jax.jit(
    step,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
    donate_argnums=0,
  )
