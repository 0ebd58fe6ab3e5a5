"""Embeddings of instructions that a dataset ships: indexed once each, given with every window."""

import hashlib
import json
import pickle

import cloudpickle
import made
import numpy as np
import pytest

from oat_jax import batch as batch_lib
from oat_jax.data import index
from oat_jax.data import mixture
from oat_jax.data import windows as windows_lib

F = made.F
PLAIN = made.SMALL._replace(cameras=())
D = 4
# The instruction of every step; the episode itself has its first step's.
SAID = ([0, 0, 0], [1], [0, 0, 2, 0], [1, 1], [3, 3, 3, 3, 3])
VECTORS = np.random.default_rng(5).normal(size=(4, D)).astype(np.float32)


def write(path, said=SAID, vectors=VECTORS, change=None):
  """Writes a dataset whose steps say, by number, which vector is their instruction's."""
  width = vectors.shape[1]
  vector = F.Tensor(shape=(width,), dtype=np.float32)
  steps = {
    "action": F.Tensor(shape=(3,), dtype=np.float32),
    "observation": {"state": F.Tensor(shape=(2,), dtype=np.float32), "language": vector},
    "text": F.Text(),
  }
  features = F.FeaturesDict({"steps": F.Dataset(steps), "episode_metadata": {"language": vector}})
  rng, payloads = np.random.default_rng(0), []
  for numbers in said:
    content = [
      {
        "action": made.numbers(rng, "f4", 3),
        "observation": {"state": made.numbers(rng, "f4", 2), "language": vectors[number]},
        "text": f"task {number}",
      }
      for number in numbers
    ]
    metadata = {"language": vectors[numbers[0]]}
    payloads.append(made.serialize(features, {"steps": content, "episode_metadata": metadata}))
  if change:
    payloads = made.replaced(payloads, 3, change)
  made.write(path, features, [payloads])
  return path


def read(path, language="observation/language", **changes):
  return made.read(path, standard=PLAIN, language=language, **changes)


@pytest.mark.parametrize("language", ["observation/language", "episode_metadata/language"])
def test_every_step_has_its_embedding_and_each_is_kept_once(tmp_path, language):
  episodes = read(write(tmp_path / "made"), language)
  of_step = language.startswith("observation")
  numbers = [n for said in SAID for n in (said if of_step else [said[0]] * len(said))]
  rows, table = episodes.language_rows_L, episodes.language_RD
  np.testing.assert_array_equal(table[rows], VECTORS[numbers])
  assert table.shape == (len(set(numbers)), D) and rows.dtype == np.int32
  back = pickle.loads(cloudpickle.dumps(episodes))  # as worker processes get it
  np.testing.assert_array_equal(back.language_RD[back.language_rows_L], VECTORS[numbers])


def test_windows_hold_the_embedding_of_their_own_step(tmp_path):
  episodes = read(write(tmp_path / "made"))
  ids = np.array([2, 4, 0])
  windows = windows_lib.Windows(episodes, ids, 2, 3)
  assert windows.spec.language_dim == D
  batch = windows(np.arange(len(windows)))
  batch_lib.check(batch, windows.spec)
  said = [number for e in ids for number in SAID[e]]
  np.testing.assert_array_equal(batch["observation"]["language"], VECTORS[said])
  blind = windows.without_images()
  assert "language" not in blind(np.arange(2))["observation"] and blind.spec.language_dim == 0
  both = mixture.Mixture([windows, windows_lib.Windows(episodes, np.array([1]), 2, 3)])
  last = both(np.array([len(windows), 0]))["observation"]["language"]
  np.testing.assert_array_equal(last, VECTORS[[1, 0]])


def test_datasets_of_a_mixture_agree_in_width_or_have_none(tmp_path):
  path = write(tmp_path / "made")
  wide = read(write(tmp_path / "wide", vectors=np.ones((4, 5), np.float32)))
  assert windows_lib.layout([read(path), read(path)]).language_dim == D
  for other, size in ((wide, 5), (read(path, language=""), 0)):
    with pytest.raises(ValueError, match=f"as {size} numbers in dataset 1, as {D} in dataset 0"):
      windows_lib.layout([read(path), other])


def test_without_language_index_and_fingerprint_are_as_ever(tmp_path):
  path, cache = write(tmp_path / "made"), tmp_path / "cache"
  plain, found = read(path, language="", cache=cache), read(path, cache=cache)
  assert plain.language_RD is None and plain.language_rows_L is None
  assert {plain.fingerprint, plain.cache} & {found.fingerprint, found.cache} == set()
  names = ("actions", "starts", "states", "tasks")
  assert sorted(file.name for file in plain.cache.iterdir()) == sorted(
    (*names, "meta.json", "places")
  )
  digest = hashlib.sha256(json.dumps([f"task {i}" for i in range(4)]).encode())
  arrays = plain.actions_LA, plain.starts_E, plain.states_LS, plain.tasks_L
  for name, array in zip(names, arrays):
    digest.update(f"{name}{array.nbytes}".encode())
    digest.update(hashlib.sha256(array.tobytes()).digest())
  assert plain.fingerprint == digest.hexdigest()[:16]
  directory = index.directory_lib.open_directory(path)
  key = index._key(directory, "train", directory.shards("train"), PLAIN, "raise")
  assert set(key) == {"format", "split", "files", "standard", "on_error"}


def test_other_embeddings_are_other_data(tmp_path):
  one = read(write(tmp_path / "one")).fingerprint
  other = read(write(tmp_path / "other", vectors=VECTORS + 1)).fingerprint
  moved = read(write(tmp_path / "moved", said=([0, 0, 2], *SAID[1:]))).fingerprint
  assert len({one, other, moved}) == 3


def edited(where, values):
  def change(features):
    list_ = features[where].float_list
    del list_.value[:]
    list_.value.extend(values)

  return change


STEPS, METADATA = "steps/observation/language", "episode_metadata/language"


@pytest.mark.parametrize(
  ("where", "values", "message"),
  [
    (STEPS, [1] * 10, f"'{STEPS}' holds 10 values, no multiple of 4"),
    (STEPS, [1] * 12, "features disagree in their number of steps: .*language': 3"),
    (STEPS, [1] * 6 + [np.nan, 1], f"'{STEPS}' is nan at step 1, dimension 2"),
    (METADATA, [1] * 8, f"'{METADATA}' holds 2 embeddings; an episode has one"),
    (METADATA, [1, np.inf, 1, 1], f"'{METADATA}' is inf at step 0, dimension 1"),
  ],
)
def test_damaged_embeddings_are_named(tmp_path, where, values, message):
  path = write(tmp_path / "made", change=edited(where, values))
  language = where.removeprefix("steps/")
  with pytest.raises(ValueError, match=f"record 3: {message}"):
    read(path, language)
  assert read(path, language, on_error="skip").num_episodes == 4


def test_a_missing_feature_lists_those_there_are(tmp_path):
  path = write(tmp_path / "made")
  with pytest.raises(ValueError, match="no feature 'steps/speech'.*numeric .*observation/language"):
    read(path, "speech")
  with pytest.raises(ValueError, match="'episode_metadata/speech'.*: .*episode_metadata/language"):
    read(path, "episode_metadata/speech")
  with pytest.raises(ValueError, match="'steps/text' is text; expected one of the numeric"):
    read(path, "text")
