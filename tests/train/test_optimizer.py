"""Optimiser groups cover every parameter of every shipped model; schedules and averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.train import models
from oat_jax.train import optimizer

CONFIGS = ("tokenizer_oat:mt4", "tokenizer_oat:published", "policy_oat:mt4", "policy_regression")


def abstract_params(name):
  """The shapes of a shipped configuration's parameters, and its configuration."""
  from oat_jax.train import config as config_lib

  file, *variant = name.split(":")
  config = config_lib.freeze(tiny.get_config(f"{file}.py", *variant))
  batch_spec = tiny.spec(action_horizon=32, action_dim=4, state_dim=39)
  statistics = {"actions": tiny.statistics(4), "state": tiny.statistics(39)}
  tokenizer = tiny.tokenizer(batch_spec)
  inner = tokenizer if file == "policy_oat" else None
  model = models.build(config, batch_spec, statistics, inner)
  args = [jax.random.key(0)]
  if file == "policy_oat":
    args.append(jax.eval_shape(tokenizer.init, jax.random.key(0)))
  return jax.eval_shape(model.init, *args), config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_every_shipped_model_has_its_group(name):
  params, config = abstract_params(name)
  groups = jax.tree_util.tree_leaves_with_path(optimizer.groups(params))
  for (path, leaf), (_, group) in zip(jax.tree_util.tree_leaves_with_path(params), groups):
    where = optimizer.path_name(path)
    frozen = not where.startswith("network/")
    # Matrices decay; vectors, and tables and positions whose rows are vectors of their own, do not.
    last = where.rsplit("/", 1)[-1]
    decays = last == "w" or last.startswith("w_")
    assert group == ("frozen" if frozen else "decay" if decays else "no_decay"), where
    assert len(leaf.shape) > 1 or not decays
  state = jax.eval_shape(optimizer.make(config.optimizer, config.steps).init, params)
  assert jax.tree.leaves(state)


def test_a_parameter_without_a_group_is_an_error():
  with pytest.raises(ValueError, match="'network/mystery' is in no optimiser group"):
    optimizer.groups({"network": {"mystery": jnp.zeros(3), "w": jnp.zeros((2, 2))}})


def rates(steps, **changes):
  schedule = optimizer.schedule(tiny.optimizer_config(learning_rate=2.0, **changes), steps)
  return np.array([float(schedule(i)) for i in range(steps + 1)])


def test_constant_schedule_warms_up_linearly():
  np.testing.assert_allclose(rates(8, warmup_steps=4), [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2])
  np.testing.assert_allclose(rates(3, warmup_steps=0), [2, 2, 2, 2])


def test_cosine_schedule_ends_at_zero():
  got = rates(8, warmup_steps=4, schedule="cosine")
  want = [0, 0.5, 1, 1.5, *(1 + np.cos(np.pi * np.arange(5) / 4))]
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_average_follows_the_power_law_up_to_its_maximum():
  config = tiny.optimizer_config(ema_power=0.75, ema_max=0.99)
  steps = np.array([0, 1, 10, 100, 10_000])
  got = [float(optimizer.ema_decay(config, jnp.int32(i))) for i in steps]
  np.testing.assert_allclose(got, np.minimum(0.99, 1 - (1 + steps) ** -0.75), rtol=1e-5)
  assert got[0] == 0  # the first average is the first parameters


def params():
  return {
    "network": {"w": jnp.full((2, 2), 3.0), "b": jnp.full(2, 3.0)},
    "statistics": {"min": jnp.full(2, 3.0)},
  }


def update(config, gradient, steps=1):
  tx, at = optimizer.make(config, 10), params()
  state, trained = tx.init(at), optimizer.trained(at)
  for _ in range(steps):
    grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), trained)
    updates, state = tx.update(grads, state, at)
  return updates


def test_weight_decay_reaches_matrices_only():
  config = tiny.optimizer_config(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
  updates = update(config, 0.0)
  np.testing.assert_allclose(updates["network"]["w"], -0.1 * 0.5 * 3, rtol=1e-6)
  assert not updates["network"]["b"].any()


def test_the_first_step_of_adamw_is_the_learning_rate():
  updates = update(tiny.optimizer_config(learning_rate=0.1, warmup_steps=0), 1e-3)
  np.testing.assert_allclose(updates["network"]["b"], -0.1, rtol=1e-3)


def test_gradients_are_clipped_by_their_global_norm():
  tx = optimizer.make(tiny.optimizer_config(clip=1.0), 10)
  grads = jax.tree.map(lambda x: jnp.full_like(x, 100.0), optimizer.trained(params()))
  _, state = tx.update(grads, tx.init(params()), params())
  moments = [x for x in jax.tree.leaves(state) if x.shape == (2, 2)]
  first = 0.1 * 1 / np.sqrt(6)  # 6 equal gradients
  assert any(np.allclose(x, first, rtol=1e-5) for x in moments)


def test_what_is_trained_is_taken_out_and_put_back():
  whole = params() | {"fitted": {"table": jnp.arange(3)}, "codebook": {"codes": jnp.ones(2)}}
  trained = optimizer.trained(whole)
  assert tiny.to_bits(trained) == {
    path: bits for path, bits in tiny.to_bits(whole).items() if path.startswith("['network']")
  }
  changed = optimizer.merge(jax.tree.map(lambda x: x + 1, trained), whole)
  assert tiny.to_bits(changed["network"]) == tiny.to_bits(
    jax.tree.map(lambda x: x + 1, whole["network"])
  )
  for name in set(whole) - {"network"}:
    assert tiny.to_bits(changed[name]) == tiny.to_bits(whole[name])


@pytest.mark.parametrize("name", ["tokenizer", "regression"])
def test_the_reported_gradient_norm_is_that_of_trained_parameters(name):
  model = tiny.tokenizer() if name == "tokenizer" else tiny.policy(name="regression")
  made = batch_lib.fake(tiny.spec(), 8)
  start = jax.jit(model.init)(jax.random.key(0))
  # The statistics do have gradients, because losses are taken in normalised units.
  key = jax.random.fold_in(jax.random.key(0), 0)
  grads = jax.jit(jax.grad(lambda p: model.loss(p, made, key)[0]))(start)
  squares = [np.square(x).sum() for x in jax.tree.leaves(grads["network"])]
  _, rows = tiny.train_steps(model, (), [made])
  assert rows[0]["grad_norm"] == pytest.approx(np.sqrt(np.sum(squares)), rel=1e-4)
