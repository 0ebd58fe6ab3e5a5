"""The observation encoder with cameras: tokens, augmentation, missing modalities, errors."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import towers

from oat_jax import batch as batch_lib
from oat_jax import config as config_lib
from oat_jax.nn import partitioning
from oat_jax.parallel import sharding
from oat_jax.perception import images
from oat_jax.perception import observation
from oat_jax.train import optimizer

WIDTH = 8
TOWER = {"patch": 4, "width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
VIT = {"encoder": "vit", "vit": TOWER}
RESNET = {"channels": (16, 32), "keypoints": 2}
ONE = (("top", 16, 16),)
TWO = (("top", 16, 16), ("hand", 12, 16))


def config(looks=None, **changes):
  values = tiny.OBSERVATION | {"images": VIT if looks is None else looks} | changes
  return config_lib.freeze(observation.Config, values)


def encoder(looks=None, cameras=ONE, **changes):
  return observation.Encoder(config(looks, **changes), tiny.spec(cameras=cameras), WIDTH)


def seen(cameras=ONE, B=4, seed=0):
  """Inputs; frames as floats, so that they have gradients."""
  made = batch_lib.fake(tiny.spec(cameras=cameras), B, seed)
  statistics = {"offset": jnp.zeros((1, 5)), "scale": jnp.ones((1, 5))}
  found = observation.inputs(statistics, made, config())
  return {k: x.astype(np.float32) if k.startswith("image_") else x for k, x in found.items()}


def shapes(module):
  sample = observation.sample(module.spec)
  return jax.eval_shape(lambda: partitioning.init(module, jax.random.key(0), sample))


def params_of(module):
  """Random numbers in the parameters' shapes: nothing is compiled for them."""
  rng = np.random.default_rng(0)
  draw = lambda x: (rng.normal(size=x.shape) / np.sqrt(x.size / x.shape[-1])).astype(np.float32)
  return jax.tree.map(draw, shapes(module))


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, inputs, key=None):
  rngs = None if key is None else {"dropout": key}
  return module.apply({"params": params}, inputs, key is None, rngs=rngs)


def apply(module, params, inputs, key=None):
  key = None if key is None else jax.random.key(key)
  return np.asarray(run(module, params, inputs, key))


def names(params):
  return set(flax.traverse_util.flatten_dict(params, sep="/"))


def test_without_cameras_images_change_nothing():
  plain = observation.Encoder(observation.Config(**tiny.OBSERVATION), tiny.spec(), WIDTH)
  other = encoder({"tokens": "patches", "crop": 8, "jitter": 0.5, "shared": True}, cameras=())
  sample = observation.sample(plain.spec)
  start = lambda module: partitioning.init(module, jax.random.key(0), sample)
  one, same = (jax.jit(lambda module=module: start(module))() for module in (plain, other))
  assert tiny.to_bits(one) == tiny.to_bits(same)
  both = {f"{name}/{part}" for name in ("mlp_in", "mlp_mid", "mlp_out") for part in ("w", "b")}
  assert names(one) == {"task/table", "positions"} | both
  bits = [apply(module, one, seen(()), key=3).tobytes() for module in (plain, other)]
  assert bits[0] == bits[1]


@pytest.mark.parametrize(
  ("cameras", "looks", "tokens"),
  [
    (ONE, VIT, 2),
    (ONE, RESNET, 2),
    (TWO, VIT | {"tokens": "patches"}, 2 + 2 * (16 + 12)),
    (TWO, RESNET | {"tokens": "patches", "shared": True, "crop": 12}, 2 + 2 * (4 + 4)),
  ],
)
def test_every_camera_is_seen_and_every_parameter_is_known(cameras, looks, tokens):
  module, inputs = encoder(looks, cameras), seen(cameras)
  sample = observation.sample(module.spec)
  axes = partitioning.logical_axes(module, sample)
  leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  assert {name for axes in leaves for name in axes} <= {None, *dict(sharding.RULES)}
  params = params_of(module)
  groups = jax.tree.leaves(optimizer.groups({"network": {"observe": params}}))
  assert set(groups) == {"decay", "no_decay"}
  weights = np.random.default_rng(0).normal(size=(4, tokens, WIDTH))

  def loss(params, frames):
    out = module.apply({"params": params}, inputs | frames)
    assert out.shape == weights.shape
    return (out * weights).sum()

  frames = {name: x for name, x in inputs.items() if name.startswith("image_")}
  by_params, by_frames = jax.jit(jax.grad(loss, (0, 1)))(params, frames)
  for x in by_frames.values():
    assert x.any((2, 3, 4)).all()  # every frame of every example
    if not looks.get("crop"):
      assert x.any(4).mean() > 0.99
  still = {k for k, x in flax.traverse_util.flatten_dict(by_params, sep="/").items() if not x.any()}
  assert all(name.endswith("attention/k/b") for name in still)  # shifts all scores alike


def test_one_encoder_each_or_one_for_all():
  top = lambda looks: {
    name.split("/")[0] for name in names(shapes(encoder(looks, ONE + (("b", 16, 16),))))
  }
  own = {"mlp_in", "mlp_mid", "mlp_out", "positions", "task"}
  assert top(VIT) == own | {"images_top", "images_b"}
  assert top(VIT | {"shared": True}) == own | {"images"}
  patches = VIT | {"shared": True, "frozen": True, "weights": "somewhere", "tokens": "patches"}
  assert top(patches) == own | {"frozen_images", "patches_top", "patches_b"}


@pytest.mark.parametrize("looks", [VIT, VIT | {"tokens": "patches"}])
def test_steps_before_the_start_are_marked_not_hidden(looks):
  module, inputs = encoder(looks), seen()
  params = params_of(module)
  outputs = []
  for mask in ([True, True], [False, True]):
    masked = inputs | {"mask": np.tile(mask, (4, 1))}
    outputs.append(apply(module, params, masked))
    dark = np.array([0.5, 1], np.float32).reshape(2, 1, 1, 1)  # of the step that may be hidden
    darker = masked | {"image_top": masked["image_top"] * dark}
    assert (apply(module, params, darker) != outputs[-1]).any((1, 2)).all()
  differ = (outputs[0] != outputs[1]).any(-1)
  first = np.r_[True, False, [True] * 16, [False] * 16] if len(differ[0]) > 2 else [True, False]
  np.testing.assert_array_equal(differ, np.tile(first, (4, 1)))


def test_the_centre_of_the_frames_is_what_a_crop_sees_when_acting():
  cropped, small = encoder(VIT | {"crop": 8}), encoder(VIT, (("top", 8, 8),))
  params, inputs = params_of(cropped), seen()
  assert shapes(cropped) == shapes(small)
  centre = inputs | {"image_top": inputs["image_top"][:, :, 4:12, 4:12]}
  got, want = apply(cropped, params, inputs), apply(small, params, centre)
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("change", [{"crop": 8}, {"jitter": 0.5}])
def test_augmentation_is_for_training_and_the_keys_alone(change):
  module, inputs = encoder(VIT | change), seen()
  params = params_of(module)
  one, same, other = (apply(module, params, inputs, key) for key in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert (one != other).any((1, 2)).all()
  assert (apply(module, params, inputs) != one).any((1, 2)).all()


def test_cameras_are_augmented_apart():
  module = encoder(VIT | {"crop": 8, "shared": True}, ONE + (("b", 16, 16),))
  inputs = seen(module.spec.cameras)
  inputs["image_b"] = inputs["image_top"]
  params = params_of(module)
  w = np.array(params["mlp_in"]["w"])
  w[-16:] = -w[-32:-16]  # of the two cameras' features: what is the same cancels out
  params["mlp_in"]["w"] = w
  away = inputs | {"image_top": 0 * inputs["image_top"], "image_b": 0 * inputs["image_b"]}
  np.testing.assert_allclose(apply(module, params, inputs), apply(module, params, away), atol=1e-5)
  one, other = (apply(module, params, x, key=0) for x in (inputs, away))
  assert (np.abs(one - other) > 1e-3).any((1, 2)).mean() > 0.5


@pytest.mark.parametrize("tokens", ["pooled", "patches"])
def test_modality_dropout_replaces_whole_modalities(tokens):
  B = 64
  module = encoder(VIT | {"tokens": tokens}, modality_dropout=0.5)
  params, inputs = params_of(module), seen(B=B)
  assert {"missing_state", "missing_task", "missing_image_top"} <= set(params)
  weights = np.random.default_rng(0).normal(size=(WIDTH,))

  @functools.partial(jax.jit, static_argnums=1)
  def gradients(x, train):
    rngs = {"dropout": jax.random.key(0)} if train else None
    loss = lambda x: module.apply({"params": params}, inputs | x, not train, rngs=rngs) @ weights
    return jax.grad(lambda x: loss(x).sum())(x)

  given, kept = {name: inputs[name] for name in ("state", "image_top")}, {}
  for x in gradients(given, False).values():
    assert x.reshape(B, -1).any(1).all()  # acting takes all
  for name, x in gradients(given, True).items():
    by_step = np.asarray(x).reshape(B, 2, -1).any(-1)
    np.testing.assert_array_equal(by_step[:, 0], by_step[:, 1])
    kept[name] = by_step[:, 0]
    assert 0.3 < kept[name].mean() < 0.7
  patterns = 2 * kept["state"] + kept["image_top"]
  assert set(patterns) == {0, 1, 2, 3}  # drawn apart


def test_what_is_missing_is_one_learned_value():
  layer, x = observation.OrMissing(0.25), np.random.default_rng(0).normal(size=(400, 2, 3, 5))
  params = {"missing": np.arange(5, dtype=np.float32) + 100}
  run = lambda **rngs: np.asarray(layer.apply({"params": params}, x, not rngs, rngs=rngs))
  np.testing.assert_allclose(run(), x, rtol=1e-6)
  got = run(dropout=jax.random.key(0))
  gone = got[:, 0, 0, 0] == 100
  assert 0.18 < gone.mean() < 0.32
  np.testing.assert_allclose(got[~gone], x[~gone], rtol=1e-6)
  np.testing.assert_array_equal(got[gone], np.broadcast_to(params["missing"], got[gone].shape))


@pytest.mark.parametrize(
  ("cameras", "looks", "message"),
  [
    (TWO, {"crop": 13}, r"'hand' has frames of 12x16 pixels; .*images.crop is 13: at most 12"),
    (TWO, VIT | {"vit": TOWER | {"patch": 8}}, r"'hand' is seen as 12x16 .*vit.patch 8"),
    (
      TWO,
      {"shared": True},
      r"shared is set, but cameras are seen in several sizes: .*16\), 'hand'",
    ),
  ],
)
def test_frames_that_do_not_fit_are_errors(cameras, looks, message):
  with pytest.raises(ValueError, match=message):
    shapes(encoder(looks, cameras))


@pytest.mark.parametrize(
  ("looks", "message"),
  [
    ({"encoder": "resnet"}, "images.encoder is 'resnet'; it must be one of: resnet18, vit"),
    ({"tokens": "all"}, "images.tokens is 'all'"),
    ({"crop": -1}, "images.crop is -1"),
    ({"jitter": 2.0}, "images.jitter is 2.0; it must be in 0..1"),
    ({"channels": (16, 24)}, "channels holds 24; channels are normalised in groups of 16"),
    ({"channels": ()}, "the number of .*channels is 0"),
    ({"weights": "x"}, "weights is set, but resnet18 is trained from scratch"),
    ({"frozen": True}, "frozen is set without weights"),
    ({"vit": {"patsch": 3}}, "images.vit has no key 'patsch'; did you mean 'patch'"),
  ],
)
def test_impossible_settings_are_errors(looks, message):
  with pytest.raises(ValueError, match=message):
    config(looks)
  with pytest.raises(ValueError, match="modality_dropout is 1.0; it must be in 0..0.99"):
    config(modality_dropout=1.0)


def test_weights_are_given_to_every_encoder(tmp_path):
  path = towers.write(tmp_path / "tower.safetensors", "dinov2")
  tower = {"family": "dinov2", "patch": 4, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24}
  looks = {"encoder": "vit", "weights": str(path), "vit": tower}
  for cameras in (ONE, TWO):
    module = encoder(looks, cameras)
    arrays, params = observation.pretrained(module.config, module.spec), params_of(module)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    wanted = {name for name in flat if name.startswith("images_")}
    assert {name: x.shape for name, x in arrays.items()} == {n: flat[n].shape for n in wanted}
  assert observation.pretrained(config(), module.spec) == {}
  with pytest.raises(ValueError, match="weights is set, but config.data.cameras is empty"):
    images.pretrained(module.config.images, tiny.spec())
