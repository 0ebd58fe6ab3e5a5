"""Windows against an oracle that writes out every step, and the split's promises."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from oat_jax import batch as batch_lib
from oat_jax.data import normalization
from oat_jax.data import rlds
from oat_jax.data import windows as windows_lib


def make_episodes(lengths, action_dim=2, state_dim=3, tasks=None):
  """Every number is different, so that no mistake can hide."""
  steps = sum(lengths)
  tasks = [0] * len(lengths) if tasks is None else tasks
  return rlds.Episodes(
    actions_LA=np.arange(steps * action_dim, dtype=np.float32).reshape(steps, action_dim) + 1,
    states_LS=-np.arange(steps * state_dim, dtype=np.float32).reshape(steps, state_dim) - 1,
    starts_E=np.cumsum([0, *lengths], dtype=np.int64),
    tasks_E=np.array(tasks, np.int32),
    task_names=tuple(f"task {i}" for i in range(max(tasks) + 1)),
  )


def slow_windows(episodes, ids, T, C, A):
  rows = []
  for e in ids:
    steps = range(episodes.starts_E[e], episodes.starts_E[e + 1])
    actions = [list(episodes.actions_LA[step]) for step in steps]
    states = [list(episodes.states_LS[step]) for step in steps]
    for step in range(len(actions)):
      row = {"state": [], "observed": [], "actions": [], "acted": [], "task": episodes.tasks_E[e]}
      for t in range(step - T + 1, step + 1):
        row["state"].append(states[t] if t >= 0 else states[0])
        row["observed"].append(t >= 0)
      for t in range(step, step + C):
        action = actions[t] if t < len(actions) else actions[-1]
        row["actions"].append(action + [0] * (A - len(action)))
        row["acted"].append(t < len(actions))
      rows.append(row)
  return rows


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.data())
def test_windows_equal_the_slow_oracle(data):
  lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
  tasks = data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths)))
  T, C, A = (data.draw(st.integers(low, 5)) for low in (1, 1, 2))
  ids = data.draw(st.permutations(range(len(lengths))))
  ids = ids[: data.draw(st.integers(1, len(ids)))]
  episodes = make_episodes(lengths, tasks=tasks)
  windows = windows_lib.Windows(episodes, np.array(ids), T, C, A)
  expected = slow_windows(episodes, ids, T, C, A)
  assert len(windows) == len(expected)
  indices = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=6))

  batch = windows(np.array(indices))
  batch_lib.check(batch, windows.spec)
  rows = [expected[i] for i in indices]
  for got, name in (
    (batch["observation"]["state"], "state"),
    (batch["observation"]["task"], "task"),
    (batch["observation_mask"], "observed"),
    (batch["actions"], "actions"),
    (batch["action_mask"], "acted"),
  ):
    np.testing.assert_array_equal(got, np.array([row[name] for row in rows]), err_msg=name)
  np.testing.assert_array_equal(batch["action_dim_mask"], [[i < 2 for i in range(A)]] * len(rows))
  assert not batch["dataset"].any()


def test_spec_says_the_sizes():
  spec = windows_lib.Windows(make_episodes([3], tasks=[1]), np.array([0]), 2, 4, 5).spec
  assert spec == batch_lib.BatchSpec(2, 4, 5, 3, ("task 0", "task 1"), 1)
  assert windows_lib.Windows(make_episodes([3]), np.array([0]), 2, 4).spec.action_dim == 2


def test_statistics_count_each_step_of_the_chosen_episodes_once():
  episodes = make_episodes([2, 3, 4])
  statistics = windows_lib.Windows(episodes, np.array([2, 0]), 2, 8, 3).statistics()
  chosen = np.r_[0:2, 5:9]
  actions = np.pad(episodes.actions_LA[chosen], ((0, 0), (0, 1)))
  for name, values in (("actions", actions), ("state", episodes.states_LS[chosen])):
    for got, expected in zip(statistics[name], normalization.compute(values)):
      np.testing.assert_array_equal(got, expected)
  assert statistics["actions"].count == 6


def test_bad_windows():
  episodes = make_episodes([2, 3])
  with pytest.raises(ValueError, match="have 2 dimensions, action_dim is 1"):
    windows_lib.Windows(episodes, np.array([0]), 1, 1, 1)
  with pytest.raises(ValueError, match="0 to 2 were asked for, but the dataset has 2"):
    windows_lib.Windows(episodes, np.array([0, 2]), 1, 1)
  for ids in ([], [1, 1]):
    with pytest.raises(ValueError, match="distinct episodes"):
      windows_lib.Windows(episodes, np.array(ids, int), 1, 1)
  windows = windows_lib.Windows(episodes, np.array([0, 1]), 1, 1)
  for index in (-1, 5):
    with pytest.raises(IndexError, match=f"window {index} was asked for; there are 5"):
      windows(np.array([0, index]))


@hypothesis.given(
  st.lists(st.integers(0, 3), min_size=1, max_size=40),
  st.floats(0, 1, exclude_max=True),
  st.integers(0, 9),
)
def test_split_keeps_its_promises(tasks, fraction, seed):
  tasks = np.array(tasks, np.int32)
  sizes = np.bincount(tasks)
  if fraction and sizes.max() < 2:
    with pytest.raises(ValueError, match="no task has 2 episodes"):
      windows_lib.split_episodes(tasks, fraction, seed)
    return
  train, validation = windows_lib.split_episodes(tasks, fraction, seed)
  assert sorted([*train, *validation]) == list(range(len(tasks)))
  assert (np.diff(train) > 0).all() and (np.diff(validation) > 0).all()
  assert set(tasks[train]) == set(tasks)
  held = np.bincount(tasks[validation], minlength=len(sizes))
  wanted = [min(round(fraction * n), max(n - 1, 0)) for n in sizes.tolist()]
  if fraction and not any(wanted):
    assert held.sum() == 1
  else:
    assert held.tolist() == wanted
  again = windows_lib.split_episodes(tasks, fraction, seed)
  np.testing.assert_array_equal(validation, again[1])


def test_split_depends_on_the_seed_and_refuses_nonsense():
  tasks = np.repeat([0, 1], 20)
  splits = {tuple(windows_lib.split_episodes(tasks, 0.3, seed)[1]) for seed in range(5)}
  assert len(splits) == 5
  with pytest.raises(ValueError, match="1 episodes in 1 tasks"):
    windows_lib.split_episodes(np.array([0]), 0.1, 0)
  with pytest.raises(ValueError, match="no episodes"):
    windows_lib.split_episodes(np.array([], int), 0.1, 0)
  for fraction in (-0.1, 1.0, float("nan")):
    with pytest.raises(ValueError, match="must be in"):
      windows_lib.split_episodes(tasks, fraction, 0)
