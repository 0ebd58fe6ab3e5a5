"""The records of array_record shards come out as they went in."""

import json

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `train` is not installed")
writer = pytest.importorskip("array_record.python.array_record_module")

from oat_jax.data import convert  # noqa: E402
from oat_jax.data import tfrecord  # noqa: E402
from oat_jax.data import write  # noqa: E402

F = tfds.features
FEATURES = F.FeaturesDict(
  {
    "steps": F.Dataset({"label": F.ClassLabel(names=["left", "right"]), "x": np.int32}),
    "id": F.Text(),
  }
)
SPLITS = {"train": [3, 2], "test": [4]}


def make(path, splits=SPLITS):
  """Writes what tfds writes with file_format="array_record"; returns {split: records}."""
  path.mkdir(parents=True)
  FEATURES.save_config(str(path))
  records, entries = {}, []
  for split, lengths in splits.items():
    records[split] = []
    for i, length in enumerate(lengths):
      file = path / f"thing-{split}.array_record-{i:05d}-of-{len(lengths):05d}"
      shard = writer.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
      for j in range(length):
        steps = [{"label": k % 2, "x": np.int32(k)} for k in range(20 + i + j)]
        records[split].append(write.serialize(FEATURES, {"steps": steps, "id": f"{split}{i}{j}"}))
        shard.write(records[split][-1])
      shard.close()
    entries.append(
      {"name": split, "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
       "numBytes": str(sum(map(len, records[split]))), "shardLengths": list(map(str, lengths))}
    )  # fmt: skip
  info = {"name": "thing", "version": "2.1.0", "fileFormat": "array_record", "splits": entries}
  (path / "dataset_info.json").write_text(json.dumps(info))
  return records


def run(path, out, **kwargs):
  return convert.convert("array_record", path, out, progress=False, **kwargs)


def read(out):
  info = tfds.builder_from_directory(str(out)).info
  return {
    split: [bytes(r) for path in entry.filepaths for r in tfrecord.TFRecordFile(path)]
    for split, entry in info.splits.items()
  }


def test_payloads_and_features_are_unchanged(tmp_path):
  records = make(tmp_path / "thing" / "2.1.0")
  report = run(tmp_path / "thing", tmp_path / "out", shard_bytes=300)
  assert report["request"]["name"] == "thing"
  assert report["splits"]["train"] == {"episodes": 5, "skipped": 0}
  assert read(tmp_path / "out") == records
  assert len(list((tmp_path / "out").glob("thing-train.tfrecord-*"))) == 2
  names = ("features.json", "steps-label.labels.txt")
  for name in names:
    made = (tmp_path / "out" / name).read_bytes()
    assert made == (tmp_path / "thing" / "2.1.0" / name).read_bytes()
  builder = tfds.builder_from_directory(str(tmp_path / "out"))
  assert builder.info.features["steps"]["label"].names == ["left", "right"]
  episode = builder.info.features.deserialize_example_np(records["test"][3])
  assert [int(s["x"]) for s in episode["steps"]] == list(range(23))


def test_a_truncated_shard_is_named_or_left_out(tmp_path):
  records = make(tmp_path / "in")
  path = tmp_path / "in" / "thing-train.array_record-00001-of-00002"
  path.write_bytes(path.read_bytes()[:-50])
  with pytest.raises(ValueError, match=f"{path}: (holds 0 records|not an ArrayRecord file)"):
    run(tmp_path / "in", tmp_path / "out")
  report = run(tmp_path / "in", tmp_path / "out", on_error="skip")
  assert [s["file"] for s in report["skipped"]] == [path.name]
  assert read(tmp_path / "out") == records | {"train": records["train"][:3]}


def test_a_corrupt_record_is_named_or_left_out(tmp_path):
  records = make(tmp_path / "in")
  path = tmp_path / "in" / "thing-test.array_record-00000-of-00001"
  data = bytearray(path.read_bytes())
  where = data.find(b"test01")
  data[where] ^= 255
  path.write_bytes(data)
  with pytest.raises(ValueError, match="episode 1"):
    run(tmp_path / "in", tmp_path / "out")
  report = run(tmp_path / "in", tmp_path / "out", on_error="skip")
  assert [s["episode"] for s in report["skipped"]] == ["1"]
  assert read(tmp_path / "out")["test"] == records["test"][:1] + records["test"][2:]


def test_what_is_no_array_record_directory_is_said(tmp_path):
  make(tmp_path / "in")
  info = tmp_path / "in" / "dataset_info.json"
  content = json.loads(info.read_text())
  with pytest.raises(ValueError, match="is a file; give the directory that holds dataset_info"):
    run(info, tmp_path / "out")
  content["splits"][1]["shardLengths"] = ["5"]
  info.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="holds 4 records, but dataset_info.json says 5"):
    run(tmp_path / "in", tmp_path / "out")
  info.write_text(json.dumps(content | {"fileFormat": "tfrecord"}))
  with pytest.raises(ValueError, match="holds tfrecord files, not array_record files"):
    run(tmp_path / "in", tmp_path / "out")
