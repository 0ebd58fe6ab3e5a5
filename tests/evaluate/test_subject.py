"""What a policy is given of the simulator's state."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from oat_jax.evaluate import subject

CAMERAS = (("corner2", 8, 8), ("gripperPOV", 8, 8))
TASKS = ("push", "lift", "push")


def looking(state=("observation/state",), **changes):
  return SimpleNamespace(spec=tiny.spec(**changes), state=state)


def test_a_policy_is_given_states_tasks_and_what_its_cameras_see():
  state = tiny.simulated(image_corner2=(8, 8), image_gripperPOV=(8, 8), image_topview=(8, 8))
  batch = subject.observe(state, TASKS, looking(cameras=CAMERAS))
  seen = batch["observation"]
  assert set(seen) == {"image_corner2", "image_gripperPOV", "state", "task"}
  for name in ("image_corner2", "image_gripperPOV", "state"):
    np.testing.assert_array_equal(seen[name], state.observation[name])
  assert seen["task"].tolist() == [1, 0, 1] and batch["dataset"].tolist() == [0] * 3
  both = looking(("observation/proprioception", "observation/state"), state_dim=9)
  found = subject.observe(state, TASKS, both)["observation"]["state"]
  expected = [state.observation[name] for name in ("proprioception", "state")]
  np.testing.assert_array_equal(found, np.concatenate(expected, -1))


@pytest.mark.parametrize(
  "images, message",
  [
    ({}, "sees camera 'corner2'; the simulator renders none"),
    ({"image_topview": (8, 8)}, "sees camera 'corner2'; the simulator renders topview"),
    ({"image_corner2": (8, 8)}, "sees camera 'gripperPOV'; the simulator renders corner2"),
    (
      {"image_corner2": (8, 8), "image_gripperPOV": (16, 16)},
      "'gripperPOV' at 8x8 pixels; the simulator renders it at 16x16",
    ),
  ],
)
def test_a_camera_that_is_missing_or_of_another_size_is_an_error_naming_both(images, message):
  with pytest.raises(ValueError, match=message):
    subject.observe(tiny.simulated(**images), TASKS, looking(cameras=CAMERAS))


@pytest.mark.parametrize(
  "changes, tasks, message",
  [
    ({}, ("push", "turn"), "does not know task 'turn'; it was trained on lift, push"),
    ({"state": ("observation/joints",)}, TASKS, "reads 'observation/joints'; the simulator gives"),
    ({"state_dim": 6}, TASKS, r"states of shape \[2, 6\]; the simulator gives \[2, 5\]"),
  ],
)
def test_what_the_simulator_does_not_give_is_an_error(changes, tasks, message):
  with pytest.raises(ValueError, match=message):
    subject.observe(tiny.simulated(), tasks, looking(**changes))


def test_cameras_are_rendered_as_the_policy_was_trained():
  assert subject.rendered(tiny.spec(cameras=CAMERAS)) == (("corner2", "gripperPOV"), 8)
  assert subject.rendered(tiny.spec())[0] == ()
  with pytest.raises(ValueError, match="'a' at 8x12 pixels; the simulator renders squares"):
    subject.rendered(tiny.spec(cameras=(("a", 8, 12),)))
  with pytest.raises(ValueError, match="'a' at 8x8 pixels and 'b' at 16x16"):
    subject.rendered(tiny.spec(cameras=(("a", 8, 8), ("b", 16, 16))))


def test_a_task_is_asked_for_by_its_name_or_by_its_sentence():
  spec = tiny.spec(task_names=("lift", "push the lid"))
  sentences = {"lift": "lift it", "push": "push the lid"}
  known = subject.known_as(["push", "lift", "turn"], spec, sentences)
  assert known == ["push the lid", "lift", "turn"]  # which `observe` then refuses
