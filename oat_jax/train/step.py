"""The train step: a free function (state, batch) -> (state, metrics), jitted only here."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from oat_jax.nn import partitioning
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.parallel import sharding
from oat_jax.train import config as config_lib
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train.state import TrainState

# For TPUs: products take their gathered operand whole. Piece by piece, as it arrives ("windowed"),
# their sums go to memory and back at every piece: on 16 chips of v5e a step of the 1b policy would
# move three times the bytes and be bound by that (launch/plan.py).
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}

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
  accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update; randomness is a function of the seed and the step, so a resumed run repeats it.

  Only what gradients train is differentiated and averaged; the rest is kept, or changed by
  `update(params, aux["update"])`, to the last bit. With `accumulate` the batch is cut into so many
  parts, one behind the other: the loss is the mean of theirs.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  trained = optimizer_lib.trained(state.params)

  def of(batch, key):
    whole = lambda trained: loss(optimizer_lib.merge(trained, state.params), batch, key)
    return jax.value_and_grad(whole, has_aux=True)(trained)

  (value, aux), grads = of(batch, key) if accumulate == 1 else _in_parts(of, batch, key, accumulate)
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
  grad_norm = optax.tree.norm(grads)
  # A step that is not finite changes nothing; one too many of them, and none does any more: the
  # state stays what it was before that step, until the host looks.
  failed = ~(jnp.isfinite(value) & jnp.isfinite(grad_norm))
  failures = jnp.minimum(state.failures + failed, config.max_failures + 1)
  stuck = failures > config.max_failures
  keep = failed | stuck
  new, old = (params, ema_params, opt_state), (state.params, state.ema_params, state.opt_state)
  params, ema_params, opt_state = jax.tree.map(lambda a, b: jnp.where(keep, b, a), new, old)
  step = state.step + ~stuck
  norms = {"grad_norm": grad_norm, "update_norm": optax.tree.norm(changes)}
  metrics = {"loss": value, **norms, "failures": failures} | aux
  return TrainState(step, failures, params, ema_params, opt_state), metrics


def _in_parts(of: Callable[[Any, jax.Array], Any], batch: Any, key: jax.Array, parts: int) -> Any:
  """Returns `of` a batch as the mean over parts of it.

  Row i is in part i modulo `parts`, so that every part lies on all devices as the batch does.
  """

  def cut(x_B):
    x_PB = jnp.swapaxes(x_B.reshape(-1, parts, *x_B.shape[1:]), 0, 1)
    return partitioning.constrain(x_PB, None, "batch", *[None] * (x_B.ndim - 1))

  def add(total, part):
    index, batch = part
    return jax.tree.map(jnp.add, total, of(batch, jax.random.fold_in(key, index))), None

  cut_batch = jax.tree.map(cut, batch)
  first = jax.eval_shape(of, jax.tree.map(lambda x: x[0], cut_batch), key)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
  total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), cut_batch))
  return jax.tree.map(lambda x: x / parts, total)


def check(update: Update | None, accumulate: int) -> None:
  """Raises ValueError for a model that cannot be trained on parts of batches."""
  if accumulate > 1 and update is not None:
    raise ValueError(
      f"config.accumulate is {accumulate}; a model that keeps more than gradients train, such as "
      "the codebooks of VQ, sees its batches whole: set it to 1"
    )


def compile_evaluate(evaluate: Any, mesh: jax.sharding.Mesh, shardings: Any) -> Any:
  """Returns the jitted (params, batch) -> {name: (B, ...)}, sharded as the train step is.

  Args:
    evaluate: of a model.
    mesh: where parameters lie.
    shardings: theirs. What comes out lies whole on every device.
  """

  def under_rules(params, batch):
    with partitioning.rules(sharding.RULES, mesh):
      return evaluate(params, batch)

  return jax.jit(
    under_rules,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=mesh_lib.replicated(mesh),
  )


def compile_train_step(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  config: config_lib.Optimizer,
  seed: int,
  mesh: jax.sharding.Mesh,
  shardings: TrainState,
  update: Update | None = None,
  accumulate: int = 1,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the jitted step: state sharded as born and donated, batch sharded over its rows."""
  check(update, accumulate)

  def step(state, batch):
    with partitioning.rules(sharding.RULES, mesh):
      return train_step(
        state,
        batch,
        loss=loss,
        optimizer=optimizer,
        config=config,
        seed=seed,
        update=update,
        accumulate=accumulate,
      )

  return jax.jit(
    step,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
    donate_argnums=0,
    compiler_options=TPU_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None,
  )
