"""Small RLDS directories of every feature kind, their damage, and tensorflow_datasets as oracle."""

import functools
import hashlib
import json
import operator
import pathlib
import struct
from unittest import mock

import cv2
import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `train` is not installed")

from array_record.python import array_record_module  # noqa: E402
from tensorflow_datasets.core import example_serializer  # noqa: E402

from oat_jax.data import directory as directory_lib  # noqa: E402
from oat_jax.data import episode  # noqa: E402
from oat_jax.data import records  # noqa: E402
from oat_jax.data import rlds  # noqa: E402
from oat_jax.data import standardize  # noqa: E402
from oat_jax.data import tfrecord  # noqa: E402

F = tfds.features
Example = example_serializer.tf_example_pb2.Example
BRIDGE = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "bridge_dataset"
BRIDGE_STANDARD = standardize.plain(
  state=("observation/state", "language_embedding", "is_first", "reward"),
  task="language_instruction",
  cameras=[(f"{i}", f"observation/image_{i}") for i in range(4)],
)

LENGTHS = (3, 1, 4, 2, 5)
DTYPES = tuple("bool uint8 uint16 uint32 uint64 int8 int16 int32 int64".split())
DTYPES += tuple("float16 float32 float64 bfloat16".split())
SMALL = standardize.plain(task="text", cameras=[("top", "observation/top")])


def image(rng, height, width, channels=3, ext=".jpg"):
  """An encoded image: a gradient, which JPEG keeps, and a little noise, so that all differ."""
  ramp = np.arange(height)[:, None, None] * 9 + np.arange(width)[:, None] * [5, 3, 7][:channels]
  pixels = (ramp + rng.integers(0, 60, channels) + rng.integers(0, 6, ramp.shape)) % 256
  return cv2.imencode(ext, pixels.astype(np.uint8))[1].tobytes()


def numbers(rng, dtype, shape):
  """Values that fill the range of a dtype, or of float32 where that is smaller."""
  dtype = np.dtype(dtype)
  if dtype.kind == "b":
    return rng.integers(0, 2, shape).astype(bool)
  if dtype.kind in "iu":
    ends = np.iinfo(dtype)
    return rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)
  return (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(dtype)


def every_kind():
  """Features of a step -> (feature, value of a random generator)."""
  kinds = {"action": (F.Tensor(shape=(3,), dtype=np.float32), lambda r: numbers(r, "f4", 3))}

  def add(name, feature, make):
    kinds[name] = feature, make

  for dtype in DTYPES:
    kind = np.dtype(dtype)
    for encoding in ("none", "bytes", "zlib"):
      if (dtype, encoding) != ("bfloat16", "none"):  # which tfds cannot write
        feature = F.Tensor(shape=(2, 3), dtype=kind, encoding=encoding)
        add(f"{encoding}/{dtype}", feature, lambda r, kind=kind: numbers(r, kind, (2, 3)))
    if dtype != "bfloat16":
      add(f"scalar/{dtype}", F.Scalar(kind), lambda r, kind=kind: numbers(r, kind, ())[()])
  add("deep/er/label", F.ClassLabel(num_classes=4), lambda r: int(r.integers(4)))
  add("deep/er/box", F.BBoxFeature(), lambda r: F.BBox(0.1, 0.2, 0.5, float(r.uniform(0.6, 1))))
  add("deep/row", F.Sequence(np.float32, length=3), lambda r: numbers(r, "f4", 3))
  pairs = F.Sequence(F.Tensor(shape=(2,), dtype=np.int32), length=3)
  add("deep/rows", pairs, lambda r: numbers(r, "i4", (3, 2)))
  for name, shape, ext in (
    ("jpeg", (12, 16, 3), ".jpg"),
    ("png", (9, 7, 3), ".png"),
    ("grey_jpeg", (16, 8, 1), ".jpg"),
    ("grey_png", (5, 6, 1), ".png"),
    ("open", (None, None, 3), ".png"),
  ):
    feature = F.Image(shape=shape, encoding_format=ext[1:].replace("jpg", "jpeg"))
    size = tuple(side or 10 for side in shape)
    add(f"images/{name}", feature, lambda r, size=size, ext=ext: image(r, *size, ext))
  add("text", F.Text(), lambda r: f"grüße {r.integers(3)}")
  return kinds


def nest(flat):
  """{"a/b": x} -> {"a": {"b": x}}."""
  out = {}
  for path, value in flat.items():
    *parents, name = path.split("/")
    functools.reduce(lambda d, key: d.setdefault(key, {}), parents, out)[name] = value
  return out


def get(step, path):
  return functools.reduce(operator.getitem, path.split("/"), step)


def leaves(value):
  """Returns the arrays in a list of lists, each of them flat."""
  if isinstance(value, list):
    return [leaf for part in value for leaf in leaves(part)]
  return [np.ravel(value)]


def rlds_features(steps):
  metadata = {"name": F.Text(), "number": np.int32}
  return F.FeaturesDict({"steps": F.Dataset(nest(steps)), "episode_metadata": metadata})


def serialize(features, episode):
  # tfds writes nested sequences with the TensorFlow dtype, which is the numpy one under a new name.
  dtype = property(lambda info: info.np_dtype)
  with mock.patch.object(F.TensorInfo, "dtype", dtype):
    return features.serialize_example(episode)


@functools.cache
def everything():
  """Returns (features, records, standard that reads all of it)."""
  kinds = every_kind()
  features = rlds_features({name: feature for name, (feature, _) in kinds.items()})
  rng, payloads = np.random.default_rng(0), []
  for e, length in enumerate(LENGTHS):
    steps = [nest({name: make(rng) for name, (_, make) in kinds.items()}) for _ in range(length)]
    metadata = {"name": f"name {e} é", "number": e}
    payloads.append(serialize(features, {"steps": steps, "episode_metadata": metadata}))
  numeric = [n for n in kinds if not n.startswith("images/") and n not in ("action", "text")]
  cameras = [(n.removeprefix("images/"), n) for n in kinds if n.startswith("images/")]
  return features, tuple(payloads), standardize.plain("action", numeric, "text", cameras)


@functools.cache
def small(ext=".jpg", size=(12, 16), lengths=LENGTHS):
  """Returns (features, records) that `SMALL` reads; episode e does task "ba"[e % 2]."""
  features = rlds_features(
    {
      "action": F.Tensor(shape=(3,), dtype=np.float32),
      "observation/state": F.Tensor(shape=(2,), dtype=np.float64),
      "observation/unread": F.Tensor(shape=(2,), dtype=np.float32),
      "observation/top": F.Image(
        shape=(None, None, 3), encoding_format=ext[1:].replace("jpg", "jpeg")
      ),
      "text": F.Text(),
    }
  )
  rng, payloads = np.random.default_rng(1), []
  for e, length in enumerate(lengths):
    steps = [
      {
        "action": numbers(rng, "f4", 3),
        "observation": {
          "state": rng.normal(size=2),
          "unread": numbers(rng, "f4", 2),
          "top": image(rng, *size, ext=ext),
        },
        "text": "ba"[e % 2],
      }
      for _ in range(length)
    ]
    metadata = {"name": f"name {e}", "number": e}
    payloads.append(serialize(features, {"steps": steps, "episode_metadata": metadata}))
  return features, tuple(payloads)


def frame(payload):
  """A TFRecord's bytes."""
  length = struct.pack("<Q", len(payload))
  crcs = [struct.pack("<I", tfrecord.masked_crc(part)) for part in (length, payload)]
  return length + crcs[0] + payload + crcs[1]


def write_shard(path, payloads, file_format="tfrecord"):
  if file_format == "tfrecord":
    path.write_bytes(b"".join(map(frame, payloads)))
    return
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for payload in payloads:
    writer.write(payload)
  writer.close()


def write(directory, features, shards, file_format="tfrecord"):
  """Writes a TFDS directory; `shards` are those of "train", or by split. Returns their paths."""
  splits = shards if isinstance(shards, dict) else {"train": shards}
  directory.mkdir(parents=True, exist_ok=True)
  features.save_config(directory)
  entries, paths = [], []
  for split, parts in splits.items():
    entries.append({"name": split, "shardLengths": [str(len(part)) for part in parts]})
    entries[-1]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    for i, part in enumerate(parts):
      paths.append(directory / f"made-{split}.{file_format}-{i:05d}-of-{len(parts):05d}")
      write_shard(paths[-1], part, file_format)
  info = {"name": "made", "fileFormat": file_format, "splits": entries, "version": "1.0.0"}
  (directory / "dataset_info.json").write_text(json.dumps(info))
  return paths


def wanted_small(path):
  """What `SMALL` wants of `small`, written to a directory, and a record of 4 steps."""
  features, payloads = small()
  write(path, features, [payloads])
  return episode.wanted(directory_lib.open_directory(path), SMALL), payloads[2]


def open_everything(path):
  """`everything`, written to a directory: that directory, the payloads and the standard."""
  features, payloads, standard = everything()
  write(path, features, [payloads])
  return directory_lib.open_directory(path), payloads, standard


def edit_json(path, **changes):
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit(payload, change):
  """Returns a record whose features `change` has been called with."""
  example = Example.FromString(bytes(payload))
  change(example.features.feature)
  return example.SerializeToString(deterministic=True)


def replaced(payloads, number, change):
  """Returns the records, one of them edited."""
  return [edit(p, change) if i == number else p for i, p in enumerate(payloads)]


def payloads_of(path, file_format="tfrecord"):
  file = records.open_records(path, file_format)
  return [bytes(file[i]) for i in range(len(file))]


def read(directory, split="train", standard=SMALL, **changes):
  return rlds.read(directory, split, standard, **({"progress": False} | changes))


def frames(episodes):
  """{camera: all of its frames}."""
  steps_L = np.arange(len(episodes.actions_LA))
  return {name: camera(steps_L) for name, camera in episodes.cameras.items()}


def contents(episodes, which=None, images=True):
  """Returns a digest of everything that was read of each episode, to be compared with `==`."""
  out, starts_E = [], episodes.starts_E.tolist()
  for e in range(episodes.num_episodes) if which is None else which:
    steps = slice(starts_E[e], starts_E[e + 1])
    arrays = [episodes.actions_LA[steps], episodes.states_LS[steps]]
    if images:
      steps_N = np.arange(steps.start, steps.stop)
      arrays += [episodes.cameras[name](steps_N) for name in sorted(episodes.cameras)]
    tasks = [episodes.task_names[task] for task in episodes.tasks_L[steps]]
    everything = [(a.dtype.str, a.shape, a.tobytes()) for a in arrays], tasks
    out.append(hashlib.sha256(repr(everything).encode()).hexdigest()[:16])
  return out


def assert_equals_tfds(episodes, payloads, features, numeric=()):
  """Compares every step of every record with tfds's numpy decoding, bit for bit.

  `numeric` are the features of actions, then states, where they are not the standard's in order.
  """
  standard, names = episodes.standard, episodes.task_names
  assert episodes.num_episodes == len(payloads)
  found = frames(episodes)
  for e, payload in enumerate(payloads):
    episode = features.deserialize_example_np(payload)
    steps = list(episode["steps"])
    first, last = episodes.starts_E[e : e + 2]
    assert last - first == len(steps)
    # tfds 4.9's numpy decoding groups nested sequences' values by its own rows, not by steps.
    columns = [
      np.concatenate([leaf for step in steps for leaf in leaves(get(step, name))])
      .astype(np.float32)
      .reshape(len(steps), -1)
      for name in numeric or standard.features
    ]
    for i, step in enumerate(steps, first):
      expected = np.concatenate([column[i - first] for column in columns])
      mine = np.concatenate([episodes.actions_LA[i], episodes.states_LS[i]])
      np.testing.assert_array_equal(mine, expected)
      for name, path in standard.cameras:
        # tfds keeps the one channel of grey images; here every camera has three.
        expected = np.broadcast_to(get(step, path), found[name][i].shape)
        np.testing.assert_array_equal(found[name][i], expected)
      task = standard.task
      text = b""
      if task:
        text = get(episode if task.startswith("episode_metadata/") else step, task)
      assert names[episodes.tasks_L[i]] == text.decode()
