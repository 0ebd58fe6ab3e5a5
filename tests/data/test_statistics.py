"""Statistics of episodes: exact, cached, and exchanged with openpi and Octo."""

import json

import numpy as np
import pytest
import tiny

from oat_jax.data import normalization
from oat_jax.data import statistics


def of(episodes, *ids):
  return statistics.of_episodes(episodes, np.array(ids))


def assert_equal(a, b, names=normalization.Statistics._fields):
  for group in ("actions", "state"):
    for name in names:
      np.testing.assert_array_equal(getattr(a[group], name), getattr(b[group], name), err_msg=name)


def test_only_the_chosen_episodes_count():
  episodes = tiny.episodes([2, 3, 4])
  rows = np.r_[0:2, 5:9]
  expected = {
    "actions": normalization.compute(episodes.actions_LA[rows]),
    "state": normalization.compute(episodes.states_LS[rows]),
  }
  assert_equal(of(episodes, 0, 2), expected)
  assert_equal(of(episodes, 2, 0), expected)


def test_they_are_computed_once(tmp_path, monkeypatch):
  episodes = tiny.episodes([2, 3, 4])._replace(cache=tmp_path)
  first = of(episodes, 0, 2)
  computed = []
  real = normalization.compute
  monkeypatch.setattr(normalization, "compute", lambda *args: computed.append(1) or real(*args))
  assert_equal(of(episodes, 0, 2), first)
  assert not computed
  assert of(episodes, 1)["actions"].count == 3 and computed
  # What a kill or a full disk left of the file is made again.
  for path in tmp_path.iterdir():
    path.write_bytes(path.read_bytes()[:20])
  computed.clear()
  assert_equal(of(episodes, 0, 2), first)
  assert computed
  assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


def test_a_cache_that_takes_nothing_is_no_error(tmp_path):
  episodes = tiny.episodes([2])._replace(cache=tmp_path / "gone")
  assert of(episodes, 0)["actions"].count == 2


def made():
  found = of(tiny.episodes([40, 3]), 0, 1)
  return found | {"actions": found["actions"]._replace(mask=np.array([True, False]))}


def test_octos_file(tmp_path):
  path = tmp_path / "dataset_statistics.json"
  statistics.write(path, made(), "octo", num_episodes=2)
  content = json.loads(path.read_text())
  assert set(content) == {"action", "proprio", "num_transitions", "num_trajectories"}
  assert set(content["action"]) == {"mean", "std", "max", "min", "p99", "p01", "mask"}
  assert content["num_transitions"] == 43 and content["num_trajectories"] == 2
  np.testing.assert_array_equal(np.float32(content["action"]["p99"]), made()["actions"].q99)
  assert_equal(statistics.read(path), made())


def test_openpis_file(tmp_path):
  path = tmp_path / "norm_stats.json"
  statistics.write(path, made(), "openpi")
  content = json.loads(path.read_text())
  assert set(content) == {"norm_stats"} and set(content["norm_stats"]) == {"actions", "state"}
  assert set(content["norm_stats"]["state"]) == {"mean", "std", "q01", "q99"}
  back = statistics.read(path)
  assert_equal(back, made(), ("mean", "std", "q01", "q99"))
  # It keeps no extremes: the quantiles stand for them.
  np.testing.assert_array_equal(back["actions"].min, back["actions"].q01)
  np.testing.assert_array_equal(back["actions"].max, back["actions"].q99)
  # Unless there are data whose extremes they are: decoded actions are clipped to them.
  assert_equal(statistics.read(path, made()), made(), ("min", "max", "q01", "q99"))


def test_files_as_the_others_write_them(tmp_path):
  """Openpi's further keys and Octo's missing ones (no proprio, no mask) do no harm."""
  path = tmp_path / "a.json"
  one = {"mean": [1.0], "std": [2.0], "q01": [0.0], "q99": [3.0]}
  path.write_text(json.dumps({"norm_stats": {"state": one, "actions": one, "extra": one}}))
  assert set(statistics.read(path)) == {"state", "actions"}
  octo = {"mean": [1.0], "std": [2.0], "max": [4.0], "min": [0.0], "p99": [3.0], "p01": [0.5]}
  path.write_text(json.dumps({"action": octo, "num_transitions": 7, "num_trajectories": 1}))
  found = statistics.read(path)
  assert set(found) == {"actions"} and found["actions"].count == 7
  assert found["actions"].q01 == 0.5 and found["actions"].mask.tolist() == [True]


@pytest.mark.parametrize(
  "content",
  [
    "",
    "[1]",
    "{}",
    '{"norm_stats": 3}',
    '{"action": {"mean": [1]}}',
    '{"norm_stats": {"state": {}}}',
  ],
)
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / "x.json"
  path.write_text(content)
  with pytest.raises(ValueError, match="x.json: neither openpi's norm_stats.json nor Octo's"):
    statistics.read(path)


def test_bad_requests(tmp_path):
  with pytest.raises(ValueError, match="statistics format is 'hf'"):
    statistics.write(tmp_path / "x", made(), "hf")
  with pytest.raises(FileNotFoundError):
    statistics.read(tmp_path / "none.json")
