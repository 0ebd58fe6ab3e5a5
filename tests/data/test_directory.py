"""TFDS's metadata: features, splits and parts of them against TFDS's own; what is not TFDS's."""

import json

import made
import numpy as np
import pytest

from oat_jax.data import directory

F, tfds = made.F, made.tfds
PARTS = (
  "train train[:10%] train[2:5] train[-1:] train[3:] train[:-4] train[50%:] train[1:2] "
  "train[-3:-1] val+train train[:3]+val[1:] train[5:9]+train[:2] train[:33%]+train[33%:]"
).split()


@pytest.fixture
def small(tmp_path):
  features, payloads = made.small()
  made.write(tmp_path, features, {"train": [payloads[:2], [], payloads[2:]], "val": [payloads[:1]]})
  return tmp_path


class Made(tfds.core.GeneratorBasedBuilder):
  """11 and 4 episodes, which say in their actions who they are."""

  name = "made"
  VERSION = tfds.core.Version("1.0.0")

  @classmethod
  def get_metadata(cls):  # a file of tests has no directory of its own for README and citation
    return tfds.core.dataset_metadata.DatasetMetadata(description="", citation="", tags=[])

  def _info(self):
    steps = {"action": F.Tensor(shape=(1,), dtype=np.float32), "observation": {"state": np.int64}}
    features = F.FeaturesDict({"steps": F.Dataset(steps)})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(0, 11), "val": self._generate_examples(100, 4)}

  def _generate_examples(self, first, count):
    for i in range(first, first + count):
      step = {"action": np.array([i], np.float32), "observation": {"state": -i}}
      yield i, {"steps": [step] * (1 + i % 3)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """What TFDS itself wrote: three ArrayRecord shards a split."""
  builder = Made(data_dir=tmp_path_factory.mktemp("built"), file_format="array_record")
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
  return tfds.builder_from_directory(builder.data_dir)


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_splits_are_those_of_tfds(built, part):
  expected = [
    (float(next(iter(episode["steps"]))["action"][0]), len(list(episode["steps"])))
    for episode in built.as_data_source(part)
  ]
  episodes = made.read(built.data_dir, part, made.standardize.plain())
  firsts_E = episodes.actions_LA[episodes.starts_E[:-1], 0]
  assert list(zip(firsts_E.tolist(), np.diff(episodes.starts_E).tolist())) == expected
  np.testing.assert_array_equal(episodes.states_LS, -episodes.actions_LA)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_parts_take_records_of_shards(tmp_path, file_format):
  features, payloads = made.small()
  made.write(tmp_path, features, [payloads[:2], [], payloads[2:]], file_format)
  whole = made.contents(made.read(tmp_path))
  assert len(whole) == 5
  assert made.contents(made.read(tmp_path, "train[1:4]")) == whole[1:4]
  assert made.contents(made.read(tmp_path, "train[-1:]+train[:1]")) == [whole[4], whole[0]]


WRONG_PARTS = (
  "all[:1] train[:10% train[::2] train[x] train[20:] train[:1000%] train+ + [1:2] test[:1]"
)


@pytest.mark.parametrize("part", WRONG_PARTS.split())
def test_parts_that_make_no_sense_list_the_splits(small, part):
  with pytest.raises(ValueError, match=r"(?s)there is no split '.*'; it has train, val, and parts"):
    directory.open_directory(small).shards(part)


@pytest.mark.parametrize(
  "part", ["train[4:3]", "train[4:2]", "train[5:2]", "train[2:1]", "val[1:0]"]
)
def test_parts_that_end_before_they_begin_hold_no_records(small, part):
  found = directory.open_directory(small)
  with pytest.raises(ValueError, match="split '.*' holds no records"):
    found.shards(part)
  assert found.shards(f"{part}+train[:1]") == found.shards("train[:1]")


@pytest.mark.parametrize("part", ["train[:1]+train[:1]", "train[1:4]+val+train[3:]", "train+train"])
def test_parts_that_overlap_are_refused(small, part):
  message = "dataset_info.json: the parts of split '.*' overlap: record . of .*-of-00003 would be "
  with pytest.raises(ValueError, match=message):
    directory.open_directory(small).shards(part)


@pytest.mark.parametrize("lengths", [[None], 5, ["abc"]])
def test_lengths_that_cannot_be_counted_are_named(small, lengths):
  entry = {"name": "train", "shardLengths": lengths}
  made.edit_json(small / "dataset_info.json", splits=[entry])
  with pytest.raises(ValueError, match="dataset_info.json: shardLengths of split 'train' must be"):
    directory.open_directory(small).num_records("train")


def test_splits_that_are_not_there_list_those_that_are(small):
  with pytest.raises(
    ValueError, match="dataset_info.json: there is no split 'test'; it has train, va"
  ):
    directory.open_directory(small).shards("test")
  with pytest.raises(ValueError, match=r"split 'train\[3:3\]' holds no records"):
    directory.open_directory(small).shards("train[3:3]")
  made.edit_json(small / "dataset_info.json", splits=[{"name": "train"}])
  with pytest.raises(ValueError, match="split 'train' holds no records"):
    directory.open_directory(small).shards("train")


def test_shards_of_a_split(small):
  found = directory.open_directory(small)
  shards = found.shards("train")
  assert [(s.path.name, *s[1:]) for s in shards] == [
    ("made-train.tfrecord-00000-of-00003", 2, 0, 2),
    ("made-train.tfrecord-00002-of-00003", 3, 0, 3),
  ]
  assert found.num_records("train") == 5 and found.num_records("val") == 1
  assert (found.name, found.version, found.file_format) == ("made", "1.0.0", "tfrecord")


def test_a_shard_that_is_said_to_be_empty_is_not_left_out_silently(small):
  entry = {"name": "train", "shardLengths": ["0", "0", "3"]}
  made.edit_json(small / "dataset_info.json", splits=[entry])
  with pytest.raises(ValueError, match="dataset_info.json: .*00000-of-00003 is empty, which it is"):
    directory.open_directory(small).shards("train[:1]")


def test_every_kind_of_feature_is_known(tmp_path):
  kinds = made.every_kind()
  steps = {name: feature for name, (feature, _) in kinds.items()}
  steps |= {
    "odd/ragged": F.Sequence(np.float32),
    "odd/unshaped": F.Tensor(shape=(None, 2), dtype=np.float32),
    "odd/texts": F.Tensor(shape=(2,), dtype=np.str_),
    "odd/video": F.Sequence(F.Image(shape=(4, 4, 3))),
    "odd/dict": F.Sequence({"a": np.float32}),
    "odd/words": F.Translation(["de", "en"]),
  }
  made.write(tmp_path, made.rlds_features(steps), [])
  found = directory.open_directory(tmp_path).features
  for name, (feature, _) in kinds.items():
    leaf = found[f"steps/{name}"]
    kind = "text" if name == "text" else "image" if name.startswith("images/") else "numeric"
    assert (leaf.name, leaf.kind) == (f"steps/{name}", kind)
    assert leaf.shape == tuple(feature.shape)
    if kind != "text":
      assert np.dtype(leaf.dtype) == feature.np_dtype
  assert found["episode_metadata/name"].kind == "text"
  assert found["episode_metadata/number"].kind == "numeric"
  odd = {
    name.removeprefix("steps/odd/"): leaf.kind for name, leaf in found.items() if "odd" in name
  }
  assert odd == {
    "ragged": "a sequence of no fixed length",
    "unshaped": "a tensor without fixed shape, [None, 2]",
    "texts": "text[2], not one text",
    "video": "a sequence of no fixed length",
    "dict": "a sequence of no fixed length",
    "words": "of class Translation",
  }


@pytest.mark.parametrize(
  ("name", "kind", "message"),
  [
    ("actoin", "numeric", r"no feature 'steps/actoin'.*numeric features: action, observation/st"),
    ("text", "numeric", "'steps/text' is text; expected one of the numeric"),
    ("observation", "numeric", "no feature 'steps/observation'"),
    ("instruction", "text", "text features: episode_metadata/name, text"),
    ("action", "text", "'steps/action' is numeric"),
    ("episode_metadata/task", "text", "no feature 'episode_metadata/task'"),
    ("observation/state", "image", "'steps/observation/state' is numeric; .*: observation/top"),
  ],
)
def test_unknown_features_list_those_that_exist(small, name, kind, message):
  with pytest.raises(ValueError, match=f"features.json: .*{message}"):
    directory.open_directory(small).find(name, kind)


def test_the_newest_version_is_found(tmp_path):
  for version in ("1.0.0", "9.0.0", "10.0.0", "11.0.0.incompleteABC"):
    made.write(tmp_path / version, made.small()[0], [])
  assert directory.open_directory(tmp_path).path == tmp_path / "10.0.0"
  assert directory.open_directory(tmp_path / "1.0.0").path == tmp_path / "1.0.0"


def test_directories_that_hold_no_dataset(tmp_path):
  open_directory = directory.open_directory
  with pytest.raises(FileNotFoundError, match="nowhere: no such directory; expected an RLDS"):
    open_directory(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="directory is empty"):
    open_directory(tmp_path)
  (tmp_path / "README.md").write_text("")
  with pytest.raises(FileNotFoundError, match="no such directory"):
    open_directory(tmp_path / "README.md")
  with pytest.raises(ValueError, match="not a TFDS directory.* holds README.md"):
    open_directory(tmp_path)
  (tmp_path / "1.0.0").mkdir()
  with pytest.raises(
    ValueError, match="1.0.0: not a TFDS directory, which holds features.json and"
  ):
    open_directory(tmp_path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"fileFormat": "riegeli"},
      "fileFormat is 'riegeli'; it must be one of tfrecord, array_record",
    ),
    ({"fileFormat": None}, "fileFormat is 'None'"),
    ({"splits": None}, "not the dataset_info.json of TFDS"),
    ({"splits": [["train"]]}, "not the dataset_info.json of TFDS"),
    ({"splits": [{"name": 3}]}, "3 cannot name a dataset, version or split"),
    ({"name": "../made"}, "'../made' cannot name"),
    ({"name": None}, "None cannot name"),
    ({"version": 1.0}, "1.0 cannot name"),
  ],
)
def test_wrong_info_is_named(small, change, message):
  made.edit_json(small / "dataset_info.json", **change)
  with pytest.raises(ValueError, match=f"dataset_info.json: .*{message}"):
    directory.open_directory(small)


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    ({"shardLengths": [-2]}, "must be a list of whole numbers"),
    ({"shardLengths": ["many"]}, "must be a list of whole numbers"),
    ({"shardLengths": ["2", False]}, "must be a list of whole numbers"),
    ({"shardLengths": [2.5]}, "must be a list of whole numbers"),
    ({"shardLengths": "25"}, "must be a list of whole numbers.*found 25"),
    ({"shardLengths": [float("inf")]}, "must be a list of whole numbers"),
    ({"shardLengths": None}, "must be a list of whole numbers"),
    ({"shardLengths": ["1000000000000"]}, "whole numbers below 10000000: found"),
    ({"filepathTemplate": "{SHARD}"}, "'{SHARD}' may use DATASET, SPLIT, FILEFORMAT, SHARD_INDEX"),
    ({"filepathTemplate": "{DATASET.a}"}, "may use DATASET"),
    ({"filepathTemplate": "{}"}, "may use DATASET"),
    ({"filepathTemplate": 3}, "filepathTemplate 3 may use DATASET"),
    ({"filepathTemplate": "/etc/{SPLIT}"}, "may use DATASET.*, and lead nowhere else"),
    ({"filepathTemplate": "\0"}, "may use DATASET"),
    ({"filepathTemplate": "../{SPLIT}"}, "may use DATASET.*, and lead nowhere else"),
  ],
)
def test_wrong_splits_are_named(small, entry, message):
  entry = {"name": "train", "shardLengths": ["5"]} | entry
  made.edit_json(small / "dataset_info.json", splits=[entry])
  with pytest.raises(ValueError, match=f"dataset_info.json: .*{message}"):
    directory.open_directory(small).shards("train")


@pytest.mark.parametrize(
  "text", ["{", "[]", "null", "3", "", '"a"', "\xff", '{"type": "FeaturesDict"}']
)
def test_files_that_are_no_metadata_are_named(small, text):
  for name in ("features.json", "dataset_info.json"):
    before = (small / name).read_bytes()
    (small / name).write_text(text, "latin-1")
    with pytest.raises(
      ValueError, match=f"{name}: (not a JSON file|expected a JSON|not the {name})"
    ):
      directory.open_directory(small)
    (small / name).write_bytes(before)


@pytest.mark.parametrize(
  ("tensor", "kind"),
  [
    ({"dtype": "flaot32"}, "a tensor of dtype flaot32 with encoding none"),
    ({"dtype": 7}, "a tensor of dtype 7 with encoding none"),
    ({"dtype": "complex64"}, "a tensor of dtype complex64 with encoding none"),
    ({"encoding": "gzip"}, "a tensor of dtype float32 with encoding gzip"),
  ],
)
def test_tensors_that_cannot_be_read_say_why(small, tensor, kind):
  path = small / "features.json"
  content = json.loads(path.read_text())
  steps = content["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
  steps["features"]["action"]["tensor"] |= tensor
  path.write_text(json.dumps(content))
  found = directory.open_directory(small)
  assert found.features["steps/action"].kind == kind
  with pytest.raises(ValueError, match=f"'steps/action' is {kind}; expected one of the numeric"):
    found.find("action", "numeric")


def test_templates_are_followed(small):
  for path in small.glob("made-train*"):
    path.rename(small / f"train_of_made_{path.name[-14:-9]}")
  info = json.loads((small / "dataset_info.json").read_text())
  info["splits"][0]["filepathTemplate"] = "{SPLIT}_of_{DATASET}_{SHARD_INDEX}"
  made.edit_json(small / "dataset_info.json", **info)
  assert made.read(small).num_episodes == 5
  assert made.read(small, "train[:2]+val").num_episodes == 3


def test_metadata_without_a_template_or_format_mean_the_defaults(small):
  info = json.loads((small / "dataset_info.json").read_text())
  del info["fileFormat"], info["splits"][0]["filepathTemplate"]
  (small / "dataset_info.json").write_text(json.dumps(info))
  assert made.read(small).num_episodes == 5
