"""The training state: born sharded, every leaf made on its own device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from oat_jax.parallel import sharding


class TrainState(NamedTuple):
  """What a step maps to the next one.

  Attributes:
    step: int32, steps done.
    failures: int32, steps whose loss or gradient was not finite, and which changed nothing else.
    params: what gradients change, and what they leave alone (statistics, a frozen tokenizer).
    ema_params: their average; what evaluation, checkpoints' `params` and exports use.
    opt_state: of the optimiser.
  """

  step: jax.Array
  failures: jax.Array
  params: Any
  ema_params: Any
  opt_state: Any


def create(
  init: Callable[[], Any],
  axes: Any,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> tuple[TrainState, TrainState]:
  """Returns (state, shardings).

  Args:
    init: () -> params.
    axes: logical axis names of the trained parameters, as `Tokenizer.axes()` gives them.
    optimizer: makes the optimiser's state.
    mesh: where the state lives.
  """
  make, shardings = _plan(init, axes, optimizer, mesh)
  return jax.jit(make, out_shardings=shardings)(), shardings


def abstract(
  init: Callable[[], Any],
  axes: Any,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> tuple[TrainState, TrainState]:
  """As `create`, without making anything: every leaf is a shape, a dtype and a sharding."""
  make, shardings = _plan(init, axes, optimizer, mesh)
  place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(place, jax.eval_shape(make), shardings), shardings


def _plan(init, axes, optimizer, mesh):
  def make():
    params = init()
    average = jax.tree.map(jnp.copy, params)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, average, optimizer.init(params))

  shapes = jax.eval_shape(make)
  params = sharding.param_shardings(axes, shapes.params, mesh)
  return make, sharding.state_shardings(shapes, shapes.params, params, mesh)
