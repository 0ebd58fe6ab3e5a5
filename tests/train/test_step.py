"""The train step: frozen means frozen, no implicit transfers, one compilation."""

import jax
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.train import optimizer
from oat_jax.train import state as state_lib
from oat_jax.train import step as step_lib

SPEC = tiny.spec()


def make(kind):
  tokenizer = tiny.tokenizer()
  if kind == "tokenizer":
    return tokenizer, ()
  if kind == "regression":
    return tiny.policy(name="regression"), ()
  return tiny.policy(tokenizer=tokenizer), (jax.jit(tokenizer.init)(jax.random.key(0)),)


@pytest.mark.parametrize("kind", ["tokenizer", "policy", "regression"])
def test_training_changes_the_network_and_nothing_else(kind):
  model, args = make(kind)
  start = jax.jit(model.init)(jax.random.key(0), *args)
  # The average is rounded in every step, so that a frozen value could drift by and by.
  config = tiny.optimizer_config(weight_decay=0.5, ema_max=0.9)
  batches = [batch_lib.fake(SPEC, 8, seed) for seed in range(12)]
  end, _ = tiny.train_steps(model, args, batches, config)
  assert end.step == len(batches)
  for params in (end.params, end.ema_params):
    assert set(params) == set(start)
    for name in set(start) - {"network"}:
      assert tiny.to_bits(params[name]) == tiny.to_bits(start[name]), name
    before = tiny.to_bits(start["network"])
    still = [path for path, bits in tiny.to_bits(params["network"]).items() if bits == before[path]]
    # A row of constants behind the keys would shift all scores alike; all else must move.
    assert not still


def test_the_average_is_the_recurrence_s():
  model, _ = make("regression")
  config = tiny.optimizer_config(ema_power=0.5, ema_max=0.6)
  pick = lambda params: np.asarray(params["network"]["to_actions"]["w"], np.float64)
  seen = []
  tiny.trainer(model, (), config)(
    [batch_lib.fake(SPEC, 8, seed) for seed in range(4)],
    each=lambda state: seen.append((pick(state.params), pick(state.ema_params))),
  )
  average = 0  # replaced whole by the first step's parameters
  for n, (params, ema_params) in enumerate(seen, start=1):
    decay = min(0.6, 1 - n**-0.5)
    average = decay * average + (1 - decay) * params
    np.testing.assert_allclose(ema_params, average, rtol=1e-5, atol=1e-7)


def test_no_implicit_transfer_and_one_compilation():
  model, _ = make("tokenizer")
  config, mesh = tiny.optimizer_config(), tiny.mesh()
  tx = optimizer.make(config, 5)
  init = lambda: model.init(jax.random.key(0))
  state, shardings = state_lib.create(init, model.axes(), tx, mesh)
  step = step_lib.compile_train_step(model.loss, tx, config, 0, mesh, shardings)
  batch = batch_lib.fake(SPEC, 8)
  on_device = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
  with jax.transfer_guard("disallow"):
    for _ in range(3):
      state, metrics = step(state, on_device)
  assert step._cache_size() == 1
  assert all(np.isfinite(float(x)) for x in metrics.values())
  with jax.transfer_guard("disallow"), pytest.raises(Exception, match="isallowed"):
    step(state, batch)  # the guard is awake


def test_the_state_is_donated():
  model, _ = make("regression")
  config, mesh = tiny.optimizer_config(), tiny.mesh()
  tx = optimizer.make(config, 5)
  init = lambda: model.init(jax.random.key(0))
  state, shardings = state_lib.create(init, model.axes(), tx, mesh)
  step = step_lib.compile_train_step(model.loss, tx, config, 0, mesh, shardings)
  step(state, jax.device_put(batch_lib.fake(SPEC, 8), mesh_lib.batch_sharding(mesh)))
  big = [x for x in jax.tree.leaves(state) if x.size > 1]
  assert all(x.is_deleted() for x in big)


def test_randomness_is_a_function_of_seed_and_step():
  model, _ = make("tokenizer")
  # A rate of nearly nothing keeps the parameters: what varies from step to step is what is drawn.
  run = tiny.trainer(model, (), tiny.optimizer_config(learning_rate=1e-20))
  (one, rows), (other, again) = (run([batch_lib.fake(SPEC, 8)] * 3) for _ in range(2))
  assert rows == again and tiny.to_bits(one) == tiny.to_bits(other)
  assert len({row["loss"] for row in rows}) == 3


def whole(seed, rows=8):
  """A batch without padding, of which every part counts alike."""
  batch = batch_lib.fake(SPEC, rows, seed)
  return batch | {"action_mask": np.ones_like(batch["action_mask"])}


def test_gradients_of_parts_add_up():
  model, _ = make("regression")
  batches = [whole(seed) for seed in range(4)]
  config = tiny.optimizer_config(clip=0.5)
  run = lambda parts: tiny.trainer(model, config=config, accumulate=parts)(batches)
  (at_once, rows), (in_parts, rows_of_parts) = run(1), run(4)
  for a, b in zip(rows, rows_of_parts):
    assert b == pytest.approx(a, rel=1e-4)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, at_once.params, in_parts.params)


def test_parts_draw_their_own_noise():
  twice = jax.tree.map(lambda x: np.repeat(x, 2, 0), whole(0, 4))  # rows 0, 0, 1, 1, ...
  losses = lambda model, parts: tiny.trainer(model, accumulate=parts)([twice])[1][0]["loss"]
  plain, _ = make("regression")
  assert losses(plain, 2) == pytest.approx(losses(plain, 1), rel=1e-5)
  noisy = tiny.policy(name="regression", observation=tiny.OBSERVATION | {"noise": 0.5})
  assert losses(noisy, 2) != pytest.approx(losses(noisy, 1), rel=1e-3)


def test_codebooks_see_their_batches_whole():
  values = {"name": "vq", "width": 8, "latent": 4, "codes": 16}
  vq = tokenizers.make(values, SPEC, tiny.statistics(SPEC.action_dim))
  with pytest.raises(ValueError, match="config.accumulate is 2; .* set it to 1"):
    tiny.trainer(vq, accumulate=2)
