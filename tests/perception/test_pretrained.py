"""Vision transformers compute what the public ones compute, with weights from their files."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
import towers

from oat_jax.nn import partitioning
from oat_jax.parallel import sharding
from oat_jax.perception import pretrained
from oat_jax.perception import vit

BOTH = pytest.mark.parametrize("family", ["siglip", "dinov2"])
IMAGES = np.random.default_rng(1).uniform(size=(2, 12, 12, 3)).astype(np.float32)


def read(path, family, grid=(3, 3), pooled=True, **changes):
  return pretrained.read(path, towers.config(family, **changes), grid, pooled)


def shapes(family, pooled, images=IMAGES):
  """{path: shape} of the model's parameters."""
  network = vit.ViT(towers.config(family), pooled)
  params = jax.eval_shape(lambda: partitioning.init(network, jax.random.key(0), images))
  return {name: x.shape for name, x in flax.traverse_util.flatten_dict(params, sep="/").items()}


@BOTH
@pytest.mark.parametrize("pooled", [True, False])
def test_the_forward_pass_is_that_of_the_file(family, pooled, tmp_path):
  path = towers.write(tmp_path / "tower.safetensors", family)
  arrays = read(path, family, pooled=pooled)
  assert {name: x.shape for name, x in arrays.items()} == shapes(family, pooled)
  params = flax.traverse_util.unflatten_dict(arrays, sep="/")
  network = vit.ViT(towers.config(family), pooled)
  got = jax.jit(network.apply)({"params": params}, IMAGES)
  want = towers.forward(family, towers.tensors(family), IMAGES)[0 if pooled else 1]
  assert want.std() > 0.3
  np.testing.assert_allclose(got, want, atol=2e-4)


@BOTH
def test_every_tensor_of_the_tower_is_used(family, tmp_path):
  other = {"text_model.final_layer_norm.weight", "logit_scale", "embeddings.mask_token"}
  mapped = {
    tensor.name for tensor in pretrained.names(towers.config(family), (3, 3), True).values()
  }
  assert mapped == set(towers.tensors(family)) - other


@BOTH
def test_every_axis_has_a_sharding_rule(family):
  axes = partitioning.logical_axes(vit.ViT(towers.config(family), True), jnp.asarray(IMAGES))
  leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  assert {name for axes in leaves for name in axes} <= {None, *dict(sharding.RULES)}


@BOTH
def test_positions_are_interpolated_to_the_images_seen(family, tmp_path):
  path = towers.write(tmp_path / "tower.safetensors", family)
  same, wide = (read(path, family, grid)["positions"] for grid in ((3, 3), (2, 5)))
  extra = int(family == "dinov2")  # the summary token's, which is no place
  assert wide.shape == shapes(family, True, np.zeros((1, 8, 20, 3)))["positions"]
  np.testing.assert_array_equal(same[:extra], wide[:extra])
  square = same[extra:].reshape(3, 3, -1).astype(np.float64)

  def kernel(x, a=-0.75):
    x = abs(x)
    if x <= 1:
      return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

  for r, c in np.ndindex(2, 5):
    y, x = (r + 0.5) * 3 / 2 - 0.5, (c + 0.5) * 3 / 5 - 0.5
    want = 0
    for i in range(-4, 8):
      for j in range(-4, 8):
        at = square[min(max(i, 0), 2), min(max(j, 0), 2)]
        want = want + kernel(y - i) * kernel(x - j) * at
    np.testing.assert_allclose(wide[extra + r * 5 + c], want, atol=1e-5)


def test_half_precision_is_read_as_single(tmp_path):
  half = lambda tensors: {name: x.astype(np.float16) for name, x in tensors.items()}
  path = towers.write(tmp_path / "half.safetensors", "dinov2", change=half)
  arrays = read(path, "dinov2")
  assert {x.dtype for x in arrays.values()} == {np.dtype(np.float32)}


def refused(path, family="dinov2", error=ValueError, **changes):
  with pytest.raises(error) as caught:
    read(path, family, **changes)
  assert str(path) in str(caught.value)
  return str(caught.value)


def test_files_that_do_not_fit_are_refused_by_name(tmp_path):
  name = "encoder.layer.1.norm2.weight"

  def file(change):
    return towers.write(tmp_path / "tower.safetensors", "dinov2", change=change)

  def changed(values):
    return file(lambda tensors: tensors | values)

  without = lambda tensors: {key: x for key, x in tensors.items() if key != name}
  assert f"lacks the tensor '{name}'; config.model" in refused(file(without))
  message = refused(changed({"embeddings.register_tokens": np.zeros((1, 4, 16), np.float32)}))
  assert "holds the tensor 'embeddings.register_tokens', which has no place here" in message
  message = refused(changed({name: np.zeros(17, np.float32)}))
  assert f"tensor '{name}' is [17]; config.model.observation.images.vit makes it [16]" in message
  message = refused(changed({name: np.zeros(16, np.int32)}))
  assert f"tensor '{name}' is of type I32" in message
  message = refused(changed({"embeddings.position_embeddings": np.zeros((1, 8, 16), np.float32)}))
  assert "'embeddings.position_embeddings' of [1, 8, 16]: 7 positions are not those" in message
  message = refused(changed({"embeddings.position_embeddings": np.zeros((10, 16), np.float32)}))
  assert "is [10, 16]; config.model.observation.images.vit makes it [1, 'any', 16]" in message


def test_sizes_that_are_not_the_files_are_refused(tmp_path):
  path = towers.write(tmp_path / "tower.safetensors", "siglip")
  message = refused(path, "siglip", layers=1)
  layer = "vision_model.encoder.layers.1.layer_norm1.bias"
  assert f"holds the tensor '{layer}', which has no place here and 15 more so" in message
  assert "'vision_model.encoder.layers.2" in refused(path, "siglip", layers=3)
  message = refused(path, "siglip", mlp_width=32)
  assert (
    "mlp.fc1.weight' is [24, 16]; config.model.observation.images.vit makes it [32, 16]" in message
  )
  assert "lacks the tensor 'embeddings.cls_token' and" in refused(path, "dinov2")


def test_what_is_no_weights_file_is_refused(tmp_path):
  refused(tmp_path / "missing.safetensors", error=FileNotFoundError)
  broken = tmp_path / "broken.safetensors"
  broken.write_bytes(b"not a tensor")
  assert "is no safetensors file" in refused(broken)
  save_file({}, tmp_path / "empty.safetensors")
  assert "lacks the tensor" in refused(tmp_path / "empty.safetensors")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"family": "clip"}, "vit.family is 'clip'; it must be one of: siglip, dinov2"),
    ({"layers": 0}, "vit.layers is 0; it must be at least 1"),
    ({"heads": 3}, "vit.width 16 is no multiple of heads 3"),
  ],
)
def test_impossible_sizes_are_errors(changes, message):
  with pytest.raises(ValueError, match=message):
    towers.config(**({"family": "siglip"} | changes))
