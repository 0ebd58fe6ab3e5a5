"""Observations by the names of others."""

import json

import numpy as np
import pytest
import tiny

from oat_jax.envs import suites as envs
from oat_jax.export import observing
from oat_jax.serve import keymap

CAMERAS = {
  "libero": ("image", "wrist"),
  "droid": ("exterior_1", "wrist"),
  "aloha": ("high", "low", "left_wrist", "right_wrist"),
  "praxis": ("agentview", "robot0_eye_in_hand"),  # robomimic's; other suites have others
  "praxis_metaworld": ("corner",),
}
FRAME = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
# As the examples of openpi and the adapters of praxis-eval send them.
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
  "praxis": {
    "observation.images.agentview": np.moveaxis(FRAME, -1, 0),
    "observation.images.robot0_eye_in_hand": np.moveaxis(FRAME + 1, -1, 0),
    "observation.state": np.arange(8.0, dtype=np.float32),
    "observation.state.robot0_eef_pos": np.arange(3.0, dtype=np.float32),
    "task": "push",
  },
  "praxis_metaworld": {
    "observation.images.corner": np.moveaxis(FRAME, -1, 0).astype(np.float32) / 255,
    "observation.state": np.arange(8.0, dtype=np.float32),
    "task": "Push the puck to a goal",
    "next.done": np.False_,
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


def test_images_of_floats_are_scaled_where_the_keymap_says_so():
  every = np.arange(256, dtype=np.uint8).reshape(8, 8, 4)[..., :3]
  two = spec("praxis", cameras=(("agentview", 8, 8), ("robot0_eye_in_hand", 8, 8)))
  frame = np.moveaxis(every, -1, 0).astype(np.float32) / 255  # as lerobot makes them
  names = [f"observation.images.{camera}" for camera in CAMERAS["praxis"]]
  request = REQUESTS["praxis"] | dict.fromkeys(names, frame)
  of = keymap.load("praxis", two)
  batch, _ = observing.batch(keymap.translate(request, of, two), two)
  np.testing.assert_array_equal(batch["observation"]["image_agentview"][0, -1], every)
  for wrong in (1.01, -0.01, np.nan):
    frame[1, 2, 3] = wrong
    with pytest.raises(ValueError, match="agentview' is float32, but not all of it is in 0..1"):
      keymap.translate(request, of, two)
  frame[1, 2, 3] = 0
  with pytest.raises(ValueError, match="'image_agentview' is float32; images are uint8"):
    observing.batch(keymap.translate(request, of._replace(float_images=False), two), two)
  whole = dict.fromkeys(names, (255 * frame).astype(np.int32))
  with pytest.raises(ValueError, match="'image_agentview' is int32; images are uint8"):
    observing.batch(keymap.translate(request | whole, of, two), two)


def test_a_pattern_names_the_cameras_that_have_no_name_of_their_own(tmp_path):
  path = tmp_path / "mine.json"
  path.write_text(json.dumps({"state": ["s"], "images": {"*": "cam_*_rgb", "wrist": "hand"}}))
  of = keymap.load(str(path), spec("libero"))
  assert of.images == {"image": "cam_image_rgb", "wrist": "hand"}
  for pattern in ("cam", "*_*", 3):
    path.write_text(json.dumps({"state": ["s"], "images": {"*": pattern}}))
    with pytest.raises(ValueError, match=r"mine.json calls all cameras .*; a name with one '\*'"):
      keymap.load(str(path), spec("libero"))


def test_tasks_have_our_names():
  of = lambda *names: spec("praxis_metaworld", task_names=names)
  for task in envs.get("metaworld/mt50").tasks:
    both = of("another", task)
    known = keymap.load("praxis_metaworld", both)
    request = REQUESTS["praxis_metaworld"] | {"task": known.tasks[task]}
    assert keymap.translate(request, known, both)["task"] == task
    assert keymap.translate(request | {"task": task}, known, both)["task"] == task
    assert keymap.translate(request | {"task": 1}, known, both)["task"] == 1
  with pytest.raises(ValueError, match="tasks push-back and push are both called there"):
    keymap.translate(REQUESTS["praxis_metaworld"], known, of("push", "push-back"))
  unknown = keymap.translate(REQUESTS["praxis_metaworld"], known, of("reach", "soccer"))
  with pytest.raises(ValueError, match="no task 'Push the puck to a goal'; the policy knows reach"):
    observing.batch(unknown, of("reach", "soccer"))


def test_a_number_joins_a_row():
  of = keymap.load("droid", spec("droid"))
  request = REQUESTS["droid"] | {"observation/gripper_position": 7.0}
  seen = keymap.translate(request, of, spec("droid"))
  np.testing.assert_array_equal(seen["state"], np.arange(8))


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
  for text in (
    "",
    "[]",
    '{"images": {}}',
    json.dumps({"state": ["a"], "cameras": {}}),
    '{"state": [], "tasks": 3}',
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match="mine.json is no keymap of state, images, task"):
      keymap.load(str(path), spec("libero"))
