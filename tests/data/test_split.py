"""Which episodes are held out, and which part of the others is trained on: their promises."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from oat_jax.data import split as split_lib


@hypothesis.given(
  st.lists(st.integers(0, 3), min_size=1, max_size=40),
  st.floats(0, 1, exclude_max=True),
  st.integers(0, 9),
)
def test_split_keeps_its_promises(tasks, fraction, seed):
  tasks = np.array(tasks, np.int32)
  if fraction and len(tasks) < 2:
    with pytest.raises(ValueError, match="there is only 1 episode"):
      split_lib.episodes(tasks, fraction, seed)
    return
  train, validation = split_lib.episodes(tasks, fraction, seed)
  assert sorted([*train, *validation]) == list(range(len(tasks)))
  assert (np.diff(train) > 0).all() and (np.diff(validation) > 0).all()
  assert len(train) and bool(len(validation)) == (fraction > 0)
  held, few = 0, 0
  for task in np.unique(tasks):
    size, out = (tasks == task).sum(), (tasks[validation] == task).sum()
    wanted = np.round(fraction * size)
    if wanted < 1:
      few, held = few + size, held + out
    elif len(validation) > 1:
      assert out == min(wanted, size - 1)
  if few and len(validation) > 1:
    assert held == min(np.round(fraction * few), few - 1)
  again = split_lib.episodes(tasks, fraction, seed)
  np.testing.assert_array_equal(validation, again[1])


def test_instructions_that_occur_once_are_drawn_from_together():
  tasks = np.arange(500)
  train, validation = split_lib.episodes(tasks, 0.1, 0)
  assert len(validation) == 50 and sorted([*train, *validation]) == list(range(500))
  mixed = np.concatenate([np.zeros(40, int), 1 + np.arange(60)])
  validation = split_lib.episodes(mixed, 0.1, 0)[1]
  assert ((validation < 40).sum(), (validation >= 40).sum()) == (4, 6)


def test_split_depends_on_the_seed_and_refuses_nonsense():
  tasks = np.repeat([0, 1], 20)
  splits = {tuple(split_lib.episodes(tasks, 0.3, seed)[1]) for seed in range(5)}
  assert len(splits) == 5
  with pytest.raises(ValueError, match="only 1 episode"):
    split_lib.episodes(np.array([0]), 0.1, 0)
  with pytest.raises(ValueError, match="no episodes"):
    split_lib.episodes(np.array([], int), 0.1, 0)
  for fraction in (-0.1, 1.0, float("nan")):
    with pytest.raises(ValueError, match="must be in"):
      split_lib.episodes(tasks, fraction, 0)


@hypothesis.given(
  st.lists(st.integers(0, 3), min_size=1, max_size=40),
  st.lists(st.floats(0.01, 1), min_size=2, max_size=2),
  st.integers(0, 9),
)
def test_a_smaller_part_lies_in_a_larger_one_and_has_as_much_of_every_task(tasks, fractions, seed):
  tasks = np.array(tasks, np.int32)
  ids = np.arange(0, len(tasks), 2)
  small, large = (split_lib.part(tasks, ids, fraction, seed) for fraction in sorted(fractions))
  assert set(small) <= set(large) <= set(ids)
  for fraction, drawn in zip(sorted(fractions), (small, large)):
    assert len(drawn) == int(np.ceil(fraction * len(ids) - 1e-9)) >= 1
    for task in np.unique(tasks[ids]):
      there, mine = (tasks[ids] == task).sum(), (tasks[drawn] == task).sum()
      assert abs(mine - fraction * there) < 2
  np.testing.assert_array_equal(split_lib.part(tasks, ids, 1.0, seed), ids)


def test_a_part_of_instructions_that_occur_once_is_a_part():
  drawn = [tuple(split_lib.part(np.arange(500), np.arange(500), 0.1, seed)) for seed in range(3)]
  assert [len(each) for each in drawn] == [50] * 3 and len(set(drawn)) == 3
  tasks = np.repeat([0, 1], 15)
  assert np.bincount(tasks[split_lib.part(tasks, np.arange(30), 0.1, 0)]).sum() == 3
