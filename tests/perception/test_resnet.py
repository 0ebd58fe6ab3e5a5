"""ResNet with group normalisation: its parts against plain numpy, its size, its axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oat_jax.nn import partitioning
from oat_jax.parallel import sharding
from oat_jax.perception import resnet

SMALL = resnet.ResNet((16, 32), 4, pooled=True)
IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def numbers(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_resnet18_has_the_parameters_of_the_paper_without_its_classifier():
  network = resnet.ResNet((64, 128, 256, 512), 32, pooled=False)
  params = jax.eval_shape(
    lambda: partitioning.init(network, jax.random.key(0), jnp.zeros(IMAGES.shape))
  )
  assert sum(x.size for x in jax.tree.leaves(params)) == 11_689_512 - 1000 * 513


@pytest.mark.parametrize("pooled, shape", [(True, (2, 64)), (False, (2, 9, 512))])
def test_features_of_the_papers_crop(pooled, shape):
  network = resnet.ResNet((64, 128, 256, 512), 32, pooled)
  made = jax.eval_shape(
    lambda x: network.init_with_output(jax.random.key(0), x)[0], jnp.zeros((2, 76, 76, 3))
  )
  assert made.shape == shape


def test_every_axis_has_a_sharding_rule():
  axes = partitioning.logical_axes(SMALL, jnp.zeros(IMAGES.shape))
  leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  assert {name for axes in leaves for name in axes} <= {None, *dict(sharding.RULES)}


def test_spatial_softmax_is_the_mean_place_under_each_softmax():
  logits = 3 * numbers(2, 3, 5, 4)
  got = np.asarray(resnet.spatial_softmax(logits))
  assert got.shape == (2, 8)
  for b, k in np.ndindex(2, 4):
    weights = np.exp(logits[b, :, :, k].astype(np.float64))
    weights /= weights.sum()
    x = sum(weights[i, j] * (2 * j / 4 - 1) for i, j in np.ndindex(3, 5))
    y = sum(weights[i, j] * (2 * i / 2 - 1) for i, j in np.ndindex(3, 5))
    np.testing.assert_allclose(got[b, 2 * k : 2 * k + 2], [x, y], atol=1e-6)


def test_a_peak_is_found_where_it_is():
  logits = np.zeros((1, 3, 3, 2), np.float32)
  logits[0, 0, 2, 0] = logits[0, 2, 1, 1] = 50
  np.testing.assert_allclose(resnet.spatial_softmax(logits), [[1, -1, 0, 1]], atol=1e-6)


def test_group_norm_normalises_groups_of_sixteen_channels():
  x = 5 + 3 * numbers(2, 3, 4, 32)
  params = {"scale": numbers(32, seed=1), "b": numbers(32, seed=2)}
  got = np.asarray(resnet.GroupNorm().apply({"params": params}, x))
  for b, group in np.ndindex(2, 2):
    part = slice(16 * group, 16 * group + 16)
    one = x[b, :, :, part].astype(np.float64)
    want = (one - one.mean()) / np.sqrt(one.var() + 1e-5) * params["scale"][part] + params["b"][
      part
    ]
    np.testing.assert_allclose(got[b, :, :, part], want, atol=1e-4)


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (7, 2), (1, 2)])
def test_a_convolution_is_the_sum_over_its_window(kernel, stride):
  x, w = numbers(1, 6, 8, 2), numbers(kernel, kernel, 2, 3, seed=1)
  layer = resnet.Convolution(3, kernel, stride)
  got = np.asarray(layer.apply({"params": {"w": w}}, x))
  edge = kernel // 2
  padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
  assert got.shape == (1, -(-6 // stride), -(-8 // stride), 3)
  for i, j in np.ndindex(got.shape[1:3]):
    window = padded[0, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
    np.testing.assert_allclose(got[0, i, j], np.einsum("yxi,yxio->o", window, w), atol=1e-4)


def test_a_block_adds_what_it_computes_to_what_it_was_given():
  x = numbers(2, 4, 4, 16)
  block = resnet.Block(16, 1)
  params = partitioning.init(block, jax.random.key(0), x)
  params["norm_2"]["scale"] *= 0  # nothing but the shortcut is left
  np.testing.assert_allclose(block.apply({"params": params}, x), np.maximum(x, 0), atol=1e-6)
  assert "conv_short" not in params
  wider = partitioning.init(resnet.Block(32, 2), jax.random.key(0), x)
  assert wider["conv_short"]["w"].shape == (1, 1, 16, 32)
