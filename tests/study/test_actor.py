"""What a policy is given of the simulator's state, and what is noted of its calls."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from oat_jax.envs import vector
from oat_jax.policies.policy import Policy
from oat_jax.study import actor
from oat_jax.train import models

CAMERAS = (("corner2", 8, 8), ("gripperPOV", 8, 8))
TASKS = ("push", "lift", "push")
B = len(TASKS)


def acting(act=None, state=("observation/state",), tokens=8, **changes):
  """An actor whose policy is the function `act`; by default a chunk of the state's first number."""
  spec = tiny.spec(**changes)

  def first(params, batch, key, num_tokens, sampling, tolerance):
    import jax.numpy as jnp

    value_B = batch["observation"]["state"][:, -1, 0]
    return jnp.broadcast_to(value_B[:, None, None], (len(value_B), 8, 3)), {}

  nothing = dict.fromkeys(("init", "axes", "loss", "evaluate", "prepare"))
  policy = Policy(**nothing, act=act or first, spec=spec, max_tokens=tokens)
  config = SimpleNamespace(kind="policy", data=SimpleNamespace(state=state))
  return actor.PolicyActor(models.Trained(config, spec, policy, tokens and object(), {}, 3))


def simulated(**images):
  rng = np.random.default_rng(0)
  observation = {
    "state": rng.normal(size=(B, 2, 5)).astype(np.float32),
    "proprioception": rng.normal(size=(B, 2, 4)).astype(np.float32),
    **{name: rng.integers(0, 256, (B, 2, *size, 3), np.uint8) for name, size in images.items()},
  }
  flags = [np.zeros(B, bool)] * 2
  return vector.VectorState(observation, np.ones((B, 2), bool), *flags, *[np.zeros(B, int)] * 2)


def test_a_policy_is_given_states_tasks_and_what_its_cameras_see():
  state = simulated(image_corner2=(8, 8), image_gripperPOV=(8, 8), image_topview=(8, 8))
  batch = acting(cameras=CAMERAS).batch(state, TASKS)
  seen = batch["observation"]
  assert set(seen) == {"image_corner2", "image_gripperPOV", "state", "task"}
  for name in ("image_corner2", "image_gripperPOV", "state"):
    np.testing.assert_array_equal(seen[name], state.observation[name])
  assert seen["task"].tolist() == [1, 0, 1] and batch["dataset"].tolist() == [0] * B
  both = acting(state=("observation/proprioception", "observation/state"), state_dim=9)
  found = both.batch(state, TASKS)["observation"]["state"]
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
    acting(cameras=CAMERAS).batch(simulated(**images), TASKS)


def test_cameras_are_rendered_as_the_policy_was_trained():
  assert actor.rendered(tiny.spec(cameras=CAMERAS)) == (("corner2", "gripperPOV"), 8)
  assert actor.rendered(tiny.spec())[0] == ()
  with pytest.raises(ValueError, match="'a' at 8x12 pixels; the simulator renders squares"):
    actor.rendered(tiny.spec(cameras=(("a", 8, 12),)))
  with pytest.raises(ValueError, match="'a' at 8x8 pixels and 'b' at 16x16"):
    actor.rendered(tiny.spec(cameras=(("a", 8, 8), ("b", 16, 16))))


def stopping(spent):
  def act(params, batch, key, num_tokens, sampling, tolerance):
    import jax.numpy as jnp

    return jnp.zeros((B, 8, 3)), {"num_tokens": spent(num_tokens)}

  return act


@pytest.mark.parametrize(
  "act, expected",
  [
    (None, [0] * B),
    (stopping(lambda K: K), [5] * B),
    (stopping(lambda K: np.array([1, 4, 2])), [1, 4, 2]),
  ],
)
def test_tokens_are_counted_for_each_row(act, expected):
  each = acting(act)
  acted = each.driver(TASKS, 5)(simulated(), np.ones(B, bool))
  assert acted.num_tokens_B.tolist() == expected
  assert acted.actions_BCA.shape == (B, 8, 3) and isinstance(acted.actions_BCA, np.ndarray)


def test_compilation_is_not_in_the_milliseconds(monkeypatch):
  """A clock that moves 1 s for every trace and 1 ms for whatever else is asked."""
  now = [0.0]

  def clock():
    now[0] += 0.001
    return now[0]

  def slow_to_trace(params, batch, key, num_tokens, sampling, tolerance):
    import jax.numpy as jnp

    now[0] += 1.0
    return jnp.zeros((B, 8, 3)), {}

  monkeypatch.setattr(actor.time, "perf_counter", clock)
  drive = acting(slow_to_trace).driver(TASKS, 5)
  times = [drive(simulated(), np.ones(B, bool)).ms for _ in range(3)]
  assert times == pytest.approx([1.0] * 3) and now[0] > 1


def test_a_task_is_asked_for_by_its_name_or_by_its_sentence():
  spec = tiny.spec(task_names=("lift", "push the lid"))
  sentences = {"lift": "lift it", "push": "push the lid"}
  known = actor.known_as(["push", "lift", "turn"], spec, sentences)
  assert known == ["push the lid", "lift", "turn"]  # which the actor then refuses
