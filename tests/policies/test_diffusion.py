"""Diffusion Policy: schedule, sampler and loss are the papers' equations, written here in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import policies
from oat_jax.perception import observation
from oat_jax.policies import diffusion
from oat_jax.policies import Sampling

SPEC = tiny.spec(num_datasets=2)
B, C, A = 4, 8, 3


@pytest.fixture(scope="module")
def policy():
  return tiny.policy(SPEC, name="diffusion")


@pytest.fixture(scope="module")
def params(policy):
  params = jax.jit(policy.init)(jax.random.key(0))
  params["network"]["to_noise"]["w"] *= 5  # far from silent, so that its answers matter
  return params


@pytest.fixture(scope="module")
def act(policy):
  return jax.jit(policy.act, static_argnames="sampling")


@pytest.fixture(scope="module")
def network():
  """(params, batch, x_BCA, timesteps_B) -> noise_BCA: the network as a black box."""
  config = policies.freeze({"name": "diffusion"} | tiny.POLICY)[1]
  net = diffusion.Network(config, SPEC)

  @jax.jit
  def predict(params, batch, x_BCA, timesteps_B):
    seen = observation.inputs(params["statistics"], batch, config.observation)
    return net.apply({"params": params["network"]}, seen, x_BCA, timesteps_B)

  return predict


def seen(rows=B):
  """What a policy sees when it acts: a batch without actions."""
  made = batch_lib.fake(SPEC, rows)
  return {name: made[name] for name in ("observation", "observation_mask", "dataset")}


def schedule(steps=100):
  """Alpha-bar of every timestep (arXiv 2102.09672, equation 17, and its cap of betas)."""
  f = lambda t: math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2
  bars, product = [], 1.0
  for t in range(1, steps + 1):
    beta = min(1 - f(t) / f(t - 1), 0.999)
    product *= 1 - beta
    bars.append(product)
  return bars


def sampled(predict, x_BCA, visited, low=-1.0, high=1.0):
  """DDIM with eta 0 (arXiv 2010.02502, equation 12) and a clipped sample, in float64."""
  bars, x_BCA = schedule(), np.asarray(x_BCA, np.float64)
  for i, t in enumerate(visited):
    noise_BCA = np.asarray(predict(x_BCA, t), np.float64)
    clean_BCA = (x_BCA - math.sqrt(1 - bars[t]) * noise_BCA) / math.sqrt(bars[t])
    clean_BCA = np.clip(clean_BCA, low, high)
    bar = bars[visited[i + 1]] if i + 1 < len(visited) else 1.0
    x_BCA = math.sqrt(bar) * clean_BCA + math.sqrt(1 - bar) * noise_BCA
  return x_BCA


def ddim(denoise, x_BCA, visited):
  """The sampler on a range of -1..1; `denoise` is given the timestep."""
  bars_I = diffusion.alpha_bars(100)[visited]
  run = jax.jit(lambda x: diffusion.ddim(denoise, jnp.asarray(visited), x, bars_I, -1.0, 1.0))
  return np.asarray(run(x_BCA))


def drawn(seed=0, scale=1.0):
  return (scale * np.random.default_rng(seed).standard_normal((B, C, A))).astype(np.float32)


@pytest.mark.parametrize("steps", [1, 10, 100, 1000])
def test_the_schedule_is_the_squared_cosine_with_capped_betas(steps):
  bars_X = diffusion.alpha_bars(steps)
  np.testing.assert_allclose(bars_X, schedule(steps), rtol=1e-12)
  assert (np.diff(bars_X) < 0).all() and bars_X[0] < 1 and bars_X[-1] > 0
  # Only the last beta is capped; before it, the product telescopes to a squared cosine.
  angles_X = (np.arange(1, steps) / steps + 0.008) / 1.008 * np.pi / 2
  expected_X = np.cos(angles_X) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
  np.testing.assert_allclose(bars_X[:-1], expected_X, rtol=1e-9)


def test_sampling_visits_evenly_spaced_timesteps_and_ends_at_the_first():
  assert diffusion.timesteps(100, 10).tolist() == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
  assert diffusion.timesteps(100, 4).tolist() == [75, 50, 25, 0]
  assert diffusion.timesteps(100, 100).tolist() == list(range(99, -1, -1))


def test_one_ddim_step_is_the_paper_s_equation():
  noise_BCA, x_BCA = drawn(1, 0.5), drawn(2)
  # The second step is told that there is no noise: it only undoes the scale of the first's result.
  denoise = lambda x_BCA, t: jnp.where(t == 60, noise_BCA, 0)
  got_BCA = ddim(denoise, x_BCA, [60, 20])
  bar, next_bar = schedule()[60], schedule()[20]
  clean_BCA = np.clip((x_BCA - math.sqrt(1 - bar) * noise_BCA) / math.sqrt(bar), -1, 1)
  expected_BCA = math.sqrt(next_bar) * clean_BCA + math.sqrt(1 - next_bar) * noise_BCA
  np.testing.assert_allclose(got_BCA, np.clip(expected_BCA / math.sqrt(next_bar), -1, 1), atol=1e-5)
  inside = np.mean(np.abs(clean_BCA) < 1)
  assert 0.2 < inside < 0.8  # the step was tried with and without clipping


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_a_trajectory_is_the_papers_equations_step_by_step(steps):
  visited = diffusion.timesteps(100, steps)
  fake = lambda np: lambda x_BCA, t: np.sin(3 * x_BCA + 0.1 * t) * 0.9
  got_BCA = ddim(fake(jnp), drawn(), visited)
  np.testing.assert_allclose(got_BCA, sampled(fake(np), drawn(), visited), atol=1e-3)
  assert np.abs(got_BCA).max() <= 1


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_a_perfect_denoiser_of_one_chunk_recovers_it(steps):
  chunk_BCA = np.random.default_rng(5).uniform(-1, 1, (B, C, A)).astype(np.float32)
  bars_X = jnp.float32(diffusion.alpha_bars(100))
  noise = lambda x, t: (x - jnp.sqrt(bars_X[t]) * chunk_BCA) / jnp.sqrt(1 - bars_X[t])
  got_BCA = ddim(noise, drawn(), diffusion.timesteps(100, steps))
  np.testing.assert_allclose(got_BCA, chunk_BCA, atol=1e-4)


@pytest.mark.parametrize("steps", [10, 4])
def test_acting_is_the_sampler_with_the_network_as_a_black_box(network, params, steps):
  few = tiny.policy(SPEC, name="diffusion", sampling_steps=steps)
  key, made = jax.random.key(3), seen()
  x_BCA = jax.random.normal(key, (B, C, A))
  predict = lambda x, t: network(params, made, np.float32(x), np.full(B, t))
  chunk_BCA = sampled(predict, x_BCA, list(range(0, 100, 100 // steps))[::-1])
  low_BA, high_BA = (params["action_statistics"][k][made["dataset"]] for k in ("min", "max"))
  low_B1A, high_B1A = np.asarray(low_BA)[:, None], np.asarray(high_BA)[:, None]
  expected_BCA = (chunk_BCA + 1) / 2 * (high_B1A - low_B1A) + low_B1A
  got_BCA, info = jax.jit(few.act)(params, made, key)
  np.testing.assert_allclose(got_BCA, expected_BCA, atol=2e-3)
  assert info == {} and np.abs(chunk_BCA).max() == 1 and np.median(np.abs(chunk_BCA)) < 1


def test_a_dimension_that_is_not_scaled_is_clipped_to_its_own_range(policy, params, act):
  """A gripper of 0..100, say, that the statistics leave as it is."""
  own = {"min": 0.0, "max": 100.0, "offset": 0.0, "scale": 1.0}
  statistics = {
    name: value.at[:, 1].set(own[name]) if name in own else value
    for name, value in params["action_statistics"].items()
  }
  gripper_BC = act(params | {"action_statistics": statistics}, seen(), jax.random.key(0))[0][..., 1]
  assert gripper_BC.min() >= 0 and gripper_BC.max() > 2


def test_the_same_key_gives_the_same_chunk_inside_the_training_range(policy, params, act):
  one = np.asarray(act(params, seen(), jax.random.key(0))[0])
  again = np.asarray(act(params, seen(), jax.random.key(0), 1, sampling=Sampling(1.0, 3))[0])
  other = np.asarray(act(params, seen(), jax.random.key(1))[0])
  np.testing.assert_allclose(one, again, atol=1e-6)
  assert (np.abs(one - other).max((1, 2)) > 0.05).all()
  loud = params["network"] | {
    "to_noise": jax.tree.map(lambda x: 50 * x, params["network"]["to_noise"])
  }
  low_BA, high_BA = (params["action_statistics"][k][seen()["dataset"]] for k in ("min", "max"))
  for chunk_BCA in (one, other, act(params | {"network": loud}, seen(), jax.random.key(0))[0]):
    assert chunk_BCA.shape == (B, C, A) and chunk_BCA.dtype == np.float32
    assert (chunk_BCA >= low_BA[:, None]).all() and (chunk_BCA <= high_BA[:, None]).all()
  with pytest.raises(ValueError, match="num_tokens is 2; it must be in 1..1"):
    policy.act(params, seen(), jax.random.key(0), 2)


def test_the_observation_s_memory_is_made_outside_of_the_sampling_loop():
  policy = tiny.policy(SPEC, name="diffusion", observation={"hidden": 47, "task_width": 4})
  params = jax.eval_shape(policy.init, jax.random.key(0))
  program = jax.make_jaxpr(policy.act)(params, seen(), jax.random.key(0))
  sizes = lambda variables: {size for v in variables for size in v.aval.shape}
  (loop,) = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
  assert loop.params["length"] == 10
  assert 47 in sizes(program.jaxpr.invars) and 47 not in sizes(loop.invars)


@pytest.mark.parametrize("what", ["state", "task", "observation_mask", "dataset"])
def test_a_row_s_chunk_depends_on_all_that_is_observed_in_it_alone(params, act, what):
  base, changed = seen(), seen()
  part = changed["observation"] if what in ("state", "task") else changed
  value = part[what].copy()
  value[0] = value[0] + 0.5 if what == "state" else 1 - value[0]
  part[what] = value
  one, other = (np.asarray(act(params, x, jax.random.key(0))[0]) for x in (base, changed))
  assert (one[0] != other[0]).any()
  np.testing.assert_array_equal(one[1:], other[1:])


def test_every_step_sees_every_other_and_the_timestep(network, params):
  row = seen(1)
  predict = lambda x_CA, t: network(params, row, x_CA[None], jnp.full(1, t))[0].sum(-1)
  influence_CC = np.abs(jax.jacrev(predict)(drawn()[0], 10)).max(-1)
  assert (influence_CC > 0).all()
  assert (predict(drawn()[0], 10) != predict(drawn()[0], 11)).all()


def test_the_timestep_s_embedding_is_of_sines_and_cosines():
  got_XD = diffusion.sinusoids(jnp.arange(100), 8)
  rates = [10_000 ** (-i / 3) for i in range(4)]
  expected_XD = [
    [math.sin(t * rate) for rate in rates] + [math.cos(t * rate) for rate in rates]
    for t in range(100)
  ]
  np.testing.assert_allclose(got_XD, expected_XD, atol=1e-5)


def masked_batch(rows=6):
  made = batch_lib.fake(SPEC, rows)
  made["action_dim_mask"][-1, 1] = False
  assert not made["action_mask"].all()
  return made


def normalised(params, made):
  low_BA, high_BA = (
    np.asarray(params["action_statistics"][k])[made["dataset"]] for k in ("min", "max")
  )
  return 2 * (made["actions"] - low_BA[:, None]) / (high_BA - low_BA)[:, None] - 1


def denoising_errors(network, params, made, noise_BCA, timesteps_B):
  """Squared errors of the predicted noise and where they count, both (B, C, A)."""
  bars_B11 = np.array(schedule())[timesteps_B][:, None, None]
  x_BCA = np.sqrt(bars_B11) * normalised(params, made) + np.sqrt(1 - bars_B11) * noise_BCA
  valid_BCA = made["action_mask"][:, :, None] & made["action_dim_mask"][:, None]
  x_BCA = np.where(valid_BCA, x_BCA, noise_BCA).astype(np.float32)
  predicted_BCA = np.asarray(network(params, made, x_BCA, timesteps_B))
  return (predicted_BCA - noise_BCA) ** 2, valid_BCA


def test_the_loss_equals_plain_numpy(policy, params, network):
  made, key = masked_batch(), jax.random.key(7)
  time_key, noise_key, _ = jax.random.split(key, 3)
  timesteps_B = np.asarray(jax.random.randint(time_key, (6,), 0, 100))
  noise_BCA = np.asarray(jax.random.normal(noise_key, (6, C, A)))
  squares_BCA, valid_BCA = denoising_errors(network, params, made, noise_BCA, timesteps_B)
  loss, _ = jax.jit(policy.loss)(params, made, key)
  np.testing.assert_allclose(loss, squares_BCA[valid_BCA].mean(), rtol=1e-4)
  assert len(set(timesteps_B)) > 3


def test_what_the_masks_hide_has_no_influence(policy, params):
  made = masked_batch()
  hidden_BCA = ~(made["action_mask"][:, :, None] & made["action_dim_mask"][:, None])
  of = jax.jit(
    jax.value_and_grad(
      lambda network, made: policy.loss(params | {"network": network}, made, jax.random.key(0))[0]
    )
  )
  wanted, wanted_grads = of(params["network"], made)
  for nonsense in (1e6, np.nan):
    changed = made | {"actions": np.where(hidden_BCA, np.float32(nonsense), made["actions"])}
    loss, grads = of(params["network"], changed)
    assert loss == wanted
    assert tiny.to_bits(grads) == tiny.to_bits(wanted_grads)
  changed = made | {"actions": np.where(hidden_BCA, made["actions"], 0)}
  assert of(params["network"], changed)[0] != wanted


def test_evaluate_repeats_itself_and_equals_plain_numpy(policy, params, network, act):
  made = masked_batch()
  values = jax.jit(policy.evaluate)(params, made)
  rows = []
  for t in range(5, 100, 10):
    noise_BCA = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), t), (6, C, A)))
    squares_BCA, valid_BCA = denoising_errors(network, params, made, noise_BCA, np.full(6, t))
    rows.append([squares_BCA[b][valid_BCA[b]].mean() for b in range(6)])
  np.testing.assert_allclose(values["denoising_mse"], np.mean(rows, 0), rtol=1e-4)
  chunk_BCA = np.asarray(act(params, made, jax.random.key(0))[0])
  errors_BCA = np.square(
    normalised(params, made | {"actions": chunk_BCA}) - normalised(params, made)
  )
  expected_B = [errors_BCA[b][valid_BCA[b]].mean() for b in range(6)]
  np.testing.assert_allclose(values["chunk_mse"], expected_B, rtol=1e-3)
  assert tiny.to_bits(values) == tiny.to_bits(jax.jit(policy.evaluate)(params, made))


def test_dropout_is_for_training_only(policy, params, act):
  dropping = tiny.policy(SPEC, name="diffusion", dropout=0.5)
  made, key = masked_batch(), jax.random.key(0)
  one, other = (jax.jit(p.loss)(params, made, key)[0] for p in (policy, dropping))
  assert abs(one - other) > 1e-3
  np.testing.assert_array_equal(
    act(params, seen(), key)[0], jax.jit(dropping.act)(params, seen(), key)[0]
  )


def test_bad_configurations_are_errors():
  for values, message in (
    ({"sampling_steps": 30}, "sampling_steps 30 does not divide train_steps 100"),
    ({"sampling_steps": 0}, "config.model.sampling_steps is 0; it must be at least 1"),
    ({"width": 30}, "width 30 is no multiple of head_width 16"),
    ({"patch": 4}, "config.model has no key 'patch'"),
  ):
    with pytest.raises(ValueError, match=message):
      tiny.policy(SPEC, name="diffusion", **values)
  with pytest.raises(ValueError, match="the model 'diffusion' uses none"):
    tiny.policy(SPEC, tiny.tokenizer(SPEC), name="diffusion")


def test_golden_first_step_and_training_that_moves_the_network_only():
  policy, made = tiny.policy(name="diffusion"), batch_lib.fake(tiny.spec(), 16)
  made["actions"][:] = made["actions"][0]  # one chunk is learned soon
  run = tiny.trainer(policy)
  start, _ = run([])
  end, rows = run([made] * 60)
  first = {name: rows[0][name] for name in ("loss", "grad_norm")}
  assert first == pytest.approx({"loss": 1.152508, "grad_norm": 2.0860608}, rel=1e-4)
  assert np.mean([row["loss"] for row in rows[-20:]]) < 0.5 * rows[0]["loss"]
  for name in ("statistics", "action_statistics"):
    assert tiny.to_bits(end.params[name]) == tiny.to_bits(start.params[name])
  before, after = (tiny.to_bits(state.params["network"]) for state in (start, end))
  assert not [path for path in before if before[path] == after[path]]
  evaluate = jax.jit(policy.evaluate)
  untrained, trained = (evaluate(state.params, made) for state in (start, end))
  for name in ("chunk_mse", "denoising_mse"):
    print(name, untrained[name].mean(), trained[name].mean())
    assert trained[name].mean() < 0.5 * untrained[name].mean(), name
