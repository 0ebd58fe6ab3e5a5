"""Residual vector quantisation, against numpy: nearest codes, moving averages, moved codes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers
from oat_jax.tokenizers import vq

N, V, Z, C, A = 3, 16, 4, 8, 3
SPEC = tiny.spec()
VALUES: dict[str, Any] = {
  "num_tokens": N,
  "codes": V,
  "latent": Z,
  "width": 32,
  "layers": 1,
  "decay": 0.9,
}


def config(**changes: Any):
  return vq.Config(**(VALUES | changes))


def make(**changes):
  return tokenizers.make({"name": "vq"} | VALUES | changes, SPEC, tiny.statistics(A))


@pytest.fixture(scope="module")
def tokenizer():
  return make()


@pytest.fixture(scope="module")
def params(tokenizer):
  """Untrained, but with codebooks that a few batches have filled."""
  params = jax.jit(tokenizer.init)(jax.random.key(0))
  assert not any(x.any() for x in params["codebook"].values())

  @jax.jit
  def step(params, batch, key):
    return tokenizer.update(params, tokenizer.loss(params, batch, key)[1]["update"])

  for i in range(40):
    params = step(params, batch_lib.fake(SPEC, 32, i), jax.random.key(i))
  return params


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def brute_force(codes_NVZ, z_BZ):
  """Ids (N, B) and residuals (N + 1, B, Z), one distance at a time, in float64."""
  residuals, ids = [z_BZ.astype(np.float64)], []
  for codes_VZ in codes_NVZ:
    ids.append([np.argmin([np.sum((r - code) ** 2) for code in codes_VZ]) for r in residuals[-1]])
    residuals.append(residuals[-1] - codes_VZ[ids[-1]])
  return np.array(ids), np.array(residuals)


def test_quantize_finds_the_nearest_code_of_every_residual():
  codes_NVZ = random(N, V, Z) * np.array([1, 0.5, 0.2])[:, None, None].astype(np.float32)
  ids_NB, residuals_MBZ = vq.quantize(codes_NVZ, random(50, Z, seed=1))
  expected_NB, expected_MBZ = brute_force(codes_NVZ, random(50, Z, seed=1))
  assert ids_NB.dtype == np.int32
  np.testing.assert_array_equal(ids_NB, expected_NB)
  np.testing.assert_allclose(residuals_MBZ, expected_MBZ, atol=1e-5)


def test_of_equal_codes_the_first_is_taken():
  codes_NVZ = random(1, V, Z)
  codes_NVZ[0, [5, 9]] = codes_NVZ[0, 2]
  ids_NB, _ = vq.quantize(codes_NVZ, codes_NVZ[0])
  np.testing.assert_array_equal(ids_NB[0], [2 if v in (5, 9) else v for v in range(V)])


def test_observe_sums_what_is_chosen_and_draws_rows_of_the_batch():
  ids_NB = np.random.default_rng(0).integers(0, V, (N, 20))
  residuals_NBZ, weight_B = random(N, 20, Z), np.float32(np.arange(20) % 5 > 0)
  seen = jax.jit(vq.observe, static_argnums=3)
  observed = seen(ids_NB, residuals_NBZ, weight_B, V, jax.random.key(0))
  counts_NV, sums_NVZ = np.zeros((N, V)), np.zeros((N, V, Z))
  for n in range(N):
    for b in np.flatnonzero(weight_B):
      counts_NV[n, ids_NB[n, b]] += 1
      sums_NVZ[n, ids_NB[n, b]] += residuals_NBZ[n, b]
  np.testing.assert_array_equal(observed["counts_NV"], counts_NV)
  np.testing.assert_allclose(observed["sums_NVZ"], sums_NVZ, atol=1e-5)
  drawn = set()
  for i in range(10):
    drawn_NVZ = seen(ids_NB, residuals_NBZ, weight_B, V, jax.random.key(i))["drawn_NVZ"]
    same_NVB = (np.asarray(drawn_NVZ)[:, :, None] == residuals_NBZ[:, None]).all(-1)
    assert (same_NVB.sum(-1) == 1).all()
    drawn |= {(n, b) for n, _, b in np.argwhere(same_NVB)}
  assert drawn == {(n, b) for n in range(N) for b in np.flatnonzero(weight_B)}


def observed_batch(rng, counts_NV):
  drawn_NVZ = rng.normal(size=(N, V, Z)).astype(np.float32)
  sums_NVZ = rng.normal(size=(N, V, Z)).astype(np.float32)
  return {"counts_NV": np.float32(counts_NV), "sums_NVZ": sums_NVZ, "drawn_NVZ": drawn_NVZ}


def smoothed(counts_NV):
  total_N1 = counts_NV.sum(-1, keepdims=True)
  return (counts_NV + 1e-5) / (total_N1 + V * 1e-5) * total_N1


def test_codebooks_are_the_moving_averages_in_closed_form():
  averaging, steps, d = config(revive_below=0.001), 7, 0.9
  rng = np.random.default_rng(0)
  book = first = observed_batch(rng, rng.uniform(1, 3, (N, V)))
  # The last code is never chosen, which takes it longer than this to die: nothing is drawn.
  chances = [1 / (V - 1)] * (V - 1) + [0]
  batches = [observed_batch(rng, rng.multinomial(64, chances, N)) for _ in range(steps)]
  for batch in batches:
    book = vq.update_codebook(averaging, book, batch | {"drawn_NVZ": np.full((N, V, Z), np.nan)})

  def average(name):
    weights = (1 - d) * d ** np.arange(steps)[::-1]
    seen = sum(weight * np.float64(batch[name]) for weight, batch in zip(weights, batches))
    return d**steps * np.float64(first[name]) + seen

  assert sorted(book) == ["codes_NVZ", "counts_NV", "sums_NVZ"]
  np.testing.assert_allclose(book["counts_NV"], average("counts_NV"), rtol=1e-5)
  np.testing.assert_allclose(book["sums_NVZ"], average("sums_NVZ"), rtol=1e-4, atol=1e-5)
  codes_NVZ = average("sums_NVZ") / smoothed(average("counts_NV"))[..., None]
  np.testing.assert_allclose(book["codes_NVZ"], codes_NVZ, rtol=1e-4, atol=1e-5)


def test_codes_that_are_hardly_chosen_move_to_drawn_rows_and_no_others_do():
  rng = np.random.default_rng(0)
  counts_NV = rng.uniform(0, 2, (N, V)).astype(np.float32)
  book = {"codes_NVZ": random(N, V, Z), "counts_NV": counts_NV, "sums_NVZ": random(N, V, Z, seed=1)}
  batch = observed_batch(rng, rng.multinomial(32, [1 / V] * V, N))
  moved = vq.update_codebook(config(revive_below=0.4), book, batch)
  even = 32 / V
  counts_NV, sums_NVZ = (0.9 * book[k] + 0.1 * batch[k] for k in ("counts_NV", "sums_NVZ"))
  dead_NV = counts_NV < 0.4 * even
  assert dead_NV.any(1).all() and (~dead_NV).any(1).all()
  np.testing.assert_allclose(moved["codes_NVZ"][dead_NV], batch["drawn_NVZ"][dead_NV], rtol=1e-3)
  # They begin as if they were chosen evenly, so that they live for a while.
  counts_NV[dead_NV], sums_NVZ[dead_NV] = even, even * batch["drawn_NVZ"][dead_NV]
  np.testing.assert_allclose(moved["counts_NV"], counts_NV, rtol=1e-5)
  np.testing.assert_allclose(moved["sums_NVZ"], sums_NVZ, rtol=1e-5)
  codes_NVZ = sums_NVZ / smoothed(counts_NV)[..., None]
  np.testing.assert_allclose(moved["codes_NVZ"], codes_NVZ, rtol=1e-4)


def test_a_few_batches_fill_every_codebook(tokenizer, params):
  for codes_VZ in np.asarray(params["codebook"]["codes_NVZ"]):
    assert len(np.unique(codes_VZ.round(5), axis=0)) == V
  made = batch_lib.fake(SPEC, 256, 99)
  tokens_BN = np.asarray(tokenizer.encode(params, made["actions"], made["action_mask"]))
  assert tokens_BN.dtype == np.int32 and tokens_BN.min() >= 0 and tokens_BN.max() < V
  assert all(len(np.unique(ids_B)) > V / 2 for ids_B in tokens_BN.T)
  z_BZ = latents(params, made)
  ids_NB, _ = brute_force(np.asarray(params["codebook"]["codes_NVZ"]), z_BZ)
  assert (tokens_BN == ids_NB.T).mean() > 0.99


def network():
  return vq.Network(config(), SPEC)


def normalized(params, x_BCA):
  of = {name: np.asarray(rows)[0] for name, rows in params["statistics"].items()}
  return (x_BCA - (of["max"] + of["min"]) / 2) / ((of["max"] - of["min"]) / 2)


def latents(params, made):
  inputs = normalized(params, made["actions"]), made["action_mask"]
  return np.asarray(network().apply({"params": params["network"]}, *inputs, method="encode"))


@pytest.mark.parametrize("K", range(1, N + 1))
def test_a_prefix_is_the_sum_of_its_codes(tokenizer, params, K):
  rng = np.random.default_rng(K)
  tokens_BN, codes_NVZ = rng.integers(0, V, (5, N)), np.asarray(params["codebook"]["codes_NVZ"])
  z_BZ = sum(codes_NVZ[n][tokens_BN[:, n]] for n in range(K))
  x_BCA = network().apply({"params": params["network"]}, z_BZ, method="decode")
  decoded_BCA = np.asarray(tokenizer.decode(params, tokens_BN, K))
  known = params["statistics"]
  expected_BCA = np.clip(x_BCA / known["scale"] + known["offset"], known["min"], known["max"])
  np.testing.assert_allclose(decoded_BCA, expected_BCA, atol=1e-5)
  other_BN = np.where(np.arange(N) < K, tokens_BN, rng.integers(0, V, (5, N)))
  np.testing.assert_array_equal(decoded_BCA, tokenizer.decode(params, other_BN, K))
  assert not tokenizer.prefix_decodable


def test_the_losses_and_their_gradients_equal_those_by_hand(tokenizer, params):
  made = batch_lib.fake(SPEC, 6)
  made["action_mask"][2] = False  # a row that says nothing
  made["action_dim_mask"][-1, 1] = False
  mask_BCA = made["action_mask"][..., None] & made["action_dim_mask"][:, None]
  target_BCA, z_BZ = normalized(params, made["actions"]), latents(params, made)
  ids_NB, residuals_MBZ = brute_force(np.asarray(params["codebook"]["codes_NVZ"]), z_BZ)

  def mse(z_BZ):
    x_BCA = network().apply({"params": params["network"]}, z_BZ, method="decode")
    return jnp.sum(jnp.where(mask_BCA, x_BCA - target_BCA, 0) ** 2) / mask_BCA.sum()

  by_sum = jax.value_and_grad(mse)((z_BZ - residuals_MBZ[-1]).astype(np.float32))
  left_NXZ = residuals_MBZ[1:, np.arange(6) != 2]
  commitment = np.square(left_NXZ).sum(0).mean()
  for weight in (0.0, 0.7):
    loss = jax.value_and_grad(make(commitment=weight).loss, has_aux=True)
    (value, aux), grads = jax.jit(loss)(params, made, jax.random.key(0))
    np.testing.assert_allclose(aux["mse"], by_sum[0], rtol=1e-4)
    np.testing.assert_allclose(aux["commitment"], commitment, rtol=1e-4)
    np.testing.assert_allclose(value, by_sum[0] + weight * commitment, rtol=1e-4)
    # The latents' bias gets the sum of the latents' gradients: that of the sum of codes, passed
    # straight through, and the pull to the code of every level.
    pull_Z = 2 * left_NXZ.sum((0, 1)) / left_NXZ[0].size
    expected_Z = by_sum[1].sum(0) + weight * pull_Z
    np.testing.assert_allclose(grads["network"]["to_latent"]["b"], expected_Z, rtol=1e-3, atol=1e-5)
    assert not any(np.any(grad) for grad in grads["codebook"].values())
  # The empty row is in no sum.
  assert (np.sum(aux["update"]["counts_NV"], -1) == 5).all()
  distinct = [len(np.unique(ids_B[np.arange(6) != 2])) for ids_B in ids_NB]
  assert float(aux["codes_in_batch"]) == pytest.approx(np.mean(distinct))


def test_padding_has_no_influence(tokenizer, params):
  made = batch_lib.fake(SPEC, 4)
  made["action_mask"] = np.arange(C) < np.array([2, 3, 5, 8])[:, None]
  both = jax.jit(jax.value_and_grad(tokenizer.loss, has_aux=True))
  run = lambda x_BCA: both(params, made | {"actions": x_BCA}, jax.random.key(0))
  rubbish_BCA = np.where(made["action_mask"][..., None], made["actions"], 1e6).astype(np.float32)
  assert tiny.to_bits(run(made["actions"])) == tiny.to_bits(run(rubbish_BCA))
  tokens_BN = tokenizer.encode(params, rubbish_BCA, made["action_mask"])
  rubbish_BCA[~made["action_mask"]] = np.nan
  nan_BN = tokenizer.encode(params, rubbish_BCA, made["action_mask"])
  np.testing.assert_array_equal(tokens_BN, nan_BN)


def test_bfloat16_keeps_codebooks_exact(params):
  tokenizer = make(dtype="bfloat16")
  made = batch_lib.fake(SPEC, 8)
  loss, aux = jax.jit(tokenizer.loss)(params, made, jax.random.key(0))
  assert loss.dtype == np.float32 and np.isfinite(loss)
  assert {x.dtype for x in jax.tree.leaves(aux["update"])} == {np.dtype(np.float32)}
  x_BCA = tokenizer.decode(params, tokenizer.encode(params, made["actions"]))
  assert x_BCA.dtype == np.float32 and np.isfinite(x_BCA).all()


def test_bad_configurations_are_errors():
  for changes, message in (
    ({"codes": 1}, "codes is 1; it must be at least 2"),
    ({"latent": 0}, "latent is 0; it must be at least 1"),
    ({"decay": 1.0}, "decay is 1.0; it must be in 0..0.9999"),
    ({"revive_below": 0.0}, "revive_below is 0.0; it must be in 0.001..0.99"),
    ({"commitment": -1.0}, "commitment is -1.0; it must be at least 0"),
    ({"dtype": "int8"}, "must be one of: float32, bfloat16"),
  ):
    with pytest.raises(ValueError, match=message):
      make(**changes)


def test_golden_first_step_and_falling_loss(tokenizer):
  # Where the model is meant to change, take the new values from the failure's message.
  made = batch_lib.fake(SPEC, 16)
  state, rows = tiny.train_steps(tokenizer, (), [made] * 60)
  first = {name: rows[0][name] for name in ("loss", "grad_norm")}
  assert first == pytest.approx({"loss": 0.5642729, "grad_norm": 0.3341932}, rel=1e-4)
  assert np.mean([row["mse"] for row in rows[-5:]]) < 0.5 * rows[0]["mse"]
  assert rows[0]["codes_in_batch"] == 1 and rows[-1]["codes_in_batch"] > 3
  leaves = jax.tree_util.tree_leaves_with_path(state.params)
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
  assert sorted(name for name in names if not name.startswith("statistics/")) == [
    "codebook/codes_NVZ",
    "codebook/counts_NV",
    "codebook/sums_NVZ",
    "network/decoder_0/b",
    "network/decoder_0/w",
    "network/encoder_0/b",
    "network/encoder_0/w",
    "network/to_actions/b",
    "network/to_actions/w",
    "network/to_latent/b",
    "network/to_latent/w",
  ]
