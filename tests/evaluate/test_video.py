"""Videos show the frames of the episode that was reported, in a file that players read."""

from typing import NamedTuple

import numpy as np
import pytest

from oat_jax.evaluate import video

pytest.importorskip("imageio_ffmpeg", reason="the extra `sim` is not installed")
av = pytest.importorskip("av", reason="the extra `convert` is not installed")


class State(NamedTuple):
  observation: dict
  steps: np.ndarray
  success: np.ndarray


class FakeEnv:
  """The camera sees how many steps were executed; the episode succeeds with its third action."""

  def start(self, pairs):
    self.pairs, self.actions = pairs, []
    return self._state()

  def step(self, actions_BRA):
    self.actions.append(actions_BRA)
    return self._state()

  def _state(self):
    n = sum(actions_BRA.shape[1] for actions_BRA in self.actions)
    image = np.full((1, 1, 32, 48, 3), 40 * n, np.uint8)
    return State({"image_front": image}, np.array([n]), np.array([n == 3]))


def test_a_replay_executes_the_same_actions_one_by_one():
  env, actions_SA = FakeEnv(), np.arange(6.0).reshape(3, 2)
  frames = video.replay(env, "lift", 7, actions_SA, "front", success=True)
  assert env.pairs == [("lift", 7)]
  np.testing.assert_array_equal(np.concatenate(env.actions), actions_SA[:, None])
  assert [int(frame[0, 0, 0]) for frame in frames] == [0, 40, 80, 120]


def test_some_moments_of_a_replay_are_looked_at():
  env, actions_SA = FakeEnv(), np.arange(6.0).reshape(3, 2)
  frames = video.replay(env, "lift", 7, actions_SA, "front", True, video.moments(3, 3))
  np.testing.assert_array_equal(np.concatenate(env.actions, axis=1)[0], actions_SA)
  assert [int(frame[0, 0, 0]) for frame in frames] == [0, 80, 120]
  assert video.moments(300, 4) == [0, 100, 200, 300]
  assert video.moments(2, 8) == [0, 1, 2]  # there are no more


def test_a_replay_that_ends_otherwise_is_an_error():
  with pytest.raises(
    RuntimeError, match=r"'lift', seed 7.*\(3, True\); in the report.*\(3, False\)"
  ):
    video.replay(FakeEnv(), "lift", 7, np.zeros((3, 2)), "front", success=False)


def test_an_mp4_holds_every_frame_in_order(tmp_path):
  path = tmp_path / "videos" / "lift.mp4"
  values = [0, 60, 120, 180, 240]
  video.write(path, [np.full((32, 48, 3), value, np.uint8) for value in values])
  with av.open(str(path)) as file:
    stream = file.streams.video[0]
    context = stream.codec_context
    assert (context.name, context.width, context.height) == ("h264", 48, 32)
    assert stream.average_rate == video.FPS
    means = [frame.to_ndarray(format="rgb24").mean() for frame in file.decode(video=0)]
  assert means == pytest.approx(values, abs=6)
  assert list(path.parent.iterdir()) == [path]


def test_what_ffmpeg_refuses_is_an_error_that_leaves_nothing(tmp_path):
  with pytest.raises(RuntimeError, match=r"ffmpeg wrote no .*lift\.mp4: .*not divisible by 2"):
    video.write(tmp_path / "lift.mp4", [np.zeros((31, 33, 3), np.uint8)])
  assert not list(tmp_path.iterdir())


def test_a_missing_encoder_names_its_extra(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
  with pytest.raises(ImportError, match=r"pip install 'oat-jax\[sim\]'"):
    video.encoder()
