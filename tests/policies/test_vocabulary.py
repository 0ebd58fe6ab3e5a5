"""Tokens that lie somewhere: their features, their neighbours, and a policy that uses both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax import tokenizers
from oat_jax.policies import vocabulary

SPEC = tiny.spec()
LEVELS = (4, 3)
N, V = 8, 12


@pytest.fixture(scope="module")
def tokenizer():
  return tiny.tokenizer(SPEC, levels=LEVELS)


@pytest.fixture(scope="module")
def policy(tokenizer):
  return tiny.policy(SPEC, tokenizer, geometry=True, blur=0.8, shortcut=16, refinement=False)


@pytest.fixture(scope="module")
def params(policy, tokenizer):
  return tiny.init(policy, tiny.init(tokenizer))


def test_coordinates_are_where_the_codes_are(tokenizer):
  # Mixed radix, the first level fastest.
  expected = [[(i - 2) / 2, j - 1] for j in range(3) for i in range(4)]
  np.testing.assert_allclose(tokenizer.coordinates, expected)
  quest = {"name": "quest", "num_tokens": 2, "levels": LEVELS, "width": 16, "head_width": 8}
  quest = tokenizers.make(quest, SPEC, tiny.statistics(3))
  np.testing.assert_allclose(quest.coordinates, expected)
  bins = tokenizers.make({"name": "bin", "bins": 5}, SPEC, tiny.statistics(3))
  np.testing.assert_allclose(bins.coordinates[:, 0], [-1, -0.5, 0, 0.5, 1])
  for values in ({"name": "fast"}, {"name": "vq", "num_tokens": 8}):
    assert tokenizers.make(values, SPEC, tiny.statistics(3)).coordinates is None


def test_features_can_say_a_normal_distribution_over_the_grid(tokenizer):
  x_VL = tokenizer.coordinates
  features_VF = vocabulary.features(x_VL)
  assert features_VF.shape == (V, 2 + 2 + 1 + 4 + 3) and features_VF.dtype == np.float32
  mean, precision = np.array([0.3, -0.2]), np.array([[3.0, 1.0], [1.0, 2.0]])
  offset_VL = x_VL - mean
  log_p_V = -0.5 * np.einsum("vl,lm,vm->v", offset_VL, precision, offset_VL)
  with_one = np.concatenate([features_VF, np.ones((V, 1))], 1)
  found = with_one @ np.linalg.lstsq(with_one, log_p_V, rcond=None)[0]
  np.testing.assert_allclose(found, log_p_V, atol=1e-5)
  # Many levels have no feature each.
  assert vocabulary.features(np.linspace(-1, 1, 256)[:, None]).shape == (256, 2)


def test_neighbours_are_counted_in_steps(tokenizer):
  near_VV = vocabulary.neighbours(tokenizer.coordinates, 0.8)
  np.testing.assert_allclose(near_VV.sum(1), 1, rtol=1e-6)
  for v, w in ((0, 1), (0, 4), (0, 5), (3, 0)):
    steps = np.array([w % 4 - v % 4, w // 4 - v // 4])
    expected = np.exp(-np.square(steps).sum() / (2 * 0.8**2))
    np.testing.assert_allclose(near_VV[v, w] / near_VV[v, v], expected, rtol=1e-5)
  assert (near_VV.argmax(1) == np.arange(V)).all()
  sharp_VV = vocabulary.neighbours(tokenizer.coordinates, 1e-2)
  np.testing.assert_allclose(sharp_VV, np.eye(V), atol=1e-6)


def test_the_loss_counts_neighbours(policy, tokenizer, params):
  plain = tiny.policy(SPEC, tokenizer, geometry=True, shortcut=16, refinement=False)
  made = batch_lib.fake(SPEC, 4)
  made |= {"tokens": np.random.default_rng(0).integers(0, V, (4, N), np.int32)}
  near_VV = vocabulary.neighbours(tokenizer.coordinates, 0.8)
  each_V = []  # the plain loss of every token in the first place of the first row
  for v in range(V):
    other = made["tokens"].copy()
    other[0, -1] = v  # the last one, which is not fed
    each_V.append(
      float(jax.jit(plain.loss)(params, made | {"tokens": other}, jax.random.key(0))[0])
    )
  change_V = np.array(each_V) * 4 * N
  change_V -= change_V[0]
  blurred = jax.jit(policy.loss)
  one, two = (made["tokens"].copy() for _ in range(2))
  one[0, -1], two[0, -1] = 5, 9
  values = [float(blurred(params, made | {"tokens": x}, jax.random.key(0))[0]) for x in (one, two)]
  expected = near_VV[[5, 9]] @ change_V
  np.testing.assert_allclose((values[0] - values[1]) * 4 * N, expected[0] - expected[1], atol=2e-3)


def test_evaluation_is_of_the_tokens_themselves(policy, tokenizer, params):
  plain = tiny.policy(SPEC, tokenizer, geometry=True, shortcut=16, refinement=False)
  made = batch_lib.fake(SPEC, 4)
  one, other = (jax.jit(p.evaluate)(params, made)["cross_entropy"] for p in (policy, plain))
  np.testing.assert_array_equal(one, other)


def test_what_lies_near_is_learned_together(tokenizer):
  """Trained on two tokens a step apart on either side, it finds the one between likelier."""
  tokens_BN = np.tile([[4], [6]], (8, N)).astype(np.int32)  # levels 0 and 2 of row 1
  made = batch_lib.fake(SPEC, 16)
  made["observation"]["state"][:] = 0  # nothing tells them apart
  made["observation"]["task"][:] = 0
  made["observation_mask"][:] = True
  made |= {"tokens": tokens_BN}
  likelier = {}
  for name, settings in {"known": {"geometry": True, "blur": 0.8}, "ids": {}}.items():
    policy = tiny.policy(SPEC, tokenizer, refinement=False, **settings)
    state, _ = tiny.train_steps(policy, (tiny.init(tokenizer),), [made] * 40)
    first = {}
    for v in (5, 11):  # between them; and as unseen, but aside
      told = made | {"tokens": np.full_like(tokens_BN, v)}
      first[v] = float(jax.jit(policy.evaluate)(state.params, told)["cross_entropy"][0, 0])
    likelier[name] = first[11] - first[5]
  assert likelier["known"] > 1 > abs(likelier["ids"])


def test_cached_generation_knows_the_same(policy, params):
  """Features and shortcut enter every step as they do the whole sequence."""
  made = batch_lib.fake(SPEC, 3)
  tokens_BN = np.asarray(jax.jit(policy.act)(params, made, jax.random.key(0))[1]["tokens_BN"])
  own = made | {"tokens": tokens_BN}
  accuracy = jax.jit(policy.evaluate)(params, own)["token_accuracy"]
  np.testing.assert_array_equal(accuracy, jnp.ones((3, N)))
  other = {**made, "observation": made["observation"] | {"state": -made["observation"]["state"]}}
  changed = np.asarray(jax.jit(policy.act)(params, other, jax.random.key(0))[1]["tokens_BN"])
  assert not np.array_equal(changed, tokens_BN)
