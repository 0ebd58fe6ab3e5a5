"""The tokenizer contract: total decoding, masked loss, errors at the boundary, golden step."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers
from oat_jax.tokenizers import fsq
from oat_jax.tokenizers import oat

N, V, C, A = 8, 1000, 8, 3
SPEC = tiny.spec(num_datasets=2)
LEVELS = (8, 5, 5, 5)


@pytest.fixture(scope="module")
def tokenizer():
  return tiny.tokenizer(SPEC)


@pytest.fixture(scope="module")
def params(tokenizer):
  params = tiny.init(tokenizer)
  # Outputs far beyond the training range, so that clipping has work to do.
  params["network"]["to_actions"]["w"] *= 20
  return params


def batch(B=4, seed=0):
  """A batch with padding and, in the last row, a dimension that its dataset does not have."""
  made = batch_lib.fake(SPEC, B, seed)
  made["action_dim_mask"][-1, 1] = False
  return made


@hypothesis.given(
  tokens=st.lists(st.integers(0, V - 1), min_size=N, max_size=N),
  K=st.integers(1, N),
  dataset=st.integers(0, 1),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_any_tokens_and_any_prefix_give_a_chunk_inside_the_training_range(
  tokenizer, params, tokens, K, dataset
):
  chunk_BCA = np.asarray(tokenizer.decode(params, np.array([tokens]), K, np.array([dataset])))
  assert chunk_BCA.shape == (1, C, A) and chunk_BCA.dtype == np.float32
  known = params["statistics"]
  assert np.isfinite(chunk_BCA).all()
  assert (chunk_BCA >= known["min"][dataset]).all() and (chunk_BCA <= known["max"][dataset]).all()


def test_decode_is_total_even_where_the_boundary_cannot_look(tokenizer, params):
  decode = jax.jit(tokenizer.decode)  # traced: no Python error can help
  tokens_BN = np.array([[-(2**31), -1, 1000, 2**31 - 1, 0, 999, 5, 7]], np.int32)
  for K in (-3, 0, 1, 8, 9, 2**31 - 1):
    chunk_BCA = np.asarray(decode(params, tokens_BN, K, np.zeros(1, int)))
    assert np.isfinite(chunk_BCA).all()
    assert (chunk_BCA >= params["statistics"]["min"][0]).all()
    assert (chunk_BCA <= params["statistics"]["max"][0]).all()


def test_num_tokens_none_is_all(tokenizer, params):
  tokens_BN = np.arange(16).reshape(2, N)
  everything = tokenizer.decode(params, tokens_BN, N, np.array([0, 1]))
  got = tokenizer.decode(params, tokens_BN, dataset=np.array([0, 1]))
  np.testing.assert_array_equal(got, everything)


@pytest.mark.parametrize(
  ("actions", "mask", "message"),
  [
    (np.zeros((2, C, A + 1)), None, r"\[2, 8, 4\]; expected \[B, 8, 3\]"),
    (np.zeros((2, C - 1, A)), None, r"expected \[B, 8, 3\]"),
    (np.zeros((C, A)), None, r"\[8, 3\]; expected \[B, 8, 3\]"),
    (np.full((2, C, A), np.nan), None, r"NaN or infinity at .* \[0, 0, 0\]"),
    (np.full((1, C, A), -np.inf), None, r"NaN or infinity at .* \[0, 0, 0\]"),
    (np.full((1, C, A), np.nan), np.arange(C)[None] > 5, r"\[0, 6, 0\]"),
  ],
)
def test_bad_actions_are_errors(tokenizer, params, actions, mask, message):
  with pytest.raises(ValueError, match=message):
    tokenizer.encode(params, actions, mask)


def test_nan_on_padding_is_no_error_and_has_no_influence(tokenizer, params):
  actions_BCA = batch()["actions"]
  mask_BC = np.arange(C) < np.array([1, 3, 5, 8])[:, None]
  rubbish_BCA = np.where(mask_BC[..., None], actions_BCA, np.nan)
  encode = lambda x_BCA: tokenizer.encode(params, x_BCA, mask_BC, batch()["dataset"])
  np.testing.assert_array_equal(encode(rubbish_BCA), encode(actions_BCA))


@pytest.mark.parametrize(
  ("tokens", "K", "message"),
  [
    (np.zeros((2, N), int), 0, r"num_tokens is 0; it must be in 1..8"),
    (np.zeros((2, N), int), 9, r"num_tokens is 9; it must be in 1..8"),
    (np.zeros((2, N), int), np.int32(-1), r"num_tokens is -1"),
    (np.full((2, N), 1000), 8, r"token 1000 at .* \[0, 0\] is outside 0..999"),
    (np.where(np.arange(N) == 3, -1, np.zeros((2, N), int)), 4, r"token -1 at .* \[0, 3\]"),
    (np.zeros((2, N - 1), int), 4, r"expected integers of shape \[B, 8\]"),
    (np.zeros(N, int), 4, r"expected integers of shape \[B, 8\]"),
    (np.zeros((2, N)), 4, r"float\d+\[2, 8\]; expected integers"),
  ],
)
def test_bad_tokens_are_errors(tokenizer, params, tokens, K, message):
  with pytest.raises(ValueError, match=message):
    tokenizer.decode(params, tokens, K)


@pytest.mark.parametrize(
  ("dataset", "message"),
  [
    (None, "there are 2 datasets"),
    (np.array([0, 2]), r"dataset \[0, 2\] is outside 0..1"),
    (np.array([-1, 0]), r"dataset \[-1, 0\] is outside 0..1"),
  ],
)
def test_a_dataset_that_is_none_of_the_mixture_s_is_an_error(tokenizer, params, dataset, message):
  with pytest.raises(ValueError, match=message):
    tokenizer.encode(params, np.zeros((2, C, A)), None, dataset)
  with pytest.raises(ValueError, match=message):
    tokenizer.decode(params, np.zeros((2, N), int), N, dataset)


def test_bad_configurations_are_errors():
  def make(**changes):
    return tokenizers.make({"name": "oat", "width": 32, "head_width": 16} | changes, SPEC)

  for changes, message in (
    ({"name": "oatt"}, "'oatt'; it must be one of: oat"),
    ({"patch": 3}, "patch 3 does not divide the action horizon 8"),
    ({"cumulative_dims": (0, 3)}, r"\(0, 3\) leaves 0..2"),
    ({"width": 40}, "width 40 is no multiple of head_width 16"),
    ({"levels": (8, 1)}, "every level must be at least 2"),
    ({"nested_dropout": "some"}, "'some'; it must be one of: uniform, powers_of_two"),
    ({"widht": 32}, "no key 'widht'; did you mean 'width'"),
  ):
    with pytest.raises(ValueError, match=message):
      make(**changes)
  with pytest.raises(ValueError, match="statistics of the training actions"):
    jax.eval_shape(make().init, jax.random.key(0))


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
    return net.apply({"params": params["network"]}, x_BCA, made["action_mask"], jnp.ones(6, int))[0]

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


def normalized_mse_B(params, made, actions_BCA=None, normalized_BCA=None):
  """Of a chunk in the dataset's units, or of one in normalised units, which may leave the range."""
  row = lambda name: np.asarray(params["statistics"][name])[made["dataset"]][:, None]
  of = lambda x_BCA: (np.asarray(x_BCA) - row("offset")) * row("scale")
  found_BCA = of(actions_BCA) if normalized_BCA is None else normalized_BCA
  error_BCA = np.square(found_BCA - of(made["actions"]))
  mask_BCA = made["action_mask"][..., None] & made["action_dim_mask"][:, None]
  return np.array([error_BCA[b][mask_BCA[b]].mean() for b in range(len(error_BCA))])


def losses_by_prefix_N(tokenizer, params, made):
  """The loss of one example for every prefix, were that drawn: nothing is clipped in it."""
  net = oat.Network(oat.Config(**tiny.TOKENIZER), SPEC)
  tokens_BN = tokenizer.encode(params, made["actions"], made["action_mask"], made["dataset"])
  codes_BNL = fsq.codes(tokens_BN, LEVELS)
  variables = {"params": params["network"]}
  decode = jax.jit(lambda K_B: net.apply(variables, codes_BNL, K_B, method="decode"))
  chunks = [decode(jnp.full(1, K)) for K in range(1, N + 1)]
  return np.array([normalized_mse_B(params, made, None, chunk_BCA)[0] for chunk_BCA in chunks])


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


def test_evaluate_is_the_error_of_decoded_chunks(tokenizer):
  params, made = tiny.init(tokenizer), batch()
  values = jax.jit(tokenizer.evaluate)(params, made)
  tokens_BN = tokenizer.encode(params, made["actions"], made["action_mask"], made["dataset"])
  np.testing.assert_array_equal(values["tokens"], tokens_BN)
  for K in range(1, N + 1):
    decoded_BCA = tokenizer.decode(params, tokens_BN, K, made["dataset"])
    np.testing.assert_allclose(
      values["mse"][:, K - 1], normalized_mse_B(params, made, decoded_BCA), rtol=1e-4
    )


def test_golden_first_step_and_falling_loss():
  made = batch_lib.fake(tiny.spec(), 16)
  _, rows = tiny.train_steps(tiny.tokenizer(), (), [made] * 30)
  first = {name: rows[0][name] for name in ("loss", "grad_norm")}
  assert first == pytest.approx({"loss": 1.2297459, "grad_norm": 3.9739034}, rel=1e-4)
  assert np.mean([row["loss"] for row in rows[-5:]]) < 0.8 * rows[0]["loss"]
