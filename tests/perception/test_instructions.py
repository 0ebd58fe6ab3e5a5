"""The observation encoder with instructions: an embedding, or its row of the frozen table."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import config as config_lib
from oat_jax.nn import partitioning
from oat_jax.parallel import sharding
from oat_jax.perception import observation
from oat_jax.train import optimizer

WIDTH, E, B = 8, 6, 4
SPEC = tiny.spec(language_dim=E, task_names=("lift", "pull", "push"))
NAMES = {"frozen_language/table", "language/b", "language/w"}


def encoder(spec=SPEC, **changes):
  config = config_lib.freeze(observation.Config, tiny.OBSERVATION | {"language_width": 5} | changes)
  return observation.Encoder(config, spec, WIDTH)


def params_of(module):
  rng = np.random.default_rng(0)
  make = lambda: partitioning.init(module, jax.random.key(0), observation.sample(module.spec))
  draw = lambda x: (rng.normal(size=x.shape) / np.sqrt(x.size / x.shape[-1])).astype(np.float32)
  return jax.tree.map(draw, jax.eval_shape(make))


def names(params):
  return set(flax.traverse_util.flatten_dict(params, sep="/"))


def seen(language=None, tasks=(0, 1, 2, 1), rows=B):
  made = batch_lib.fake(SPEC, rows)
  made["observation"]["task"] = np.resize(np.array(tasks, np.int32), rows)
  made["observation"].pop("language")
  if language is not None:
    made["observation"]["language"] = language
  statistics = {"offset": jnp.zeros((1, 5)), "scale": jnp.ones((1, 5))}
  return observation.inputs(statistics, made, observation.Config())


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, inputs):
  return module.apply({"params": params}, inputs)


def test_an_embedding_stands_for_its_tasks_row():
  module = encoder()
  params = params_of(module)
  table_NE = params["frozen_language"]["table"]
  by_task = run(module, params, seen())
  given = run(module, params, seen(table_NE[[0, 1, 2, 1]]))
  np.testing.assert_allclose(by_task, given, atol=1e-6)
  other = run(module, params, seen(table_NE[[1, 1, 2, 0]]))
  changed = (np.abs(other - by_task) > 1e-4).any((1, 2))
  assert changed.tolist() == [True, False, False, True]
  longer = run(module, params, seen(7 * table_NE[[0, 1, 2, 1]]))  # only its direction counts
  np.testing.assert_allclose(longer, by_task, atol=1e-5)
  assert np.isfinite(run(module, params, seen(0 * table_NE[[0, 1, 2, 1]]))).all()


def test_without_a_task_table_only_the_instruction_says_what_to_do():
  both, alone = encoder(), encoder(task_width=0)
  assert names(params_of(both)) - names(params_of(alone)) == {"task/table"}
  assert NAMES <= names(params_of(alone))
  params = params_of(alone)
  language_BE = np.random.default_rng(1).normal(size=(B, E)).astype(np.float32)
  one, other = (run(alone, params, seen(language_BE, tasks)) for tasks in ((0, 1, 2, 1), (0,)))
  np.testing.assert_array_equal(one, other)
  one, other = (run(alone, params, seen(None, tasks)) for tasks in ((0, 1, 2, 1), (0,)))
  assert (one != other).any((1, 2)).tolist() == [False, True, True, True]
  untold = params_of(encoder(tiny.spec(), task_width=0))
  assert not names(untold) & (NAMES | {"task/table"})


def test_every_parameter_has_a_group_and_a_sharding_and_the_table_is_frozen():
  module = encoder(modality_dropout=0.5)
  params = {"network": {"observe": params_of(module)}}
  groups = flax.traverse_util.flatten_dict(optimizer.groups(params), sep="/")
  frozen = {name for name, group in groups.items() if group == "frozen"}
  assert frozen == {f"network/observe/{observation.LANGUAGE}"}
  axes = partitioning.logical_axes(module, observation.sample(SPEC))
  leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  assert {name for axes in leaves for name in axes} <= {None, *dict(sharding.RULES)}


def test_modality_dropout_covers_the_instruction():
  module, rows = encoder(modality_dropout=0.5, task_width=0), 64
  params = params_of(module)
  assert params["missing_language"]["missing"].shape == (5,)
  language_BE = np.random.default_rng(1).normal(size=(rows, E)).astype(np.float32)
  inputs, weights = seen(rows=rows), np.random.default_rng(0).normal(size=WIDTH)

  @jax.jit
  def gradients(x):
    rngs = {"dropout": jax.random.key(0)}
    loss = lambda x: (
      module.apply({"params": params}, inputs | x, False, rngs=rngs) @ weights
    ).sum()
    return jax.grad(loss)(x)

  found = gradients({"language": language_BE, "state": inputs["state"]})
  kept = {name: np.asarray(x).reshape(rows, -1).any(1) for name, x in found.items()}
  assert 0.3 < kept["language"].mean() < 0.7
  assert set(2 * kept["language"] + kept["state"]) == {0, 1, 2, 3}  # drawn apart


@pytest.mark.parametrize("name", tiny.POLICIES)
def test_every_policy_hands_on_the_instruction(name):
  tokenizer = tiny.tokenizer(SPEC) if name == "autoregressive" else None
  policy, key = tiny.policy(SPEC, tokenizer, name), jax.random.key(0)
  args = () if tokenizer is None else (jax.eval_shape(tokenizer.init, key),)
  params = jax.eval_shape(policy.init, key, *args)
  made = batch_lib.fake(SPEC, B)
  del made["observation"]["language"]

  def traced(**language):
    batch = made | {"observation": made["observation"] | language}
    jax.eval_shape(policy.loss, params, batch, key)
    acting = {name: batch[name] for name in batch_lib.ACTING}
    jax.eval_shape(lambda *args: policy.act(*args), params, acting, key)

  traced()
  traced(language=np.zeros((B, E), np.float32))
  with pytest.raises(flax.errors.ScopeParamShapeError, match="/language"):  # who else would mind
    traced(language=np.zeros((B, E + 1), np.float32))


@pytest.mark.parametrize(("name", "value"), [("language_width", 0), ("task_width", -1)])
def test_impossible_widths_are_errors(name, value):
  with pytest.raises(ValueError, match=f"observation.{name} is {value}; it must be at least"):
    encoder(**{name: value})
