"""One record to one episode: what is left out, and every way in which a record can be wrong."""

import zlib

import made
import numpy as np
import pytest

from oat_jax.data import directory
from oat_jax.data import episode
from oat_jax.data import standardize

STATE, TOP, ACTION = "steps/observation/state", "steps/observation/top", "steps/action"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  """What `made.SMALL` wants of `made.small`, and a record of 4 steps."""
  return made.wanted_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def every(tmp_path_factory):
  opened, payloads, standard = made.open_everything(tmp_path_factory.mktemp("every"))
  return opened, payloads[2], standard


def floats(features, name, place, value):
  features[name].float_list.value[place] = value


def strings(features, name, place, value):
  features[name].bytes_list.value[place] = value


def test_an_episode_of_its_features(small):
  wanted, payload = small
  found = episode.parse(memoryview(payload), wanted)
  assert found.actions_LA.shape == (4, 3) and found.actions_LA.dtype == np.float32
  assert found.states_LS.shape == (4, 2) and found.states_LS.dtype == np.float32
  assert found.tasks == ["b"] * 4 and found.sizes == {"top": (12, 16)}
  spans = found.spans_L2["top"]
  assert spans.dtype == np.uint32
  stored = made.Example.FromString(payload).features.feature[TOP].bytes_list.value
  assert [payload[start : start + size] for start, size in spans.tolist()] == list(stored)


def test_features_that_nobody_wants_may_be_absent_wrong_or_new(small):
  wanted, payload = small
  expected = episode.parse(payload, wanted)
  for change in (
    lambda f: f.__delitem__("steps/observation/unread"),
    lambda f: f["steps/observation/unread"].bytes_list.value.append(b"?"),
    lambda f: floats(f, "steps/observation/unread", 1, np.nan),
    lambda f: f["new/one"].int64_list.value.append(1),
  ):
    found = episode.parse(made.edit(payload, change), wanted)
    for mine, same in zip(found[:2], expected[:2]):
      np.testing.assert_array_equal(mine, same)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda f: f.__delitem__(ACTION),
      "the record has no feature 'steps/action', though features.j",
    ),
    (lambda f: f.__delitem__(TOP), f"the record has no feature '{TOP}'"),
    (lambda f: f.__delitem__("steps/text"), "the record has no feature 'steps/text'"),
    (lambda f: floats(f, ACTION, 7, np.nan), "'steps/action' is nan at step 2, dimension 1"),
    (lambda f: floats(f, STATE, 7, -np.inf), f"'{STATE}' is -inf at step 3, dimension 1"),
    (lambda f: f[ACTION].float_list.value.pop(), "holds 11 values, no multiple of 3, its size"),
    (
      lambda f: f[ACTION].float_list.value.extend([0, 0, 0]),
      f"disagree in their number of steps: .*'steps/action': 5, '{STATE}': 4",
    ),
    (lambda f: f["steps/text"].bytes_list.value.pop(), "disagree in .*'steps/text': 3"),
    (lambda f: f[TOP].bytes_list.value.pop(), f"disagree in .*'{TOP}': 3"),
    (lambda f: [v.Clear() for v in f.values()], "the episode has no steps; remove it"),
    (lambda f: f[ACTION].bytes_list.value.append(b"1"), "'steps/action' holds bytes; .* float32"),
    (lambda f: f["steps/text"].int64_list.value.append(1), "'steps/text' holds numbers; .* text"),
    (
      lambda f: f[TOP].float_list.value.append(1),
      f"'{TOP}' holds numbers; features.json says image",
    ),
    (lambda f: strings(f, "steps/text", 1, b"\xff"), "'steps/text' at step 1 is no UTF-8 text"),
    (lambda f: strings(f, TOP, 3, b""), f"'{TOP}': step 3: there are no bytes of an image"),
    (lambda f: strings(f, TOP, 0, b""), f"'{TOP}': step 0: there are no bytes of an image"),
    (lambda f: strings(f, TOP, 1, b"garbage"), f"'{TOP}': step 1: neither JPEG nor PNG; .* 67 61"),
    (
      lambda f: strings(f, TOP, 2, f[TOP].bytes_list.value[2][:-40]),
      f"'{TOP}': step 2: the image has no end marker: it is cut off",
    ),
    (
      lambda f: strings(f, TOP, 2, made.image(np.random.default_rng(0), 13, 16)),
      rf"'{TOP}': step 2: the image is 13x16 \(height x width\), step 0's 12x16",
    ),
  ],
)
def test_wrong_records_are_named(small, change, message):
  wanted, payload = small
  with pytest.raises(ValueError, match=message):
    episode.parse(made.edit(payload, change), wanted)


def test_bytes_that_are_no_example(small):
  for payload in (b"not an example", small[1][:-1], small[1][1:], b"\0"):
    with pytest.raises(ValueError, match="malformed|unexpected|varint"):
      episode.parse(payload, small[0])
  with pytest.raises(ValueError, match="the record has no feature 'steps/action'"):
    episode.parse(b"", small[0])


def test_a_wrong_width_that_still_fits_is_noticed(every):
  """An action twice as wide is no multiple of anything, but twice as many steps."""
  found, payload, standard = every
  wanted = episode.wanted(found, standard)
  with pytest.raises(ValueError, match="disagree in their number of steps: .*'steps/action': 8"):
    episode.parse(
      made.edit(payload, lambda f: f[ACTION].float_list.value.extend([1.0] * 12)), wanted
    )


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("zlib/float64", lambda v: v[:-3], "'steps/zlib/float64' at step 1: .*incomplete"),
    ("zlib/int8", lambda v: b"raw", "'steps/zlib/int8' at step 1: .*incorrect header"),
    ("zlib/int8", lambda v: zlib.compress(b"12345"), r"step 1 has 5 bytes; int8\[2, 3\] has 6"),
    ("bytes/uint64", lambda v: v + b"\0", r"step 1 has 49 bytes; uint64\[2, 3\] has 48"),
    ("bytes/float16", lambda v: b"", r"step 1 has 0 bytes; float16\[2, 3\] has 12"),
    (
      "bytes/float32",
      lambda v: b"\xff" * 24,
      "'steps/bytes/float32' is nan at step 1, dimension 0",
    ),
    ("bytes/float64", lambda v: b"\xff\xff\xff\xff\xff\xff\xef\x7f" * 6, "is inf at step 1"),
  ],
)
def test_wrong_encoded_tensors_are_named(every, name, change, message):
  found, payload, _ = every
  wanted = episode.wanted(found, standardize.plain(state=(name,)))

  def damage(features):
    values = features[f"steps/{name}"].bytes_list.value
    values[1] = change(values[1])

  with pytest.raises(ValueError, match=message), np.errstate(over="ignore"):
    episode.parse(made.edit(payload, damage), wanted)


def test_a_compressed_tensor_is_unpacked_no_further_than_its_size(every):
  found, payload, _ = every
  wanted = episode.wanted(found, standardize.plain(state=("zlib/int8",)))
  bomb = zlib.compress(bytes(200 << 20), 9)

  def damage(features):
    features["steps/zlib/int8"].bytes_list.value[1] = bomb

  with pytest.raises(ValueError, match="'steps/zlib/int8' at step 1: there are more than 6 bytes"):
    episode.parse(made.edit(payload, damage), wanted)


def test_sequences_of_another_length_are_named(every):
  found, payload, _ = every
  wanted = episode.wanted(found, standardize.plain(state=("deep/rows",)))
  rows = "steps/deep/rows/ragged_row_lengths_0"
  for lengths in ([3, 3, 3, 2], [3, 3, 2, 4], [3, 3, 3], [3] * 5, []):
    with pytest.raises(ValueError, match=f"'{rows}' is .*; 4 steps of 3 elements"):

      def damage(features, lengths=lengths):
        features[rows].int64_list.value[:] = lengths

      episode.parse(made.edit(payload, damage), wanted)
  with pytest.raises(ValueError, match=f"the record has no feature '{rows}'"):
    episode.parse(made.edit(payload, lambda f: f.__delitem__(rows)), wanted)


def test_a_task_of_the_episode_is_one_text(small, every):
  found, payload, _ = every
  standard = standardize.plain(state=("scalar/bool",), task="episode_metadata/name")
  wanted = episode.wanted(found, standard)
  assert episode.parse(payload, wanted).tasks == ["name 2 é"]
  for texts in ([], [b"a", b"b"]):
    with pytest.raises(
      ValueError, match=f"metadata/name' holds {len(texts)} texts; an episode has"
    ):

      def damage(features, texts=texts):
        features["episode_metadata/name"].bytes_list.value[:] = texts

      episode.parse(made.edit(payload, damage), wanted)


def test_what_a_standard_makes_is_checked_too(small):
  wanted, payload = small

  def convert(features):
    actions_LA = features["action"].copy()
    actions_LA[2, 1] /= 0.0
    return actions_LA, features["observation/state"]

  wanted = wanted._replace(standard=wanted.standard._replace(convert=convert))
  with pytest.raises(ValueError, match="standardised actions are -?inf at step 2, dimension 1"):
    with np.errstate(divide="ignore"):
      episode.parse(payload, wanted)


def test_images_must_have_the_size_that_features_json_says(every):
  found, payload, standard = every
  wanted = episode.wanted(found, standard)

  def damage(features):
    images = features["steps/images/jpeg"].bytes_list.value
    images[:] = [made.image(np.random.default_rng(0), 11, 16)] * len(images)

  message = r"'steps/images/jpeg': the images are 11x16; features.json says \[12, 16, 3\]"
  with pytest.raises(ValueError, match=message):
    episode.parse(made.edit(payload, damage), wanted)


def test_cameras_of_other_kinds_are_refused(tmp_path):
  steps = {
    "action": made.F.Tensor(shape=(3,), dtype=np.float32),
    "depth": made.F.Image(shape=(4, 4, 1), dtype=np.uint16, encoding_format="png"),
    "alpha": made.F.Image(shape=(4, 4, 4), encoding_format="png"),
  }
  made.write(tmp_path, made.rlds_features(steps), [])
  found = directory.open_directory(tmp_path)
  for name, what in (("depth", r"uint16\[4, 4, 1\]"), ("alpha", r"uint8\[4, 4, 4\]")):
    standard = standardize.plain(state=("action",), cameras=[("eye", name)])
    with pytest.raises(ValueError, match=f"'steps/{name}' is {what}; camera 'eye' needs uint8"):
      episode.wanted(found, standard)
