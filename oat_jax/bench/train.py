"""Train steps per second of tokenizer and policy, at quickstart and at published size."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from oat_jax import batch as batch_lib
from oat_jax.bench import clock
from oat_jax.bench import models
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.train import config as config_lib
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train import state as state_lib
from oat_jax.train import step as step_lib

REPEATS = {"mt4": 20, "published": 3}  # size -> steps measured


def run(configs: Mapping[str, Any], scale: float = 1.0) -> dict[str, float]:
  """`configs` holds `tokenizer_` and `policy_` of each size."""
  figures = {}
  for size, repeats in REPEATS.items():
    tokenizer_config = configs[f"tokenizer_{size}"]
    for kind in ("tokenizer", "policy"):
      config = config_lib.freeze(configs[f"{kind}_{size}"])
      measured = step_cost(config, tokenizer_config.model, max(1, round(repeats * scale)))
      name = f"train_{kind}_{size}"
      figures[f"{name}_batch_rows"] = config.batch_size
      figures[f"{name}_steps_per_wall_s"] = 1 / measured.wall_s
      figures[f"{name}_cpu_s_per_step"] = measured.cpu_s
  return figures


def step_cost(config: config_lib.Config, tokenizer_config: Any, repeats: int) -> clock.Cost:
  """Returns the cost of a train step."""
  return clock.cost(train_step(config, *models.of_run(config, tokenizer_config)), repeats)


def train_step(config: config_lib.Config, model: Any, params: Any) -> Callable[[], Any]:
  """Returns () -> metrics: a compiled, donated step on one batch that stays.

  What the model computes once for each window (a policy's tokens) is given.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  optimizer = optimizer_lib.make(config.optimizer, config.steps)
  state, shardings = state_lib.create(lambda: params, model.axes(), optimizer, mesh)
  batch = batch_lib.fake(models.SPEC, config.batch_size)
  prepare = getattr(model, "prepare", None)
  if prepare is not None:
    batch |= jax.device_get(jax.jit(prepare)(params, batch))
  batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
  update = getattr(model, "update", None)
  step = step_lib.compile_train_step(
    model.loss, optimizer, config.optimizer, config.seed, mesh, shardings, update
  )

  def call():
    nonlocal state
    state, metrics = step(state, batch)
    return metrics

  return call
