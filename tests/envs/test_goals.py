"""Goals that are reported were neither demonstrated nor used to choose."""

import json

import pytest

from oat_jax.envs import goals


def test_goals_may_touch_and_must_not_overlap():
  goals.check_apart([("reported", 100, 110), ("selection", 90, 100), ("reported", 110, 120)])
  with pytest.raises(
    ValueError, match=r"selection goals of seeds 109\.\.118 overlap with reported"
  ):
    goals.check_apart([("reported", 100, 110), ("selection", 109, 119)])
  with pytest.raises(
    ValueError, match=r"reported goals of seeds 100\.\.109 overlap with selection"
  ):
    goals.check_apart([("reported", 100, 110), ("selection", 91, 101)])


@pytest.mark.parametrize(
  "seeds, overlap", [((0,), 0), ((100, 29), 29), ((7,), 7), ((30, 90), None)]
)
def test_demonstrated_goals_are_refused(seeds, overlap, tmp_path):
  """Two tasks were demonstrated on seeds 10..29 and 10..19."""
  check = lambda suite, episodes: goals.check_new(
    goals.demonstrated(tmp_path), suite, seeds, episodes
  )
  assert not check("metaworld/mt4", 5)
  totals = {"a": {"attempts": 20, "successes": 5}, "b": {"attempts": 10, "successes": 5}}
  content = {"request": {"suite": "metaworld/mt4", "seed": 10}, "totals": totals}
  (tmp_path / "collection.json").write_text(json.dumps(content))
  assert check("another/mt4", 20)
  for suite in ("metaworld/mt4", "metaworld/mt50"):  # which holds the same tasks
    if overlap is None:
      assert check(suite, 20)
    else:
      with pytest.raises(ValueError, match=rf"seeds {overlap}\.\..* were demonstrated.*10\.\.29"):
        check(suite, 20)
