"""What the writer writes, tensorflow-datasets reads."""

import json
import os
import struct

import cv2
import google_crc32c
import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `train` is not installed")

from oat_jax.data import tfrecord  # noqa: E402
from oat_jax.data import write  # noqa: E402

F = tfds.features


def features(image=False):
  observation = {
    "state": F.Tensor(shape=(5,), dtype=np.float32),
    "matrix": F.Tensor(shape=(2, 3), dtype=np.int32),
  }
  if image:
    observation["image"] = F.Image(shape=(24, 32, 3), encoding_format="jpeg")
  return write.rlds_features(
    observation,
    4,
    {"name": F.Text(), "seed": np.int64, "flags": F.Tensor(shape=(3,), dtype=np.bool_)},
  )


def make_episode(seed, length, image=False):
  rng = np.random.default_rng(seed)
  steps = []
  for i in range(length):
    observation = {
      "state": rng.normal(size=5).astype(np.float32),
      "matrix": rng.integers(-(2**31), 2**31, (2, 3), np.int32),
    }
    if image:
      ramp = np.linspace(0, 200, 32)[None, :, None] * np.array([1, 0.5, 0]) + [0, 0, 50]
      observation["image"] = np.broadcast_to(ramp, (24, 32, 3)).astype(np.uint8)
    steps.append(
      {
        "observation": observation,
        "action": rng.normal(size=4).astype(np.float32),
        "language_instruction": "öffne die Tür",
        "is_first": i == 0,
        "is_last": i == length - 1,
        "is_terminal": False,
        "reward": np.float32(rng.normal()),
        "discount": np.float32(1),
      }
    )
  metadata = {
    "name": f"e{seed}",
    "seed": np.int64(-(2**62) + seed),
    "flags": np.array([1, 0, 1], bool),
  }
  return {"steps": steps, "episode_metadata": metadata}


def records(path):
  """Reads TFRecord by its definition, checksums included."""

  def check(data, crc):
    value = google_crc32c.value(data)
    assert struct.unpack("<I", crc)[0] == ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF

  data, at = path.read_bytes(), 0
  while at < len(data):
    header = data[at : at + 8]
    check(header, data[at + 8 : at + 12])
    end = at + 12 + struct.unpack("<Q", header)[0]
    check(data[at + 12 : end], data[end : end + 4])
    yield data[at + 12 : end]
    at = end + 4


def assert_same(got, want):
  if isinstance(want, dict):
    assert got.keys() == want.keys()
    for name in want:
      assert_same(got[name], want[name])
  elif isinstance(want, list):
    for a, b in zip(list(got), want, strict=True):
      assert_same(a, b)
  elif isinstance(want, str):
    assert got.decode() == want
  else:
    assert np.asarray(got).dtype == np.asarray(want).dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shard_bytes, shards", [(1 << 20, 1), (1, 6), (3000, None)])
def test_episodes_come_back_through_tensorflow_datasets(tmp_path, shard_bytes, shards):
  out = tmp_path / "new" / "data"
  episodes = [make_episode(i, length) for i, length in enumerate([1, 7, 20, 3, 3, 9])]
  assert write.write(out, features(), iter(episodes), name="made", shard_bytes=shard_bytes) == 6
  assert os.listdir(tmp_path / "new") == ["data"]
  builder = tfds.builder_from_directory(str(out))
  split = builder.info.splits["train"]
  assert builder.info.full_name == "made/1.0.0" and split.num_examples == 6
  files = sorted(out.glob("made-train.tfrecord-*"))
  assert [path.name for path in files] == sorted(split.filenames)
  assert shards in (None, len(files)) and split.num_shards == len(files)
  assert [sum(1 for _ in records(path)) for path in files] == split.shard_lengths
  assert sum(len(r) for path in files for r in records(path)) == split.num_bytes
  stored = [builder.info.features.deserialize_example_np(r) for p in files for r in records(p)]
  assert_same(stored, episodes)


def test_records_made_elsewhere_give_the_same_files(tmp_path):
  episodes = [make_episode(i, 4) for i in range(3)]
  write.write(tmp_path / "a", features(), episodes, name="made")
  made = [write.serialize(features(), episode) for episode in episodes]
  write.write(tmp_path / "b", features(), made, name="made")
  for path in (tmp_path / "a").iterdir():
    assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_images_keep_their_colours(tmp_path):
  episode = make_episode(0, 2, image=True)
  record = write.serialize(features(image=True), episode)
  steps = list(features(image=True).deserialize_example_np(record)["steps"])
  for got, want in zip(steps, episode["steps"], strict=True):
    error = got["observation"]["image"].astype(int) - want["observation"]["image"]
    assert np.abs(error).mean() < 3


def test_png_loses_nothing_and_encoded_images_stay_as_they_are(tmp_path):
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (2, 24, 32, 3), np.uint8)
  grey = rng.integers(0, 256, (24, 32, 1), np.uint8)
  made = F.FeaturesDict(
    {
      "png": F.Image(shape=(24, 32, 3), encoding_format="png"),
      "grey": F.Image(shape=(24, 32, 1), encoding_format="png"),
      "jpeg": F.Image(shape=(24, 32, 3), encoding_format="jpeg"),
      "wide": F.Image(shape=(None, None, 3), encoding_format="png"),
    }
  )
  parameters = (cv2.IMWRITE_JPEG_QUALITY, 40)
  jpeg = cv2.imencode(".jpg", pictures[1][..., ::-1], parameters)[1].tobytes()
  episode = {"png": pictures[0][:, ::-1], "grey": grey, "jpeg": jpeg, "wide": pictures[1]}
  record = write.serialize(made, episode)
  got = made.deserialize_example_np(record)
  np.testing.assert_array_equal(got["png"], pictures[0][:, ::-1])
  np.testing.assert_array_equal(got["grey"], grey)
  np.testing.assert_array_equal(got["wide"], pictures[1])
  spans = tfrecord.parse_example(record)
  assert tfrecord.bytes_(record, *spans["jpeg"][1:]) == [jpeg]
  for bad, words in {
    jpeg[:2]: "are no jpeg image",
    b"": "are no jpeg image",
    jpeg[:60]: "are no jpeg image",
    cv2.imencode(".png", pictures[0])[1].tobytes(): "are no jpeg image",
    cv2.imencode(".jpg", pictures[0, :20])[1].tobytes(): r"uint8\[20, 32, 3\]; the features say",
    cv2.imencode(".jpg", grey)[1].tobytes(): r"uint8\[24, 32, 1\]; the features say",
  }.items():
    with pytest.raises(ValueError, match=f"'/jpeg' is .*{words}"):
      write.serialize(made, episode | {"jpeg": bad})


def test_nothing_half_written_remains(tmp_path):
  def episodes():
    yield make_episode(0, 3)
    raise OSError(28, "No space left on device")

  with pytest.raises(OSError, match="No space.*a.writing"):
    write.write(tmp_path / "a", features(), episodes(), name="made")
  assert not os.listdir(tmp_path)
  killed = tmp_path / "a.writing"
  killed.mkdir()
  (killed / "0.shard").write_bytes(b"half")
  write.write(tmp_path / "a", features(), [make_episode(0, 3)], name="made")
  assert os.listdir(tmp_path) == ["a"]
  info = json.loads((tmp_path / "a" / "dataset_info.json").read_text())
  assert info["splits"][0]["shardLengths"] == ["1"]


def test_bad_input_is_named(tmp_path):
  def written(*episodes, name="made"):
    write.write(tmp_path / "a", features(), episodes, name=name)

  with pytest.raises(ValueError, match="no episodes"):
    written()
  with pytest.raises(ValueError, match="dataset name 'My/Data'"):
    written(make_episode(0, 1), name="My/Data")
  wide = make_episode(0, 3)
  wide["steps"][1]["action"] = np.zeros(7, np.float32)
  with pytest.raises(ValueError, match=r"/steps\[1\]/action' is float32\[7\].*float32\[4\]"):
    written(wide)
  kind = make_episode(0, 3)
  kind["steps"][0]["observation"]["matrix"] = np.zeros((2, 3), np.float32)
  with pytest.raises(ValueError, match=r"/observation/matrix' is float32\[2, 3\].*int32"):
    written(kind)
  missing = make_episode(0, 3)
  del missing["steps"][2]["observation"]["state"]
  with pytest.raises(ValueError, match=r"/steps\[2\]/observation' has \['matrix'\]"):
    written(missing)
  assert not os.listdir(tmp_path)
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "mine").write_text("")
  with pytest.raises(FileExistsError, match="not empty"):
    written(make_episode(0, 1))
