"""Observations by the names of others."""

import json

import numpy as np
import pytest
import tiny

from oat_jax.export import observing
from oat_jax.serve import keymap

CAMERAS = {
  "libero": ("image", "wrist"),
  "droid": ("exterior_1", "wrist"),
  "aloha": ("high", "low", "left_wrist", "right_wrist"),
}
FRAME = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
# As the examples of openpi send them.
REQUESTS = {
  "libero": {
    "observation/image": FRAME,
    "observation/wrist_image": FRAME + 1,
    "observation/state": np.arange(8.0),
    "prompt": "push",
  },
  "droid": {
    "observation/exterior_image_1_left": FRAME,
    "observation/wrist_image_left": FRAME + 1,
    "observation/joint_position": np.arange(7.0),
    "observation/gripper_position": np.array([7.0]),
    "prompt": "push",
  },
  "aloha": {
    "state": np.arange(8.0),
    "images": {
      name: np.moveaxis(FRAME + i, -1, 0)
      for i, name in enumerate(("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"))
    },
    "prompt": "push",
  },
}


def spec(name, **changes):
  cameras = tuple((camera, 4, 6) for camera in CAMERAS[name])
  return tiny.spec(**({"cameras": cameras, "state_dim": 8} | changes))


@pytest.mark.parametrize("name", CAMERAS)
def test_a_ready_keymap_takes_what_its_robots_send(name):
  assert set(keymap.ready()) == set(CAMERAS)
  of = keymap.load(name, spec(name))
  seen = keymap.translate(REQUESTS[name], of, spec(name))
  batch, _ = observing.batch(seen, spec(name))
  np.testing.assert_array_equal(batch["observation"]["state"][0, -1], np.arange(8))
  for i, camera in enumerate(CAMERAS[name]):
    np.testing.assert_array_equal(batch["observation"][f"image_{camera}"][0, -1], FRAME + i)
  assert batch["observation"]["task"].tolist() == [1]


def test_our_own_names_need_no_keymap():
  own = spec("libero")
  request = {"state": np.zeros((2, 8)), "image_image": FRAME[None], "image_wrist": FRAME[None]}
  seen = keymap.translate(request | {"task": "lift", "seed": 3}, keymap.load("", own), own)
  assert set(seen) == {"state", "image_image", "image_wrist", "task"}


def test_a_policy_of_one_task_is_told_any():
  one = spec("libero", task_names=("",))
  seen = keymap.translate(REQUESTS["libero"] | {"prompt": "sing"}, keymap.load("libero", one), one)
  assert "task" not in seen


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"prompt": None}, "the request has no 'prompt'; it holds"),
    ({"observation/wrist_image_left": None}, "has no 'observation/wrist_image_left'"),
    ({"observation/joint_position": np.array(["a"])}, "of dtype <U1; numbers are needed"),
    ({"observation/joint_position": np.zeros((2, 7))}, "cannot be joined"),
    ({"observation/gripper_position": np.zeros((2, 1))}, "cannot be joined"),
  ],
)
def test_what_is_missing_or_cannot_be_joined_is_an_error(changed, message):
  request = {k: v for k, v in (REQUESTS["droid"] | changed).items() if v is not None}
  of = keymap.load("droid", spec("droid"))
  with pytest.raises(ValueError, match=message):
    keymap.translate(request, of, spec("droid"))


def test_a_keymap_that_does_not_fit_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="no keymap 'nope'; ready ones are aloha, droid"):
    keymap.load("nope", spec("libero"))
  with pytest.raises(ValueError, match="no name for the policy's camera 'image'; it names ext"):
    keymap.load("droid", spec("libero"))
  path = tmp_path / "mine.json"
  for text in ("", "[]", '{"images": {}}', json.dumps({"state": ["a"], "cameras": {}})):
    path.write_text(text)
    with pytest.raises(ValueError, match="mine.json is no keymap of state, images, task"):
      keymap.load(str(path), spec("libero"))
