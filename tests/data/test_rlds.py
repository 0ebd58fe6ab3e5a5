"""Whole datasets against tensorflow_datasets' decoding, and with episodes that cannot be read."""

import os
import pathlib
import re

import made
import numpy as np
import pytest

from oat_jax.data import fetch
from oat_jax.data import rlds
from oat_jax.data import standardize

FORMATS = ("tfrecord", "array_record")
TOP = "steps/observation/top"


@pytest.mark.skipif(not made.BRIDGE.exists(), reason=f"the shared data is not at {made.BRIDGE}")
@pytest.mark.parametrize("split", ["train", "val"])
def test_bridge_equals_tensorflow_datasets(split):
  """Every number, text and pixel; both decode JPEG by OpenCV, so that no tolerance is needed."""
  episodes = made.read(made.BRIDGE, split, made.BRIDGE_STANDARD)
  builder = made.tfds.builder_from_directory(made.BRIDGE / "1.0.0")
  (name,) = builder.info.splits[split].filenames
  payloads = made.payloads_of(made.BRIDGE / "1.0.0" / name)
  made.assert_equals_tfds(episodes, payloads, builder.info.features)
  assert episodes.num_episodes == 25 and len(episodes.actions_LA) == 250
  assert len(episodes.task_names) == 4 and episodes.states_LS.shape == (250, 7 + 512 + 1 + 1)
  assert {name: camera.size for name, camera in episodes.cameras.items()} == {
    str(i): (64, 64) for i in range(4)
  }


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_feature_kind_equals_tensorflow_datasets(tmp_path, file_format):
  features, payloads, standard = made.everything()
  made.write(tmp_path, features, [payloads[:2], [], payloads[2:]], file_format)
  episodes = made.read(tmp_path, standard=standard)
  made.assert_equals_tfds(episodes, payloads, features)
  assert tuple(np.diff(episodes.starts_E)) == made.LENGTHS
  arrays = (episodes.actions_LA, episodes.states_LS, episodes.starts_E, episodes.tasks_L)
  assert [a.dtype for a in arrays] == [np.float32, np.float32, np.int64, np.int32]
  assert episodes.states_LS.max() > 2**63 and episodes.states_LS.min() < -(2**62)
  assert len(episodes.cameras) == 5


def test_actions_and_states_of_any_features(tmp_path):
  features, payloads, _ = made.everything()
  made.write(tmp_path, features, [payloads])
  names = ["scalar/uint8", "action", "zlib/bfloat16"]
  standard = standardize.plain(names, ["none/bool", "action"])
  episodes = made.read(tmp_path, standard=standard)
  made.assert_equals_tfds(episodes, payloads, features, [*names, "none/bool", "action"])
  assert episodes.actions_LA.shape[1] == 1 + 3 + 6
  assert episodes.action_names == tuple(f"action_{i}" for i in range(10))
  assert episodes.state_names == tuple(f"state_{i}" for i in range(9))


def test_names_of_a_standard_are_checked(tmp_path):
  features, payloads = made.small()
  made.write(tmp_path, features, [payloads])
  standard = made.SMALL._replace(action_names=("x", "y", "z"))
  assert made.read(tmp_path, standard=standard).action_names == ("x", "y", "z")
  with pytest.raises(ValueError, match="names 2 state dimensions|names 3 state dimensions, but ma"):
    made.read(tmp_path, standard=standard._replace(state_names=("x", "y", "z")))


def test_the_task_of_each_step_or_of_the_episode_or_none(tmp_path):
  features, payloads = made.small()

  def change(features):
    features["steps/text"].bytes_list.value[:] = [b"b", "ü".encode(), b"", b"b"]

  payloads = made.replaced(payloads, 2, change)
  made.write(tmp_path, features, [payloads])
  episodes = made.read(tmp_path)
  assert episodes.task_names == ("", "a", "b", "ü")
  expected = ["b"] * 3 + ["a"] + ["b", "ü", "", "b"] + ["a"] * 2 + ["b"] * 5
  assert [episodes.task_names[task] for task in episodes.tasks_L] == expected
  assert [episodes.task_names[task] for task in episodes.tasks_E] == ["b", "a", "b", "a", "b"]
  made.assert_equals_tfds(episodes, payloads, features)

  by_episode = made.read(tmp_path, standard=made.SMALL._replace(task="episode_metadata/name"))
  assert by_episode.task_names == tuple(f"name {e}" for e in range(5))
  assert by_episode.tasks_E.tolist() == list(range(5))
  made.assert_equals_tfds(by_episode, payloads, features)

  assert made.read(tmp_path, standard=made.SMALL._replace(task="")).task_names == ("",)


def test_tasks_of_episodes_left_out_are_not_listed(tmp_path):
  features, payloads = made.small()

  def change(features):
    features["steps/text"].bytes_list.value[:] = [b"gone"] * 4
    features["steps/action"].float_list.value[0] = np.nan

  made.write(tmp_path, features, [made.replaced(payloads, 2, change)])
  assert made.read(tmp_path, on_error="skip").task_names == ("a", "b")


def broken(kind, payloads, paths, file_format):
  """Damages record 2 of shard 1 (episode 4 of 5) or more; returns (episodes lost, messages)."""
  shard, records = paths[1], list(payloads[2:])

  def rewrite(change):
    made.write_shard(shard, made.replaced(records, 2, change), file_format)

  def strings(name, place, value):
    return lambda f: f[name].bytes_list.value.__setitem__(place, value)

  def floats(name, place, value):
    return lambda f: f[name].float_list.value.__setitem__(place, value)

  here = f"{shard}: record 2: "
  if kind == "no example":
    made.write_shard(shard, [*records[:2], b"not an example"], file_format)
    return [4], [here + "malformed Example: unexpected tag 0x6e at byte 0"]
  if kind == "no steps":
    rewrite(lambda f: [value.Clear() for value in f.values()])
    return [4], [here + "the episode has no steps; remove it from the dataset"]
  if kind == "missing feature":
    rewrite(lambda f: f.__delitem__("steps/action"))
    return [4], [here + "the record has no feature 'steps/action', though features.json has it"]
  if kind == "wrong width":
    rewrite(lambda f: f["steps/action"].float_list.value.extend([1.0] * 5))
    return [4], [here + "'steps/action' holds 20 values, no multiple of 3, its size a step"]
  if kind in ("nan", "inf"):
    rewrite(floats("steps/action", 4, float(kind)))
    return [4], [here + f"'steps/action' is {kind} at step 1, dimension 1"]
  if kind == "empty image":
    rewrite(strings(TOP, 3, b""))
    return [4], [here + f"'{TOP}': step 3: there are no bytes of an image"]
  if kind == "garbage image":
    rewrite(strings(TOP, 3, b"garbage"))
    message = "neither JPEG nor PNG; the bytes begin with 67 61 72 62 61 67 65"
    return [4], [here + f"'{TOP}': step 3: {message}"]
  if kind == "cut image":
    rewrite(lambda f: strings(TOP, 3, f[TOP].bytes_list.value[3][:-9])(f))
    return [4], [here + f"'{TOP}': step 3: the image has no end marker: it is cut off"]
  if kind == "two sizes":
    rewrite(strings(TOP, 3, made.image(np.random.default_rng(0), 16, 12)))
    message = "the image is 16x12 (height x width), step 0's 12x16"
    return [4], [here + f"'{TOP}': step 3: {message}"]
  if kind == "text":
    rewrite(strings("steps/text", 2, b"\xff"))
    return [4], [here + "'steps/text' at step 2 is no UTF-8 text"]
  if kind == "missing shard":
    paths[0].unlink()
    return [0, 1], [f"{paths[0]}: "] * 2
  if kind == "fewer records":
    made.write_shard(shard, records[:2], file_format)
    message = f"{shard}: holds 2 records, but dataset_info.json says 3; fetch"
    return [4], [message]
  if kind == "more records":
    made.write_shard(shard, [*records, records[0]], file_format)
    return [2, 3, 4], [f"{shard}: holds 4 records, but dataset_info.json says 3"] * 3
  if kind == "truncated":
    os.truncate(shard, shard.stat().st_size - 10)
    if file_format == "array_record":  # its index is at the end
      return [2, 3, 4], [f"{shard}: not an ArrayRecord file, or truncated"] * 3
    return [4], [f"{shard}: truncated record at byte "]
  assert kind == "flipped byte"
  whole = bytearray(shard.read_bytes())
  place = whole.index(records[1][:50]) + 20 if file_format == "tfrecord" else 300
  whole[place] ^= 1
  shard.write_bytes(whole)
  if file_format == "tfrecord":
    return [3], [f"{shard}: record 1, bytes "]
  return [2], [f"{shard}: record 0: "]


KINDS = [
  *("no example", "no steps", "missing feature", "wrong width", "nan", "inf", "empty image"),
  *("garbage image", "cut image", "two sizes", "text", "missing shard", "fewer records"),
  *("more records", "truncated", "flipped byte"),
]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_episodes_are_errors_or_left_out_and_listed(tmp_path, kind, file_format):
  features, payloads = made.small()
  paths = made.write(tmp_path, features, [payloads[:2], payloads[2:]], file_format)
  whole = made.contents(made.read(tmp_path))
  lost, messages = broken(kind, payloads, paths, file_format)
  error = FileNotFoundError if kind == "missing shard" else ValueError
  with pytest.raises(error, match=f"^{re.escape(messages[0])}"):
    made.read(tmp_path)
  for _ in range(2):  # as it is built, and from the cache
    episodes = made.read(tmp_path, on_error="skip")
    assert len(episodes.skipped) == len(lost)
    for reason, message in zip(episodes.skipped, messages):
      assert reason.startswith(message)
    assert made.contents(episodes) == [whole[e] for e in range(5) if e not in lost]


def test_losses_are_listed_record_by_record(tmp_path):
  features, payloads = made.small()
  paths = made.write(tmp_path, features, [payloads[:2], payloads[2:]])
  os.truncate(paths[1], 100)
  skipped = made.read(tmp_path, on_error="skip").skipped
  message = f"{paths[1]}: truncated record at byte 0: it ends at "
  for i, reason in enumerate(skipped):
    assert reason.startswith(message) and reason.endswith(f"(record {i} is lost)")
  assert len(skipped) == 3


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_nothing_but_bad_episodes_is_an_error(tmp_path, on_error):
  features, payloads = made.small()
  paths = made.write(tmp_path, features, [payloads])
  made.write_shard(paths[0], [b"?"] * 5)
  with pytest.raises(ValueError, match=f"{paths[0]}: record 0: malformed Example"):
    made.read(tmp_path, on_error=on_error)
  paths[0].unlink()
  with pytest.raises((ValueError, FileNotFoundError), match=str(paths[0])):
    made.read(tmp_path, on_error=on_error)


def test_cameras_whose_sizes_differ_are_no_reason_to_skip(tmp_path):
  """Which size is the right one, nobody knows: `image_size` says it."""
  features, payloads = made.small()
  made.write(tmp_path, features, [payloads[:2], made.small(size=(10, 16))[1]])
  with pytest.raises(ValueError, match="give image_size .config.data.image_size"):
    made.read(tmp_path, on_error="skip")
  episodes = made.read(tmp_path, on_error="skip", image_size=(12, 16))
  assert episodes.num_episodes == 7 and not episodes.skipped
  assert made.frames(episodes)["top"].shape == (19, 12, 16, 3)


def test_bad_arguments(tmp_path):
  features, payloads = made.small()
  made.write(tmp_path, features, [payloads])
  with pytest.raises(ValueError, match="on_error is 'ignore'; it must be 'raise' or 'skip'"):
    made.read(tmp_path, on_error="ignore")
  with pytest.raises(ValueError, match="there is no split 'test'; it has train"):
    made.read(tmp_path, "test")
  with pytest.raises(ValueError, match="no feature 'steps/reward'; expected one of the numeric"):
    made.read(tmp_path, standard=standardize.plain("reward"))
  with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
    made.read(tmp_path / "nowhere")
  made.edit_json(tmp_path / "dataset_info.json", fileFormat="riegeli")
  with pytest.raises(ValueError, match="fileFormat is 'riegeli'; it must be one of tfrecord, arr"):
    made.read(tmp_path)


def test_a_remote_dataset_is_read_where_it_is_copied_to(tmp_path, monkeypatch):
  from etils import epath

  features, payloads = made.small()
  remote = tmp_path / "remote" / "made" / "1.0.0"
  made.write(remote, features, {"train": [payloads[:2], payloads[2:]], "val": [payloads[:1]]})
  opened, real = [], epath.Path

  def open_path(path):
    opened.append(path)
    return real(tmp_path) / os.fspath(path).removeprefix("gs://")

  with monkeypatch.context() as patch:
    patch.setattr(epath, "Path", open_path)
    found = made.read("gs://remote/made", cache=tmp_path / "cache")
  assert opened == ["gs://remote/made"] and fetch.is_remote("gs://remote/made")
  assert made.contents(found) == made.contents(made.read(remote))
  places = {pathlib.Path(file.path).parent.parent for file in found.cameras["top"].records.files}
  assert places == {tmp_path / "cache" / "datasets"}


def test_files_of_many_shards_are_read_in_order(tmp_path):
  lengths = tuple(range(1, 41))
  features, payloads = made.small(lengths=lengths)
  for file_format in FORMATS:
    made.write(tmp_path / file_format, features, [[payload] for payload in payloads], file_format)
    episodes = rlds.read(tmp_path / file_format, standard=made.SMALL, progress=True)
    assert tuple(np.diff(episodes.starts_E)) == lengths
    made.assert_equals_tfds(episodes, payloads, features)
