"""The policy contract, which the regression policy shares: units, masks, errors, golden step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import policies
from oat_jax.policies import Sampling

SPEC = tiny.spec(num_datasets=2)


@pytest.fixture(scope="module")
def policy():
  return tiny.policy(SPEC, name="regression")


@pytest.fixture(scope="module")
def params(policy):
  return jax.jit(policy.init)(jax.random.key(0))


def seen(B=4):
  """What a policy sees when it acts: a batch without actions."""
  made = batch_lib.fake(SPEC, B)
  return {name: made[name] for name in ("observation", "observation_mask", "dataset")}


def unbounded(params):
  """The same policy, whose chunks are not clipped to the training range."""
  limits = {"min": jnp.full((2, 3), -1e9), "max": jnp.full((2, 3), 1e9)}
  return params | {"action_statistics": params["action_statistics"] | limits}


def test_regression_acts_in_the_dataset_s_units_and_inside_its_range(policy, params):
  large = jax.tree.map(lambda x: 50 * x, params["network"]["to_actions"])
  loud = params | {"network": params["network"] | {"to_actions": large}}
  act = jax.jit(policy.act)
  for parameters in (params, loud):
    chunk_BCA, info = act(parameters, seen(), jax.random.key(0))
    low_BA, high_BA = (params["action_statistics"][k][seen()["dataset"]] for k in ("min", "max"))
    assert chunk_BCA.shape == (4, 8, 3) and info == {}
    assert (chunk_BCA >= low_BA[:, None]).all() and (chunk_BCA <= high_BA[:, None]).all()
  assert (chunk_BCA == low_BA[:, None]).any() and (chunk_BCA == high_BA[:, None]).any()


def test_regression_ignores_key_and_sampling_but_not_an_impossible_prefix(policy, params):
  one = jax.jit(policy.act)(params, seen(), jax.random.key(0))[0]
  other = policy.act(params, seen(), jax.random.key(1), 1, Sampling(1.0, 3))[0]
  np.testing.assert_allclose(one, other, atol=1e-6)
  with pytest.raises(ValueError, match="num_tokens is 2; it must be in 1..1"):
    policy.act(params, seen(), jax.random.key(0), 2)


def test_acting_on_what_cannot_be_is_an_error(policy, params):
  batch = seen()
  batch["observation"]["state"][1, 0, 2] = np.nan
  with pytest.raises(ValueError, match=r"'observation/state' holds NaN or infinity at .*1, 0, 2"):
    policy.act(params, batch, jax.random.key(0))
  batch = seen()
  batch["observation"]["task"] = np.full(4, 2, np.int32)
  with pytest.raises(ValueError, match="'observation/task' is 2 in row 0; it must be in 0..1"):
    policy.act(params, batch, jax.random.key(0))


def test_regression_s_loss_equals_plain_numpy(policy, params):
  made = batch_lib.fake(SPEC, 6)
  made["action_dim_mask"][-1, 1] = False
  # Without clipping, what acting gives is what the loss compares.
  unclipped = unbounded(params)
  chunk_BCA = np.asarray(jax.jit(policy.act)(unclipped, made, jax.random.key(0))[0])
  squares = []
  for b, c, a in np.ndindex(chunk_BCA.shape):
    if made["action_mask"][b, c] and made["action_dim_mask"][b, a]:
      scale = params["action_statistics"]["scale"][made["dataset"][b], a]
      squares.append(float((chunk_BCA[b, c, a] - made["actions"][b, c, a]) * scale) ** 2)
  loss, aux = jax.jit(policy.loss)(params, made, jax.random.key(0))
  np.testing.assert_allclose([loss, aux["mse"]], np.mean(squares), rtol=1e-4)
  rows_B = np.asarray(jax.jit(policy.evaluate)(params, made)["chunk_mse"])
  weights_B = (made["action_mask"].sum(1) * made["action_dim_mask"].sum(1)).astype(float)
  np.testing.assert_allclose(np.average(rows_B, weights=weights_B), loss, rtol=1e-4)


@pytest.mark.parametrize("what", ["state", "task", "observation_mask", "dataset"])
def test_regression_looks_at_everything_that_is_observed(policy, params, what):
  base, changed = seen(), seen()
  if what in ("state", "task"):
    value = changed["observation"][what]
    changed["observation"] = changed["observation"] | {
      what: value + 0.5 if what == "state" else 1 - value
    }
  else:
    changed[what] = 1 - changed[what] if what == "dataset" else ~changed[what]
  act = jax.jit(policy.act)
  one, other = (np.asarray(act(params, x, jax.random.key(0))[0]) for x in (base, changed))
  assert (one != other).any((1, 2)).all()


def test_states_far_outside_the_training_range_are_clipped(policy, params):
  far, farther = seen(), seen()
  far["observation"] = far["observation"] | {"state": np.full((4, 2, 5), 1e4, np.float32)}
  farther["observation"] = far["observation"] | {"state": np.full((4, 2, 5), 1e8, np.float32)}
  act = jax.jit(policy.act)
  free = unbounded(params)
  one, other = (np.asarray(act(free, x, jax.random.key(0))[0]) for x in (far, farther))
  np.testing.assert_array_equal(one, other)
  assert np.isfinite(one).all()


def test_state_noise_is_for_training_only():
  noisy = tiny.policy(SPEC, name="regression", observation=tiny.OBSERVATION | {"noise": 1.0})
  params, made = jax.jit(noisy.init)(jax.random.key(0)), batch_lib.fake(SPEC, 4)
  loss = jax.jit(noisy.loss)
  assert loss(params, made, jax.random.key(0))[0] != loss(params, made, jax.random.key(1))[0]
  act = jax.jit(noisy.act)
  one, other = (np.asarray(act(params, made, jax.random.key(i))[0]) for i in (0, 1))
  np.testing.assert_array_equal(one, other)


def test_bad_configurations_are_errors():
  for values, message in (
    ({"name": "regresion"}, "'regresion'; it must be one of: autoregressive, regression"),
    ({"name": "regression", "hiden": 3}, "config.model has no key 'hiden'; did you mean 'hidden'"),
    ({"name": "autoregressive"}, "needs a tokenizer: set config.tokenizer"),
    (
      {"name": "regression", "observation": {"noise": "much"}},
      "config.model.observation.noise is 'much'; expected float",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      policies.make(values, SPEC)
  bare = policies.make({"name": "regression"} | tiny.REGRESSION, SPEC)
  with pytest.raises(ValueError, match="statistics of the training"):
    jax.eval_shape(bare.init, jax.random.key(0))


def test_golden_first_step_and_falling_loss():
  made = batch_lib.fake(tiny.spec(), 16)
  _, rows = tiny.train_steps(tiny.policy(name="regression"), (), [made] * 30)
  first = {name: rows[0][name] for name in ("loss", "grad_norm")}
  assert first == pytest.approx({"loss": 0.60175359, "grad_norm": 0.5941435}, rel=1e-4)
  assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
