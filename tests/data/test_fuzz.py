"""Random damage: whatever the bytes, the outcome is an error that names the file, or the truth.

OAT_JAX_FUZZ=20 runs twenty times as many cases, other ones each time.
"""

import contextlib
import copy
import itertools
import json
import os
import shutil
import signal

from google.protobuf.message import DecodeError
import hypothesis
from hypothesis import strategies as st
import made
import numpy as np
import pytest

from oat_jax.data import episode
from oat_jax.data import images
from oat_jax.data import tfrecord

TIMES = int(os.environ.get("OAT_JAX_FUZZ", "1"))
NUMBERS = itertools.count(1)


def cases(count):
  return hypothesis.settings(
    max_examples=count * TIMES,
    derandomize=TIMES == 1,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


@contextlib.contextmanager
def in_time(seconds=20):
  """A case that takes longer hangs."""

  def hang(*_):
    raise AssertionError(f"no answer after {seconds} seconds")

  before = signal.signal(signal.SIGALRM, hang)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# One change of bytes: what, where (as a share of the whole), how long, with which byte.
CHANGES = st.lists(
  st.tuples(
    st.sampled_from(["flip", "flip", "set", "zero", "cut", "insert", "delete", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 40),
    st.integers(0, 255),
  ),
  min_size=1,
  max_size=3,
)


def damage(data, changes):
  data = bytearray(data)
  for what, share, length, byte in changes:
    place = int(share * len(data))
    if what == "flip" and data:
      data[place] ^= byte or 1
    elif what == "set" and data:
      data[place] = byte
    elif what == "zero":
      data[place : place + length] = bytes(len(data[place : place + length]))
    elif what == "cut":
      del data[place:]
    elif what == "insert":
      data[place:place] = bytes([byte]) * length
    elif what == "delete":
      del data[place : place + length]
    elif what == "repeat":
      data[place:place] = data[place : place + length]
  return bytes(data)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  """What `made.SMALL` wants, and a record."""
  return made.wanted_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def every(tmp_path_factory):
  opened, payloads, standard = made.open_everything(tmp_path_factory.mktemp("every"))
  return episode.wanted(opened, standard), payloads


def read_all(payload):
  """Reads every feature of a record, wanted or not."""
  for kind, start, end in tfrecord.parse_example(payload).values():
    read = (None, tfrecord.bytes_, tfrecord.floats, tfrecord.ints)[kind]
    if read:
      read(payload, start, end)


def assert_says_what_protobuf_says(payload, wanted):
  """Reads a record of `made.small`; an error must be a ValueError."""
  try:
    with in_time():
      found = episode.parse(payload, wanted)
  except ValueError:
    return
  try:
    features = made.Example.FromString(payload).features.feature
  except DecodeError:  # features that nobody wants are not looked into
    with pytest.raises(ValueError):
      read_all(payload)
    return

  def values(name):
    return list(getattr(features[name], features[name].WhichOneof("kind")).value)

  for array, name in ((found.actions_LA, "action"), (found.states_LS, "observation/state")):
    expected = np.array(values(f"steps/{name}")).astype(np.float32)
    np.testing.assert_array_equal(array.ravel(), expected)
  assert found.tasks == [text.decode() for text in values("steps/text")]
  spans = found.spans_L2["top"].tolist()
  frames = values("steps/observation/top")
  assert [payload[start : start + length] for start, length in spans] == frames
  assert {images.header(frame)[:2] for frame in frames} == {found.sizes["top"]}


@cases(250)
@hypothesis.given(changes=CHANGES)
def test_records_with_damaged_bytes(small, changes):
  wanted, payload = small
  assert_says_what_protobuf_says(damage(payload, changes), wanted)


NAMES = ("action", "observation/state", "observation/top", "text")
LISTS = ("bytes_list", "float_list", "int64_list")
VALUES = {
  "bytes_list": st.lists(st.binary(max_size=60), max_size=6),
  "float_list": st.lists(st.floats(width=32), max_size=13),
  "int64_list": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=13),
}
EDITS = st.one_of(
  st.tuples(st.just("delete"), st.sampled_from(NAMES), st.none(), st.none()),
  st.tuples(st.just("pop"), st.sampled_from(NAMES), st.integers(0, 11), st.none()),
  st.tuples(st.just("double"), st.sampled_from(NAMES), st.integers(0, 11), st.none()),
  st.tuples(st.just("damage"), st.sampled_from(NAMES[2:]), st.integers(0, 3), CHANGES),
  st.tuples(st.just("number"), st.sampled_from(NAMES[:2]), st.integers(0, 11), st.floats(width=32)),
  *(st.tuples(st.just(name), st.sampled_from(NAMES), st.none(), VALUES[name]) for name in LISTS),
)


@cases(250)
@hypothesis.given(edits=st.lists(EDITS, min_size=1, max_size=3))
def test_records_with_another_structure(small, edits):
  wanted, payload = small

  def change(features):
    for what, name, place, value in edits:
      name = f"steps/{name}"
      if what == "delete":
        features.pop(name, None)
        continue
      kind = what if what in LISTS else features[name].WhichOneof("kind")
      if kind is None:
        continue
      stored = getattr(features[name], kind).value
      if what in LISTS:
        stored[:] = value
      elif what == "pop" and place < len(stored):
        stored.pop(place)
      elif what == "double" and place < len(stored):
        stored.append(stored[place])
      elif what == "number" and kind == "float_list" and place < len(stored):
        stored[place] = value
      elif what == "damage" and kind == "bytes_list" and place < len(stored):
        stored[place] = damage(stored[place], value)

  assert_says_what_protobuf_says(made.edit(payload, change), wanted)


@cases(150)
@hypothesis.given(which=st.integers(0, 4), changes=CHANGES)
def test_records_of_every_kind_with_damaged_bytes(every, which, changes):
  """Tfds's numpy decoding does not check what it reads; here arrays have the right form or none."""
  wanted, payloads = every
  with contextlib.suppress(ValueError), np.errstate(all="ignore"), in_time():
    found = episode.parse(damage(payloads[which], changes), wanted)
    length = len(found.actions_LA)
    assert length and found.actions_LA.shape == (length, 3)
    assert found.states_LS.shape == (length, 254)
    assert np.isfinite(found.actions_LA).all() and np.isfinite(found.states_LS).all()
    assert {spans.shape for spans in found.spans_L2.values()} == {(length, 2)}


FRAMES = [made.image(np.random.default_rng(0), 9, 7, ext=ext) for ext in (".jpg", ".png")]


@cases(200)
@hypothesis.given(
  data=st.sampled_from(FRAMES).flatmap(lambda f: CHANGES.map(lambda c: damage(f, c)))
  | st.binary(max_size=50)
)
def test_damaged_images_have_the_size_that_they_say_or_are_errors(data):
  with contextlib.suppress(ValueError), in_time():
    height, width, _ = images.header(data)
    if height * width < 1 << 20:
      found = images.decode(data)
      assert found.dtype == np.uint8 and found.shape == (height, width, 3)


class Shard:
  """A dataset of one shard, and what it holds when it is whole."""

  def __init__(self, path, features, payloads, standard, file_format="tfrecord"):
    (self.file,) = made.write(path, features, [payloads], file_format)
    self.path, self.standard, self.whole = path, standard, self.file.read_bytes()
    self.expected = made.contents(self.read("raise"))

  def read(self, on_error):
    cache = self.path / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    return made.read(self.path, standard=self.standard, on_error=on_error, cache=cache)

  def check(self, data):
    self.file.write_bytes(data)
    os.utime(self.file, ns=(0, next(NUMBERS)))  # faster than the clock of the file system
    if data == self.whole:
      return
    try:
      with in_time():
        assert made.contents(self.read("raise")) == self.expected
    except (OSError, ValueError) as error:
      assert str(self.file) in str(error)
    try:
      with in_time():
        episodes = self.read("skip")
        kept = next(iter(episodes.cameras.values())).records.places_E3[:, 1].tolist()
        assert len(kept) + len(episodes.skipped) == len(self.expected)
        assert all(str(self.file) in reason for reason in episodes.skipped)
        assert made.contents(episodes) == [self.expected[number] for number in kept]
    except (OSError, ValueError) as error:
      assert str(self.file) in str(error) and "no episode of" in str(error)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  """Shards by name."""
  found = {}
  for name, file_format in (("png", "tfrecord"), ("array_record", "array_record")):
    features, payloads = made.small(".png")
    path = tmp_path_factory.mktemp(name)
    found[name] = Shard(path, features, payloads, made.SMALL, file_format)
  if made.BRIDGE.exists():
    features = made.tfds.builder_from_directory(made.BRIDGE / "1.0.0").info.features
    (file,) = (made.BRIDGE / "1.0.0").glob("*-train.*")
    path = tmp_path_factory.mktemp("bridge")
    found["bridge"] = Shard(path, features, made.payloads_of(file), made.BRIDGE_STANDARD)
    assert found["bridge"].whole == file.read_bytes()
  return found


@pytest.mark.skipif(not made.BRIDGE.exists(), reason=f"the shared data is not at {made.BRIDGE}")
@cases(25)
@hypothesis.given(changes=CHANGES)
def test_the_damaged_bridge_shard(shards, changes):
  shards["bridge"].check(damage(shards["bridge"].whole, changes))


@cases(120)
@hypothesis.given(changes=CHANGES)
def test_a_damaged_shard_of_png(shards, changes):
  shards["png"].check(damage(shards["png"].whole, changes))


@cases(60)
@hypothesis.given(changes=CHANGES, where=st.sampled_from([1.0, 0.1, 0.02]))
def test_a_damaged_array_record_shard(shards, changes, where):
  """Most of so small a file is padding: damage to its beginning is what matters."""
  changes = [(what, share * where, *rest) for what, share, *rest in changes]
  shards["array_record"].check(damage(shards["array_record"].whole, changes))


JUNK = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-3, 5),
  st.sampled_from([2**40, -(2**70), 1e400, -1e400, float("nan"), 0.5]),
  st.sampled_from(["", "3", "-1", "x", "train", "float32", "uint64", "string", "zlib", "{", "\0"]),
  st.sampled_from(["{DATASET}", "{DATASET.x}", "{0}", "../..", "/", "\ud800", "é" * 300, "steps"]),
  st.sampled_from([[], {}, [[]], [{}], {"text": {}}, {"image": {}}, {"sequence": {}}, ["5"]]),
)
JSON_EDITS = st.lists(
  st.tuples(
    st.sampled_from(["replace", "replace", "delete", "rename", "add", "wrap", "copy"]),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    JUNK,
  ),
  min_size=1,
  max_size=3,
)


def places(node):
  """Yields (container, key) of everything in a JSON value."""
  for key in list(node) if isinstance(node, dict) else range(len(node)):
    yield node, key
    if isinstance(node[key], dict | list):
      yield from places(node[key])


def edit_json(content, edits):
  content = {"top": copy.deepcopy(content)}
  for what, place, other, junk in edits:
    known = list(places(content))
    node, key = known[place % len(known)]
    if what == "replace":
      node[key] = copy.deepcopy(junk)
    elif what == "wrap":
      node[key] = [node[key]]
    elif what == "copy":
      other_node, other_key = known[other % len(known)]
      node[key] = copy.deepcopy(other_node[other_key])
    elif node is not content and what == "delete":
      del node[key]
    elif isinstance(node, dict) and node is not content:
      node[str(junk)] = node.pop(key) if what == "rename" else copy.deepcopy(junk)
  return content["top"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """A directory, its metadata, and what it holds."""
  path = tmp_path_factory.mktemp("dataset")
  features, payloads = made.small()
  made.write(path, features, {"train": [payloads[:2], payloads[2:]], "val": [payloads[:1]]})
  names = ("dataset_info.json", "features.json")
  content = {name: json.loads((path / name).read_text()) for name in names}
  expected = {split: made.contents(made.read(path, split)) for split in ("train", "train[1:]")}
  return path, content, expected


@cases(350)
@hypothesis.given(
  name=st.sampled_from(["dataset_info.json", "features.json"]),
  edits=JSON_EDITS,
  split=st.sampled_from(["train", "train", "train[1:]"]),
  on_error=st.sampled_from(["raise", "skip"]),
)
def test_damaged_metadata(dataset, name, edits, split, on_error):
  path, content, expected = dataset
  shutil.rmtree(path / "cache", ignore_errors=True)
  for other, value in content.items():
    (path / other).write_text(json.dumps(edit_json(value, edits) if other == name else value))
  try:
    with in_time():
      episodes = made.read(path, split, on_error=on_error, cache=path / "cache")
      found = made.contents(episodes)
  except (FileNotFoundError, ValueError) as error:
    assert str(path) in str(error)
    return
  if episodes.skipped:
    assert set(found) <= set(expected["train"])  # shards of another length than they should have
  else:
    assert found == expected[split]


@cases(100)
@hypothesis.given(name=st.sampled_from(["dataset_info.json", "features.json"]), changes=CHANGES)
def test_metadata_with_damaged_bytes(dataset, name, changes):
  path, content, expected = dataset
  shutil.rmtree(path / "cache", ignore_errors=True)
  for other, value in content.items():
    text = json.dumps(value).encode()
    (path / other).write_bytes(damage(text, changes) if other == name else text)
  try:
    with in_time():
      assert made.contents(made.read(path, cache=path / "cache")) == expected["train"]
  except (FileNotFoundError, ValueError) as error:
    assert str(path) in str(error)
