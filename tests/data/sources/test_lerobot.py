"""LeRobot datasets come back, value by value and frame by frame, through tensorflow-datasets."""

import json

import foreign
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="the extra `train` is not installed")
pytest.importorskip("pyarrow", reason="the extra `convert` is not installed")
av = pytest.importorskip("av", reason="the extra `convert` is not installed")

import pyarrow  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from oat_jax.data import convert  # noqa: E402
from oat_jax.data import sources  # noqa: E402
from oat_jax.data.sources import _video  # noqa: E402


def converted(path, out, on_error="raise", **options):
  options = sources.Options(**options)
  report = convert.convert("lerobot", path, out, on_error=on_error, options=options, progress=False)
  return foreign.read(out), report


def assert_columns(episode, number, want, first, cameras=("top",)):
  """`first` is the number of the episode's first frame in its video."""
  for ours, theirs in {
    "action": "action",
    "observation/state": "observation.state",
    "observation/pose": "observation.pose",
    "reward": "next.reward",
  }.items():
    np.testing.assert_array_equal(foreign.column(episode, ours), np.float32(want[theirs]))
  steps = len(want["action"])
  for camera in cameras:
    frames = foreign.column(episode, f"observation/image_{camera}")
    assert frames.shape == (steps, 32, 48, 3)
    assert [foreign.number(frame) for frame in frames] == list(range(first, first + steps))
  assert {s["language_instruction"].decode() for s in episode["steps"]} == {f"task {number % 2}"}
  assert int(episode["episode_metadata"]["episode"]) == number
  assert foreign.column(episode, "is_last").tolist() == [False] * (steps - 1) + [True]
  assert not foreign.column(episode, "is_terminal").any()


def test_episodes_share_files_and_keep_every_value(tmp_path):
  root = tmp_path / "my.Data-set"
  files = [[5, 1, 9], [4], [3, 12]]
  content = foreign.lerobot(
    root, files, cameras=("top", "wrist"), image=True, splits={"train": "0:4", "val": "4:6"}
  )
  found, report = converted(root, tmp_path / "out")
  assert {k: len(v) for k, v in found.items()} == {"train": 4, "val": 2}
  firsts = [sum(lengths[:i]) for lengths in files for i in range(len(lengths))]
  for number, episode in enumerate(found["train"] + found["val"]):
    assert_columns(episode, number, content[number], firsts[number], ("top", "wrist"))
    pictures = foreign.column(episode, "observation/image")
    np.testing.assert_array_equal(pictures, content[number]["pictures"])  # PNG stays PNG
  assert report["left_out"] == ["next.done, bool"]
  assert report["request"]["name"] == "my_data_set"


def test_a_split_may_begin_in_the_middle_of_a_file(tmp_path):
  content = foreign.lerobot(tmp_path / "in", [[2, 3, 4, 5]], splits={"train": "2:4", "val": "0:2"})
  found, _ = converted(tmp_path / "in", tmp_path / "out")
  for split, number, first in (("train", 2, 5), ("train", 3, 9), ("val", 0, 0), ("val", 1, 2)):
    assert_columns(found[split][number % 2], number, content[number], first)


def test_frames_are_the_decoders_own(tmp_path):
  """PNG loses nothing, so the frames must equal those of a decoding from the beginning."""
  foreign.lerobot(tmp_path / "in", [[4, 7]])
  found, _ = converted(tmp_path / "in", tmp_path / "out", image_format="png")
  with av.open(str(next(tmp_path.rglob("*.mp4")))) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  got = [foreign.column(episode, "observation/image_top") for episode in found["train"]]
  np.testing.assert_array_equal(np.concatenate(got), frames)


def test_stored_images_change_their_format_only_where_asked_for(tmp_path):
  content = foreign.lerobot(tmp_path / "in", [[2]], cameras=(), image=True)
  found, _ = converted(tmp_path / "in", tmp_path / "out", image_format="jpeg")
  got = foreign.column(found["train"][0], "observation/image").astype(int)
  error = np.abs(got - content[0]["pictures"])
  assert 0 < error.mean() < 60  # the pictures are noise, which JPEG cannot keep
  features = json.loads((tmp_path / "out/features.json").read_text())
  assert '"encodingFormat": "jpeg"' in json.dumps(features)


def test_version_2_has_files_of_its_own_for_every_episode(tmp_path):
  content = foreign.lerobot_v2(tmp_path / "in", [3, 4, 2])
  found, _ = converted(tmp_path / "in", tmp_path / "out")
  for number, episode in enumerate(found["train"]):
    assert_columns(episode, number, content[number], number)
  assert len(found["train"]) == 3


def test_tasks_may_change_within_an_episode_and_success_is_kept(tmp_path):
  foreign.lerobot(tmp_path / "in", [[3, 3]], cameras=())
  change_table(tmp_path / "in", "task_index", [0, 1, 1, 0, 0, 0])
  info = json.loads((tmp_path / "in/meta/info.json").read_text())
  info["features"]["next.success"] = info["features"].pop("next.done")
  (tmp_path / "in/meta/info.json").write_text(json.dumps(info))
  path = tmp_path / "in/data/chunk-000/file-000.parquet"
  table = pq.read_table(path).drop_columns("next.done")
  pq.write_table(table.append_column("next.success", [[False] * 5 + [True]]), path)
  found, _ = converted(tmp_path / "in", tmp_path / "out")
  words = [s["language_instruction"].decode() for s in found["train"][0]["steps"]]
  assert words == ["task 0", "task 1", "task 1"]
  assert [bool(e["episode_metadata"]["success"]) for e in found["train"]] == [False, True]
  assert foreign.column(found["train"][1], "is_terminal").tolist() == [False, False, True]


def test_the_names_of_openpis_datasets_are_read(tmp_path):
  """They say `actions`, `image` and `state`, without `observation.`"""
  names = {"action": "actions", "observation.state": "state", "observation.image": "image"}
  content = foreign.lerobot(tmp_path / "in", [[3]], cameras=(), image=True)
  path = tmp_path / "in/meta/info.json"
  info = json.loads(path.read_text())
  info["features"] = {names.get(key, key): facts for key, facts in info["features"].items()}
  path.write_text(json.dumps(info))
  path = tmp_path / "in/data/chunk-000/file-000.parquet"
  table = pq.read_table(path)
  pq.write_table(table.rename_columns([names.get(n, n) for n in table.column_names]), path)
  found, _ = converted(tmp_path / "in", tmp_path / "out")
  (episode,) = found["train"]
  np.testing.assert_array_equal(foreign.column(episode, "action"), content[0]["action"])
  assert episode["steps"][0]["observation"].keys() == {"image", "pose", "state"}


@pytest.mark.parametrize("codec", ["mpeg4", "libsvtav1"])
def test_other_codecs(tmp_path, codec):
  if codec not in av.codecs_available:
    pytest.skip(f"this PyAV has no encoder {codec}")
  foreign.video(tmp_path / "a.mp4", np.repeat(foreign.numbered(0, 12), 2, axis=1), 10, codec)
  frames = _video.Video(1e-4).frames(tmp_path / "a.mp4", np.arange(3, 12) / 10)
  assert [foreign.number(frame[:32]) for frame in frames] == list(range(3, 12))


def test_videos_are_decoded_once_and_sought_only_backwards(tmp_path, monkeypatch):
  foreign.video(tmp_path / "a.mp4", foreign.numbered(0, 40), 10)
  opened = []
  real = av.open
  monkeypatch.setattr(_video.av, "open", lambda path: opened.append(path) or real(path))
  video = _video.Video(1e-4)

  def numbers(*wanted):
    frames = video.frames(tmp_path / "a.mp4", np.array(wanted) / 10)
    return [foreign.number(frame) for frame in frames]

  assert numbers(*range(0, 10)) == list(range(0, 10))
  assert numbers(*range(10, 20)) == list(range(10, 20))
  assert numbers(25, 27) == [25, 27]
  assert len(opened) == 1
  assert numbers(7, 8) == [7, 8]
  assert len(opened) == 2


def test_seeking_finds_every_frame(tmp_path):
  """Also among frames that are stored in another order than shown, far from key frames."""
  path = tmp_path / "a.mp4"
  options = {"g": "12", "bf": "3", "crf": "20", "sc_threshold": "0", "keyint_min": "12"}
  foreign.video(path, foreign.numbered(0, 60), 10, options=options)
  for first in range(60):
    frames = _video.Video(1e-4).frames(path, np.arange(first, 60)[:2] / 10)
    assert [foreign.number(frame) for frame in frames] == [first, first + 1][: 60 - first]


def change_table(root, column, values, file=0, kind=None):
  path = root / f"data/chunk-000/file-{file:03d}.parquet"
  table = pq.read_table(path)
  field = table.schema.field(column)
  field = field if kind is None else field.with_type(kind)
  array = pyarrow.array(values, field.type)
  table = table.set_column(table.column_names.index(column), field, array)
  pq.write_table(table, path)


def nan(root):
  path = root / "data/chunk-000/file-000.parquet"
  actions = pq.read_table(path)["action"].to_pylist()
  actions[6][3] = float("nan")
  change_table(root, "action", actions)


def null(root):
  path = root / "data/chunk-000/file-000.parquet"
  actions = pq.read_table(path)["action"].to_pylist()
  actions[6] = None
  change_table(root, "action", actions)


def uneven(root):
  """As many values as there should be, in other steps."""
  path = root / "data/chunk-000/file-000.parquet"
  actions = pq.read_table(path)["action"].to_pylist()
  actions[5].append(actions[6].pop(0))
  change_table(root, "action", actions, kind=pyarrow.list_(pyarrow.float32()))


def uneven_within(root):
  path = root / "data/chunk-000/file-000.parquet"
  poses = pq.read_table(path)["observation.pose"].to_pylist()
  poses[7] = [poses[7][0][:1], poses[7][0][1:] + poses[7][1]]
  change_table(root, "observation.pose", poses)


def rows_gone(root):
  path = root / "data/chunk-000/file-000.parquet"
  pq.write_table(pq.read_table(path).slice(0, 9), path)


def no_rows(root):
  path = root / "data/chunk-000/file-000.parquet"
  pq.write_table(pq.read_table(path).slice(0, 4), path)


def frame_gone(root):
  change_table(root, "frame_index", [0, 1, 2, 3, 0, 1, 3, 4, 5, 6, 0, 1])


def unknown_task(root):
  change_table(root, "task_index", [0] * 4 + [0, 9] + [1] * 6)


def no_image(root):
  path = root / "data/chunk-000/file-000.parquet"
  cells = pq.read_table(path)["observation.image"].to_pylist()
  cells[5]["bytes"] = b"\x89PNG\r\n\x1a\nrubbish"
  change_table(root, "observation.image", cells)


BAD = {
  nan: "'action' is nan at step 2, dimension 3",
  null: r"'action' holds a list of 0, not 4, at step 2; info.json says \[4\] a step",
  uneven: r"'action' holds a list of 5, not 4, at step 1; info.json says \[4\] a step",
  uneven_within: r"'observation.pose' holds a list of 1, not 3, at step 3; info.json says \[2, 3\]",
  rows_gone: "there are 5 rows of it, but meta says 6",
  no_rows: "file-000.parquet: no row belongs to it",
  frame_gone: "'frame_index' is 3 at step 2",
  unknown_task: "'task_index' is 9, which the tasks of meta do not have",
  no_image: r"/steps\[1\]/observation/image' is .* no png image",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
def test_a_bad_episode_is_named_or_skipped(tmp_path, spoil):
  root = tmp_path / "in"
  foreign.lerobot(root, [[4, 6, 2]], cameras=(), image=True)
  spoil(root)
  file = root / "data/chunk-000/file-000.parquet"
  with pytest.raises(ValueError, match=f"{file}, episode 1: .*{BAD[spoil]}"):
    converted(root, tmp_path / "out")
  found, report = converted(root, tmp_path / "out", on_error="skip")
  kept = [int(e["episode_metadata"]["episode"]) for e in found["train"]]
  gone = [int(s["episode"]) for s in report["skipped"]]
  assert sorted(kept + gone) == [0, 1, 2] and 1 in gone and 0 in kept
  assert (2 in kept) == (spoil not in (rows_gone, no_rows))


def short(root, path):
  foreign.video(path, foreign.numbered(0, 8), 10)


def slow(root, path):
  foreign.video(path, foreign.numbered(0, 13), 9)


def truncated(root, path):
  path.write_bytes(path.read_bytes()[:-800])


def damaged(root, path):
  foreign.video(path, foreign.images(0, 12, 32, 48), 10, "mpeg4")
  with av.open(str(path)) as container:
    packet = [p for p in container.demux(video=0) if p.size][6]
  data = bytearray(path.read_bytes())
  middle = packet.pos + packet.size // 2
  data[middle : middle + 100] = bytes(100)
  path.write_bytes(data)


def rubbish(root, path):
  path.write_bytes(bytes(range(256)) * 20)


def missing(root, path):
  path.unlink()


def another_size(root, path):
  foreign.video(path, foreign.numbered(0, 12, 36, 48), 10)


VIDEOS = {
  short: (1, "frame 4 should be at 0.8000 s, but the video ends with a frame at 0.7000 s"),
  slow: (0, "frame 1 should be at 0.1000 s, the nearest is at 0.1111 s, off by more than 0.0001 s"),
  truncated: (0, "there is no video stream in it; the file may be truncated"),
  damaged: (1, "frame 2 at 0.6000 s is damaged"),
  rubbish: (0, "cannot be decoded"),
  missing: (0, "there is no such file"),
  another_size: (0, r"/image_top' is uint8\[36, 48, 3\]; the features say uint8\[32, 48, 3\]"),
}


@pytest.mark.parametrize("spoil", VIDEOS, ids=lambda f: f.__name__)
def test_a_bad_video_is_named_and_its_episodes_skipped(tmp_path, spoil):
  root, (number, message) = tmp_path / "in", VIDEOS[spoil]
  foreign.lerobot(root, [[4, 6, 2], [3]])
  path = root / "videos/observation.images.top/chunk-000/file-000.mp4"
  spoil(root, path)
  where = "" if spoil is another_size else str(path)
  with pytest.raises(ValueError, match=f"episode {number}: .*{where}.*{message}"):
    converted(root, tmp_path / "out")
  found, report = converted(root, tmp_path / "out", on_error="skip")
  kept = [int(e["episode_metadata"]["episode"]) for e in found["train"]]
  assert kept == {short: [0, 3], damaged: [0, 2, 3]}.get(spoil, [3])
  assert [int(s["episode"]) for s in report["skipped"]] == [n for n in range(4) if n not in kept]


def test_a_larger_tolerance_takes_a_slow_video(tmp_path):
  """At 9.9 frames/s the fourth frame is 3 ms late."""
  foreign.lerobot(tmp_path / "in", [[4]], fps=10)
  path = next((tmp_path / "in").rglob("*.mp4"))
  from fractions import Fraction

  foreign.video(path, foreign.numbered(0, 4), Fraction(99, 10))
  with pytest.raises(ValueError, match="frame 1 should be at 0.1000 s"):
    converted(tmp_path / "in", tmp_path / "out")
  found, _ = converted(tmp_path / "in", tmp_path / "other", tolerance=0.01)
  frames = foreign.column(found["train"][0], "observation/image_top")
  assert [foreign.number(frame) for frame in frames] == [0, 1, 2, 3]


def test_bad_metadata_are_named(tmp_path):
  root = tmp_path / "in"
  foreign.lerobot(root, [[2, 2]], cameras=())
  path = root / "meta/info.json"
  good = json.loads(path.read_text())

  def refused(message, error=ValueError, tolerance=1e-4, **changes):
    path.write_text(json.dumps(good | changes))
    with pytest.raises(error, match=message):
      converted(root, tmp_path / "out", tolerance=tolerance)

  refused("codebase_version is 'v1.6'; v2.0, v2.1 and v3.0 are read", codebase_version="v1.6")
  refused("fps is 0.0; it must be positive", fps=0)
  refused("it must be a range such as 0:50", splits={"train": "0-2"})
  refused("hold episode 1 0 times; it must be once", splits={"train": "0:1"})
  refused("hold episode 0 2 times", splits={"train": "0:2", "val": "0:1"})
  refused("tolerance is 0.1 s; .* at most 0.05 s", tolerance=0.1)
  features = dict(good["features"])
  action = features.pop("action")
  refused("there is no feature 'action'; it has observation.state", features=features)
  features = good["features"] | {"action": action | {"shape": [2, 2]}}
  refused(r"shape of 'action' is \[2, 2\]; it must be \(dims,\)", features=features)
  features = good["features"] | {"observation.image": action, "observation.images": action}
  features["image"] = action
  refused("two features would be named 'image'", features=features)
  path.write_text("{")
  with pytest.raises(ValueError, match="info.json: not the info.json"):
    converted(root, tmp_path / "out")
  episodes = root / "meta/episodes/chunk-000/file-000.parquet"
  whole = episodes.read_bytes()
  episodes.write_bytes(whole[:200])
  refused("file-000.parquet: not a parquet file, or truncated")
  episodes.unlink()
  refused("meta/episodes: there is no chunk-000/file-000.parquet", FileNotFoundError)
  with pytest.raises(FileNotFoundError, match="info.json: no such file; give a LeRobot dataset"):
    converted(tmp_path, tmp_path / "out")


def test_a_truncated_parquet_file_is_named(tmp_path):
  foreign.lerobot(tmp_path / "in", [[2], [2]], cameras=())
  path = tmp_path / "in/data/chunk-000/file-001.parquet"
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match=f"{path}, episode 1: .*Parquet magic bytes"):
    converted(tmp_path / "in", tmp_path / "out")
