"""Train steps per second of tokenizer and policy, at quickstart and at published size.

At the quickstart's size also what the loop itself takes of each: the milliseconds until a call of
the step returns (dispatch), and until a save does, while devices go on. Beside the first stands its
floor: jax's own dispatch of the same arrays through a program that does next to nothing.
"""

from collections.abc import Callable, Mapping
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from oat_jax import batch as batch_lib
from oat_jax.bench import clock
from oat_jax.bench import models
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.train import checkpoint
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
      step = Step(config, *models.of_run(config, tokenizer_config.model))
      count = max(1, round(repeats * scale))
      measured = clock.cost(step, count)
      name = f"train_{kind}_{size}"
      figures[f"{name}_batch_rows"] = config.batch_size
      figures[f"{name}_steps_per_wall_s"] = 1 / measured.wall_s
      figures[f"{name}_cpu_s_per_step"] = measured.cpu_s
      if size == "mt4":
        figures[f"{name}_arrays"] = len(jax.tree.leaves(step.state))
        figures[f"{name}_dispatch_wall_ms"] = 1e3 * step.dispatch_seconds(count)
        figures[f"{name}_dispatch_floor_wall_ms"] = 1e3 * step.floor_seconds(count)
        figures[f"{name}_save_wall_ms"] = 1e3 * step.save_seconds(min(count, 5))
  return figures


class Step:
  """A compiled, donated train step on one batch that stays; () -> metrics.

  What the model computes once for each window (a policy's tokens) is given.
  """

  def __init__(self, config: config_lib.Config, model: Any, params: Any):
    mesh = mesh_lib.make_mesh(config.mesh)
    optimizer = optimizer_lib.make(config.optimizer, config.steps)
    self.state, shardings = state_lib.create(lambda: params, model.axes(), optimizer, mesh)
    batch = batch_lib.fake(models.SPEC, config.batch_size)
    prepare = getattr(model, "prepare", None)
    if prepare is not None:
      batch |= jax.device_get(jax.jit(prepare)(params, batch))
    self._batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
    update = getattr(model, "update", None)
    self._step = step_lib.compile_train_step(
      model.loss, optimizer, config.optimizer, config.seed, mesh, shardings, update
    )

  def __call__(self) -> Any:
    self.state, metrics = self._step(self.state, self._batch)
    return metrics

  def dispatch_seconds(self, repeats: int) -> float:
    """Returns how long a call holds the host, which does not wait for its result."""
    return self._held(self._step, self.state, repeats)

  def floor_seconds(self, repeats: int) -> float:
    """Returns the same of a program that adds one to every array of the state, and no more."""
    add = lambda state, batch: (jax.tree.map(lambda x: x + 1, state), None)
    return self._held(jax.jit(add, donate_argnums=0), self.state, repeats)

  def _held(self, step: Callable[..., Any], state: Any, repeats: int) -> float:
    state, taken = jax.tree.map(jnp.copy, state), []
    for _ in range(repeats + 1):  # the first one compiles
      jax.block_until_ready(state)
      begin = time.perf_counter()
      state, _ = step(state, self._batch)
      taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])

  def save_seconds(self, repeats: int) -> float:
    """Returns how long a save holds the loop, writing goes on behind it."""
    taken = []
    with tempfile.TemporaryDirectory() as folder:
      saved = checkpoint.Checkpointer(folder, keep=1)
      for step in range(1, repeats + 1):
        jax.block_until_ready(self())
        begin = time.perf_counter()
        saved.save(step, self.state, {"step": step})
        taken.append(time.perf_counter() - begin)
        saved.settle()
      saved.close()
    return statistics.median(taken)
