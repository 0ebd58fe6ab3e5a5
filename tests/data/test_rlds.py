"""The RLDS reader against tensorflow_datasets' own decoding, and against broken directories."""

import functools
import json
import operator
import pathlib
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds

from oat_jax.data import rlds
from oat_jax.data import tfrecord

BRIDGE = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "bridge_dataset"
FIELDS = rlds.Fields("double", ("flag", "small", "obs/signed", "obs/scalar", "huge"), "text")
LENGTHS = (3, 1, 4, 2, 5)

STEPS = {
  "double": tfds.features.Tensor(shape=(3,), dtype=np.float64),
  "flag": tfds.features.Scalar(dtype=np.bool_),
  "small": tfds.features.Tensor(shape=(2, 2), dtype=np.uint8),
  "obs": tfds.features.FeaturesDict(
    {
      "signed": tfds.features.Tensor(shape=(2,), dtype=np.int32),
      "scalar": tfds.features.Scalar(dtype=np.float32),
    }
  ),
  "huge": tfds.features.Scalar(dtype=np.uint64),
  "text": tfds.features.Text(),
}
FEATURES = tfds.features.FeaturesDict(
  {
    "steps": tfds.features.Dataset(STEPS),
    "episode_metadata": tfds.features.FeaturesDict({"name": tfds.features.Text()}),
  }
)
UNREADABLE = tfds.features.FeaturesDict(
  {
    "steps": tfds.features.Dataset(
      {
        **STEPS,
        "ragged": tfds.features.Sequence(np.float32),
        "unshaped": tfds.features.Tensor(shape=(None, 2), dtype=np.float32),
        "packed": tfds.features.Tensor(shape=(3,), dtype=np.float32, encoding="zlib"),
      }
    ),
    "episode_metadata": tfds.features.FeaturesDict({"name": tfds.features.Text()}),
  }
)


def make_step(rng, task):
  return {
    "double": rng.normal(size=3),
    "flag": bool(rng.integers(2)),
    "small": rng.integers(0, 256, (2, 2), np.uint8),
    "obs": {
      "signed": rng.integers(-(2**31), 2**31, 2).astype(np.int32),
      "scalar": np.float32(rng.normal()),
    },
    "huge": np.uint64(2**63) + np.uint64(rng.integers(2**62)),
    "text": task,
  }


def make_payloads():
  """Returns serialised episodes of LENGTHS steps with tasks b, a, b, a, b and names 0 to 4."""
  rng = np.random.default_rng(0)
  payloads = []
  for e, length in enumerate(LENGTHS):
    steps = [make_step(rng, "ba"[e % 2]) for _ in range(length)]
    episode = {"steps": steps, "episode_metadata": {"name": f"name {e} é"}}
    payloads.append(FEATURES.serialize_example(episode))
  return payloads


def write_shard(path, payloads):
  with open(path, "wb") as file:
    for payload in payloads:
      length = struct.pack("<Q", len(payload))
      crcs = [struct.pack("<I", tfrecord.masked_crc(part)) for part in (length, payload)]
      file.write(length + crcs[0] + payload + crcs[1])


def write_dataset(directory, shards):
  """Writes a TFDS directory with one split "train"; returns the paths of its shards."""
  directory.mkdir(parents=True, exist_ok=True)
  FEATURES.save_config(directory)
  split = {"name": "train", "shardLengths": [str(len(shard)) for shard in shards]}
  info = {"name": "made", "fileFormat": "tfrecord", "splits": [split], "version": "1.0.0"}
  (directory / "dataset_info.json").write_text(json.dumps(info))
  paths = []
  for i, shard in enumerate(shards):
    paths.append(directory / f"made-train.tfrecord-{i:05d}-of-{len(shards):05d}")
    write_shard(paths[-1], shard)
  return paths


def edit_json(path, **changes):
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def made(tmp_path):
  payloads = make_payloads()
  write_dataset(tmp_path / "made" / "1.0.0", [payloads[:2], [], payloads[2:]])
  return tmp_path / "made"


def get(step, path):
  return functools.reduce(operator.getitem, path.split("/"), step)


def assert_equals_tfds(episodes, payloads, features, fields):
  """Compares every step with tfds's decoding."""
  assert episodes.num_episodes == len(payloads)
  for e, payload in enumerate(payloads):
    steps = list(features.deserialize_example_np(payload)["steps"])
    first, last = episodes.starts_E[e : e + 2]
    assert last - first == len(steps)
    for i, step in enumerate(steps):
      state = [np.asarray(get(step, name), np.float32).ravel() for name in fields.state]
      action = np.asarray(get(step, fields.action), np.float32)
      np.testing.assert_array_equal(episodes.actions_LA[first + i], action)
      np.testing.assert_array_equal(episodes.states_LS[first + i], np.concatenate(state))
      assert episodes.task_names[episodes.tasks_E[e]] == get(step, fields.task).decode()


@pytest.mark.skipif(not BRIDGE.exists(), reason=f"the shared data is not at {BRIDGE}")
@pytest.mark.parametrize("split", ["train", "val"])
def test_bridge_equals_tensorflow_datasets(split):
  fields = rlds.Fields(
    "action", ("observation/state", "language_embedding", "is_first"), "language_instruction"
  )
  episodes = rlds.read(BRIDGE, split, fields)
  builder = tfds.builder_from_directory(BRIDGE / "1.0.0")
  name = builder.info.splits[split].filenames[0]
  file = tfrecord.TFRecordFile(BRIDGE / "1.0.0" / name)
  payloads = [bytes(file[i]) for i in range(len(file))]
  assert_equals_tfds(episodes, payloads, builder.info.features, fields)
  assert len(episodes.actions_LA) == 250 and len(episodes.task_names) == 4


def test_every_numeric_kind_equals_tensorflow_datasets(made):
  episodes = rlds.read(made, fields=FIELDS)
  assert_equals_tfds(episodes, make_payloads(), FEATURES, FIELDS)
  assert episodes.starts_E.tolist() == [0, 3, 4, 8, 10, 15]
  assert episodes.tasks_E.tolist() == [1, 0, 1, 0, 1] and episodes.task_names == ("a", "b")
  dtypes = [array.dtype for array in episodes[:-1]]
  assert dtypes == [np.float32, np.float32, np.int64, np.int32]
  assert episodes.states_LS.shape == (15, 1 + 4 + 2 + 1 + 1)
  assert episodes.states_LS.max() > 2**63


def test_task_of_the_episode_metadata_or_none(made):
  fields = rlds.Fields("double", ("flag",), "episode_metadata/name")
  episodes = rlds.read(made, fields=fields)
  assert episodes.task_names == tuple(f"name {e} é" for e in range(5))
  assert rlds.read(made, fields=fields._replace(task="")).task_names == ("",)


def test_fingerprint_changes_with_any_content(made):
  a, b = (rlds.read(made, fields=FIELDS) for _ in range(2))
  assert rlds.fingerprint(a) == rlds.fingerprint(b)
  others = [
    b._replace(actions_LA=b.actions_LA + 1),
    b._replace(states_LS=b.states_LS[:, ::-1]),
    b._replace(starts_E=b.starts_E[:-1]),
    b._replace(tasks_E=1 - b.tasks_E),
    b._replace(task_names=("a", "c")),
    b._replace(actions_LA=b.actions_LA.reshape(-1, 1)),
  ]
  assert len({rlds.fingerprint(episodes) for episodes in [a, *others]}) == 7


def test_the_newest_version_is_found(tmp_path):
  for version in ("1.0.0", "9.0.0", "10.0.0", "11.0.0.incompleteABC"):
    write_dataset(tmp_path / version, [])
  assert rlds.find_directory(tmp_path) == tmp_path / "10.0.0"
  assert rlds.find_directory(tmp_path / "1.0.0") == tmp_path / "1.0.0"


def test_directories_that_hold_no_dataset(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere: no such local directory"):
    rlds.find_directory(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="directory is empty"):
    rlds.find_directory(tmp_path)
  (tmp_path / "README.md").write_text("")
  with pytest.raises(ValueError, match="not a TFDS directory.* holds README.md"):
    rlds.find_directory(tmp_path)
  write_dataset(tmp_path / "1.0.0", [])
  edit_json(tmp_path / "1.0.0" / "dataset_info.json", fileFormat="array_record")
  with pytest.raises(ValueError, match="fileFormat is 'array_record'; only 'tfrecord' is read"):
    rlds.find_directory(tmp_path)
  (tmp_path / "1.0.0" / "dataset_info.json").write_text("[]")
  with pytest.raises(ValueError, match="expected a JSON object, found list"):
    rlds.find_directory(tmp_path)
  (tmp_path / "1.0.0" / "dataset_info.json").write_text("{")
  with pytest.raises(ValueError, match="dataset_info.json: not a JSON file"):
    rlds.find_directory(tmp_path)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"action": "doubel"}, "no feature 'steps/doubel'.*: double, flag, huge, obs/scalar, "),
    ({"action": "text"}, "'steps/text' is text; expected one of the numeric"),
    ({"action": "packed"}, "encoding 'zlib'"),
    ({"action": "ragged"}, "'steps/ragged' is of class Sequence"),
    ({"action": "unshaped"}, r"without fixed shape, \[-1, 2\]"),
    ({"state": ("flag", "obs")}, "no feature 'steps/obs'"),
    ({"state": ()}, "Fields.state names no feature"),
    ({"task": "instruction"}, "text features: episode_metadata/name, text"),
    ({"task": "flag"}, "'steps/flag' is numeric"),
  ],
)
def test_unknown_fields_list_those_that_exist(made, changes, message):
  UNREADABLE.save_config(made / "1.0.0")
  with pytest.raises(ValueError, match=message):
    rlds.read(made, fields=FIELDS._replace(**changes))


def test_splits_and_shards_are_checked(made):
  with pytest.raises(ValueError, match="no split 'val'; it has train"):
    rlds.read(made, "val", FIELDS)
  directory = made / "1.0.0"
  shards = sorted(directory.glob("*.tfrecord-*"))
  write_shard(shards[0], make_payloads()[:1])
  with pytest.raises(ValueError, match="00000-of-00003: holds 1 records.* says 2"):
    rlds.read(made, fields=FIELDS)
  shards[1].unlink()
  with pytest.raises(FileNotFoundError, match="00001-of-00003: shard 1 of 3 of split 'train'"):
    rlds.read(made, fields=FIELDS)
  edit_json(directory / "dataset_info.json", splits=[{"name": "train"}])
  with pytest.raises(ValueError, match="split 'train' holds no records"):
    rlds.read(made, fields=FIELDS)
  edit_json(directory / "dataset_info.json", splits=[["train"]])
  with pytest.raises(ValueError, match="not the dataset_info.json of TFDS"):
    rlds.read(made, fields=FIELDS)
  (directory / "features.json").write_text('{"type": "FeaturesDict", "content": []}')
  with pytest.raises(ValueError, match="not the features.json"):
    rlds.read(made, fields=FIELDS)


def test_filepath_template_is_followed(made):
  directory = made / "1.0.0"
  for path in directory.glob("*.tfrecord-*"):
    path.rename(directory / path.name.split("-")[2].replace("0000", "train_of_made_0000"))
  info = json.loads((directory / "dataset_info.json").read_text())
  info["splits"][0]["filepathTemplate"] = "{SPLIT}_of_{DATASET}_{SHARD_INDEX}"
  edit_json(directory / "dataset_info.json", **info)
  assert rlds.read(made, fields=FIELDS).num_episodes == 5
  info["splits"][0]["filepathTemplate"] = "{SHARD}"
  edit_json(directory / "dataset_info.json", **info)
  with pytest.raises(ValueError, match="'{SHARD}' may use DATASET, SPLIT"):
    rlds.read(made, fields=FIELDS)


def break_episode(payload, change):
  example = tfds.core.example_serializer.tf_example_pb2.Example.FromString(payload)
  change(example.features.feature)
  return example.SerializeToString()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda f: f["steps/double"].float_list.value.__setitem__(7, float("nan")),
      "'steps/double' is nan at step 2, dimension 1",
    ),
    (
      lambda f: f["steps/obs/scalar"].float_list.value.__setitem__(1, float("inf")),
      "'steps/obs/scalar' is inf at step 1, dimension 0",
    ),
    (lambda f: f["steps/flag"].int64_list.value.pop(), "disagree.*'steps/flag': 3"),
    (lambda f: f["steps/text"].bytes_list.value.pop(), "disagree.*'steps/text': 3"),
    (lambda f: f["steps/double"].float_list.value.pop(), "holds 11 values, no multiple of 3"),
    (lambda f: f.__delitem__("steps/double"), "the record has no feature 'steps/double'"),
    (
      lambda f: f["steps/text"].bytes_list.value.__setitem__(0, b"other"),
      "'steps/text' must name one task per episode",
    ),
    (lambda f: f["steps/flag"].bytes_list.value.append(b"1"), "holds bytes"),
    (lambda f: f["steps/text"].int64_list.value.append(1), "holds numbers"),
    (lambda f: [v.Clear() for v in f.values()], "the episode has no steps"),
  ],
)
def test_broken_episodes_are_named(tmp_path, change, message):
  payloads = make_payloads()
  payloads[2] = break_episode(payloads[2], change)
  write_dataset(tmp_path, [payloads[:1], payloads[1:]])
  with pytest.raises(ValueError, match=f"00001-of-00002: record 1: .*{message}"):
    rlds.read(tmp_path, fields=FIELDS)


def test_bytes_that_are_no_example_are_named(tmp_path):
  write_dataset(tmp_path, [[b"not an example"]])
  with pytest.raises(ValueError, match="00000-of-00001: record 0: .*unexpected tag"):
    rlds.read(tmp_path, fields=FIELDS)
