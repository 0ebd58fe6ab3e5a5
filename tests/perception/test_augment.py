"""Crops and colours: exact at evaluation, one draw an example in training."""

import colorsys

import jax
import numpy as np
import pytest

from oat_jax.perception import augment

B, T, Y, X, SIZE = 64, 3, 10, 8, 5


def frames(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape or (B, T, Y, X, 3), np.uint8)


def view(*args, **settings):
  return np.asarray(augment.view(*args, **settings))


def test_the_centre_crop_is_exact():
  seen = view(frames(), SIZE)
  np.testing.assert_array_equal(seen, frames()[:, :, 2:7, 1:6].astype(np.float32) / 255)
  np.testing.assert_array_equal(view(frames()), frames().astype(np.float32) / 255)


def test_a_random_crop_is_one_place_for_a_window_and_all_places_occur():
  whole = frames()
  seen = view(whole, SIZE, key=jax.random.key(0))
  assert seen.shape == view(whole, SIZE).shape and seen.dtype == np.float32
  seen = np.rint(255 * seen)
  corners = {}
  for b in range(B):
    places = [
      (y, x)
      for y in range(Y - SIZE + 1)
      for x in range(X - SIZE + 1)
      if np.array_equal(whole[b, :, y : y + SIZE, x : x + SIZE], seen[b])
    ]
    assert len(places) == 1
    corners[places[0]] = corners.get(places[0], 0) + 1
  assert {y for y, _ in corners} == set(range(6)) and {x for _, x in corners} == set(range(4))


def test_the_same_key_gives_the_same_view_and_another_another():
  one, same, other = (view(frames(), SIZE, 0.5, jax.random.key(i)) for i in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert (one != other).any((1, 2, 3, 4)).mean() > 0.9
  assert one.min() >= 0 and one.max() <= 1


def test_colours_without_strength_are_left_alone():
  image = frames(4, 2, 3, 3, 3) / np.float32(255)
  same = augment.jitter_colours(image, 0.0, jax.random.key(0))
  np.testing.assert_allclose(same, image, atol=1e-5)


def test_colours_change_as_brightness_contrast_saturation_and_hue_say():
  # Muted, so that nothing is clipped.
  image = 0.4 + 0.2 * frames(6, 2, 3, 3, 3) / np.float32(255)
  strength, key = 0.4, jax.random.key(3)
  got = np.asarray(augment.jitter_colours(image, strength, key))
  draws = np.asarray(jax.random.uniform(key, (4, 6), minval=-strength, maxval=strength))
  luminance = np.array([0.299, 0.587, 0.114])
  for b in range(6):
    brightness, contrast, saturation = 1 + draws[:3, b]
    pixels = image[b] * brightness
    mean = (pixels @ luminance).mean()
    pixels = mean + contrast * (pixels - mean)
    grey = pixels @ luminance
    for at in np.ndindex(grey.shape):
      _, i, q = colorsys.rgb_to_yiq(*(float(x) for x in pixels[at]))
      turned = saturation * complex(i, q) * np.exp(1j * draws[3, b] * np.pi / 2)
      # colorsys rounds its coefficients, and clips.
      want = colorsys.yiq_to_rgb(float(grey[at]), turned.real, turned.imag)
      np.testing.assert_allclose(got[(b, *at)], want, atol=0.02)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_the_frames_of_one_window_change_alike(jitter):
  still = np.repeat(frames(8, 1, Y, X, 3), T, axis=1)
  seen = view(still, SIZE, jitter, jax.random.key(0))
  np.testing.assert_array_equal(seen, np.repeat(seen[:, :1], T, axis=1))
