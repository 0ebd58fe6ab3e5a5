"""Making a tokenizer by its name; OAT's loss, and the prefixes that it draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import oat

N, C, A = 8, 8, 3
SPEC = tiny.spec(num_datasets=2)
LEVELS = (8, 5, 5, 5)


def batch(B=4, seed=0):
  """A batch with padding and, in the last row, a dimension that its dataset does not have."""
  made = batch_lib.fake(SPEC, B, seed)
  made["action_dim_mask"][-1, 1] = False
  return made


def test_bad_configurations_are_errors():
  for changes, message in (
    ({"name": "oatt"}, "'oatt'; it must be one of: oat, quest, vq, bin, fast"),
    ({"name": "examples.nothing"}, "'examples.nothing', but there is no module"),
    ({"name": "oat_jax.batch"}, "oat_jax.batch has no Config"),
    ({"patch": 3}, "patch 3 does not divide the action horizon 8"),
    ({"cumulative_weight": 0.1, "cumulative_dims": (0, 3)}, r"\(0, 3\) leaves 0..2"),
    ({"cumulative_weight": 0.1}, "cumulative_dims"),
    ({"width": 40}, "width 40 is no multiple of head_width 16"),
    ({"nested_dropout": "some"}, "'some'; it must be one of: uniform, powers_of_two"),
    ({"blocks": (1, 1, 2)}, r"blocks \(1, 1, 2\) must be .* add up to num_tokens 8"),
    ({"blocks": (8, 0)}, r"blocks \(8, 0\) must be positive"),
  ):
    with pytest.raises(ValueError, match=message):
      tokenizers.make({"name": "oat", "width": 32, "head_width": 16} | changes, SPEC)


def test_the_loss_equals_plain_numpy():
  # With one token there is nothing to draw: K is 1.
  changes = {"num_tokens": 1, "cumulative_weight": 0.3, "cumulative_dims": (0, 2)}
  tokenizer = tiny.tokenizer(SPEC, **changes)
  params, made = tiny.init(tokenizer), batch(6)
  net = oat.Network(oat.Config(**(tiny.TOKENIZER | changes)), SPEC)
  statistics = {name: np.asarray(rows) for name, rows in params["statistics"].items()}
  low_BA, high_BA = (statistics[name][made["dataset"]][:, None] for name in ("min", "max"))
  target_BCA = (made["actions"] - (low_BA + high_BA) / 2) / ((high_BA - low_BA) / 2)

  @jax.jit
  def reconstruct(x_BCA):
    kept_BMN = jnp.ones((6, 1, 1), bool)
    chunks_BMCA = net.apply({"params": params["network"]}, x_BCA, made["action_mask"], kept_BMN)[0]
    return chunks_BMCA[:, 0]

  error_BCA = np.asarray(reconstruct(target_BCA), np.float64) - target_BCA
  squares, drifts = [], []
  for b in range(6):
    for a in range(A):
      if not made["action_dim_mask"][b, a]:
        continue
      running = 0.0
      for c in range(C):
        if not made["action_mask"][b, c]:
          break
        squares.append(error_BCA[b, c, a] ** 2)
        running += error_BCA[b, c, a]
        if a in (0, 2):
          drifts.append(running**2)
  loss, aux = jax.jit(tokenizer.loss)(params, made, jax.random.key(0))
  np.testing.assert_allclose(aux["mse"], np.mean(squares), rtol=1e-4)
  np.testing.assert_allclose(aux["cumulative_mse"], np.mean(drifts), rtol=1e-4)
  np.testing.assert_allclose(loss, np.mean(squares) + 0.3 * np.mean(drifts), rtol=1e-4)
  ids = tokenizer.encode(params, made["actions"], made["action_mask"], made["dataset"])
  assert aux["codes_in_batch"] == len(np.unique(ids))


def test_padding_has_no_influence_on_loss_and_gradients():
  tokenizer = tiny.tokenizer(SPEC, cumulative_weight=0.1, cumulative_dims=(0,))
  params, made = tiny.init(tokenizer), batch()
  made["action_mask"] = np.arange(C) < np.array([2, 3, 5, 8])[:, None]

  @jax.jit
  def gradients(actions_BCA):
    loss = lambda p, x_BCA: tokenizer.loss(p, made | {"actions": x_BCA}, jax.random.key(0))[0]
    return jax.value_and_grad(loss, argnums=(0, 1))(params, actions_BCA)

  value, (by_params, by_actions) = gradients(made["actions"])
  padded_BCA = ~np.broadcast_to(made["action_mask"][..., None], by_actions.shape)
  assert not np.asarray(by_actions)[padded_BCA].any()
  assert (np.abs(by_actions)[~padded_BCA & made["action_dim_mask"][:, None]] > 0).all()
  other = gradients(np.where(padded_BCA, 1e6, made["actions"]).astype(np.float32))
  assert tiny.to_bits((value, by_params)) == tiny.to_bits((other[0], other[1][0]))


def losses_by_prefix_N(tokenizer, params, made):
  """The loss of one example for every prefix, were that drawn: nothing is clipped in it."""
  net = oat.Network(oat.Config(**tiny.TOKENIZER), SPEC)
  row = lambda name: np.asarray(params["statistics"][name])[made["dataset"]][:, None]
  target_BCA = (made["actions"] - row("offset")) * row("scale")
  tokens_BN = tokenizer.encode(params, made["actions"], made["action_mask"], made["dataset"])
  codes_BNL = np.repeat(fsq.codes(np.asarray(tokens_BN), LEVELS), N, 0)
  variables = {"params": params["network"]}
  decode = jax.jit(lambda x_BNL, kept_BN: net.apply(variables, x_BNL, kept_BN, method="decode"))
  error_NCA = decode(codes_BNL, np.tril(np.ones((N, N), bool))) - target_BCA
  mask_CA = made["action_mask"][0][:, None] & made["action_dim_mask"][0]
  return np.array([np.square(error_CA[mask_CA]).mean() for error_CA in np.asarray(error_NCA)])


@pytest.mark.parametrize(
  ("mode", "keep_all", "budgets"),
  [("uniform", 0.0, range(1, N + 1)), ("powers_of_two", 0.5, (1, 2, 4, 8))],
)
def test_nested_dropout_draws_every_prefix_as_often_as_it_says(mode, keep_all, budgets):
  tokenizer = tiny.tokenizer(SPEC, nested_dropout=mode, keep_all=keep_all)
  params, made = tiny.init(tokenizer), batch(1)
  # The loss of one example is the error of one of its prefixes: which one shows what was drawn.
  mse_N = losses_by_prefix_N(tokenizer, params, made)
  assert np.diff(np.sort(mse_N)).min() > 1e-5
  keys_X = jax.random.split(jax.random.key(0), 800)
  one = lambda key: tokenizer.loss(params, made, key)[0]
  loss = jax.jit(lambda keys_X: jax.lax.map(one, keys_X))
  distance_XN = np.abs(np.asarray(loss(keys_X))[:, None] - mse_N)
  assert distance_XN.min(1).max() < 1e-6
  counts_K = np.bincount(distance_XN.argmin(1), minlength=N)
  expected_K = np.isin(np.arange(1, N + 1), budgets) * 800 * (1 - keep_all) / len(budgets)
  expected_K[-1] += 800 * keep_all
  assert (np.abs(counts_K - expected_K) <= 5 * np.sqrt(expected_K)).all()


def test_each_example_draws_its_own_prefix():
  tokenizer = tiny.tokenizer(SPEC)
  params, made = tiny.init(tokenizer), batch(1)
  twins = jax.tree.map(lambda x: np.concatenate([x, x]), made)
  mse_N = losses_by_prefix_N(tokenizer, params, made)
  loss = jax.jit(lambda key: tokenizer.loss(params, twins, key)[0])
  losses = np.array([loss(jax.random.key(i)) for i in range(20)])
  assert (np.abs(losses[:, None] - mse_N).min(1) > 1e-6).any()  # no single prefix explains it
