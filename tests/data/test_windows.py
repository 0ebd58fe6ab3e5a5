"""Windows against an oracle that writes out every step."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.data import normalization
from oat_jax.data import windows as windows_lib


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
  episodes = tiny.episodes(lengths, tasks=tasks)
  windows = windows_lib.Windows(
    episodes, np.array(ids), T, C, windows_lib.layout([episodes], action_dim=A)
  )
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
  episodes = tiny.episodes([3], tasks=[1])
  wide = windows_lib.layout([episodes], action_dim=5)
  spec = windows_lib.Windows(episodes, np.array([0]), 2, 4, wide).spec
  assert spec == batch_lib.BatchSpec(
    *(2, 4, 5, 3, ("task 0", "task 1"), 1), action_names=wide.action_names, dataset_names=("0",)
  )
  assert windows_lib.Windows(tiny.episodes([3]), np.array([0]), 2, 4).spec.action_dim == 2


def test_statistics_count_each_step_of_the_chosen_episodes_once():
  episodes = tiny.episodes([2, 3, 4])
  wide = windows_lib.layout([episodes], action_dim=3)
  windows = windows_lib.Windows(episodes, np.array([2, 0]), 2, 8, wide)
  chosen = np.r_[0:2, 5:9]
  actions = np.pad(episodes.actions_LA[chosen], ((0, 0), (0, 1)))
  for name, values in (("actions", actions), ("state", episodes.states_LS[chosen])):
    for got, expected in zip(windows.statistics()[name], normalization.compute(values)):
      np.testing.assert_array_equal(got, expected)
  assert windows.statistics()["actions"].count == 6
  given = {
    name: normalization.compute(np.eye(dims)) for name, dims in (("actions", 2), ("state", 3))
  }
  placed = windows.statistics(given)
  assert placed["actions"].max.tolist() == [1, 1, 0] and placed["state"].max.tolist() == [1, 1, 1]
  for wrong in ({"actions": given["actions"]}, given | {"state": given["actions"]}):
    with pytest.raises(ValueError, match="statistics of 'state': .*; the dataset has 3"):
      windows.statistics(wrong)


def test_bad_windows():
  episodes = tiny.episodes([2, 3])
  with pytest.raises(ValueError, match="have 2 dimensions, action_dim is 1"):
    windows_lib.layout([episodes], action_dim=1)
  for options, message in (
    ({"stride": 0}, "stride is 0"),
    ({"execute_horizon": 0}, "execute_horizon is 0"),
    ({"idle_below": 1e9}, "no step of the 1 episodes begins a window"),
    ({"idle_below": 0.0, "absolute": ("grip",)}, "absolute names 'grip'; the actions are action_0"),
  ):
    with pytest.raises(ValueError, match=message):
      windows_lib.Windows(episodes, np.array([0]), 1, 1, options=windows_lib.Options(**options))
  with pytest.raises(ValueError, match="0 to 2 were asked for, but the dataset has 2"):
    windows_lib.Windows(episodes, np.array([0, 2]), 1, 1)
  for ids in ([], [1, 1]):
    with pytest.raises(ValueError, match="distinct episodes"):
      windows_lib.Windows(episodes, np.array(ids, int), 1, 1)
  windows = windows_lib.Windows(episodes, np.array([0, 1]), 1, 1)
  for index in (-1, 5):
    with pytest.raises(IndexError, match=f"window {index} was asked for; there are 5"):
      windows(np.array([0, index]))


def begins(lengths, ids=None, episodes=None, **options):
  """The steps, within all episodes, that begin a window."""
  episodes = episodes or tiny.episodes(lengths)
  ids = np.arange(len(lengths)) if ids is None else np.array(ids)
  windows = windows_lib.Windows(episodes, ids, 1, 4, options=windows_lib.Options(**options))
  # The first action says the step: see tiny.episodes.
  first = windows(np.arange(len(windows)))["actions"][:, 0]
  return [int(np.flatnonzero((episodes.actions_LA == row).all(1))[0]) for row in first]


def test_stride_counts_from_each_episodes_first_step():
  assert begins([5, 4, 1], stride=2) == [0, 2, 4, 5, 7, 9]
  assert begins([5, 4, 1], ids=[2, 0], stride=3) == [9, 0, 3]


def test_what_is_executed_is_real():
  # Of an episode that is shorter than what is executed, the first window stays.
  assert begins([5, 2, 1], execute_horizon=3) == [0, 1, 2, 5, 7]
  assert begins([5, 2], execute_horizon=3, stride=2) == [0, 2, 5]


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.data())
def test_idle_windows_equal_the_slow_oracle(data):
  lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
  steps = sum(lengths)
  values = data.draw(
    st.lists(st.sampled_from([0.0, 0.05, 1.0]), min_size=2 * steps, max_size=2 * steps)
  )
  horizon = data.draw(st.integers(1, 4))
  # A small amount by step makes every action another one, below what counts as motion.
  own = np.arange(steps)[:, None] * 1e-5
  actions_LA = (np.array(values).reshape(steps, 2) + own).astype(np.float32)
  episodes = tiny.episodes(lengths)._replace(actions_LA=actions_LA)
  expected = []
  for start, end in zip(episodes.starts_E, episodes.starts_E[1:]):
    moves = lambda t, start=start: (
      abs(actions_LA[t, 0]) > 0.1
      or (t > start and abs(actions_LA[t, 1] - actions_LA[t - 1, 1]) > 0.1)
    )
    for t in range(start, end):
      if t > start and end - t < horizon:
        continue
      if any(moves(i) for i in range(t, min(t + horizon, end))):
        expected.append(t)
  options = {"execute_horizon": horizon, "idle_below": 0.1, "absolute": ("action_1",)}
  if not expected:
    with pytest.raises(ValueError, match="begins a window"):
      begins(lengths, episodes=episodes, **options)
  else:
    assert begins(lengths, episodes=episodes, **options) == expected


def test_layouts_align_datasets_by_the_names_of_their_dimensions():
  a = tiny.episodes([3])._replace(action_names=("dx", "gripper"), task_names=("lift",))
  b = tiny.episodes([4])._replace(action_names=("gripper", "dy"), state_names=("x", "state_1", "y"))
  layout = windows_lib.layout([a, b], action_dim=4)
  assert layout.action_names == ("dx", "gripper", "dy", "unused_3")
  assert layout.state_names == ("state_0", "state_1", "state_2", "x", "y")
  assert layout.task_names == ("lift", "task 0") and layout.dataset_names == ("0", "1")
  windows = windows_lib.Windows(b, np.array([0]), 2, 2, layout, dataset=1)
  batch = windows(np.array([1]))
  batch_lib.check(batch, windows.spec)
  assert batch["actions"][0, 0].tolist() == [0, 3, 4, 0]
  assert batch["action_dim_mask"][0].tolist() == [False, True, True, False]
  assert batch["observation"]["state"][0, 1].tolist() == [0, -5, 0, -4, -6]
  assert batch["observation"]["task"].tolist() == [1] and batch["dataset"].tolist() == [1]
  statistics = windows.statistics()["actions"]
  assert statistics.max.tolist() == [0, 7, 8, 0]

  given = windows_lib.layout([a, b], ("dy", "dx", "gripper"))
  assert windows_lib.Windows(a, np.array([0]), 1, 1, given)(np.array([0]))["actions"].tolist() == [
    [[0, 1, 2]]
  ]
  with pytest.raises(ValueError, match="'gripper' is not among those wanted: dx, dy"):
    windows_lib.layout([a, b], ("dx", "dy"))
  for wrong in (("dx", "dy", "gripper", "dx"), ("dx", "dy", "gripper", "typo")):
    with pytest.raises(ValueError, match=f"action dimension '{wrong[-1]}' is named twice, or no"):
      windows_lib.layout([a, b], wrong)


def test_language_may_change_within_an_episode():
  episodes = tiny.episodes([4])._replace(
    tasks_L=np.array([0, 0, 1, 1], np.int32), task_names=("go", "stop")
  )
  windows = windows_lib.Windows(episodes, np.array([0]), 2, 2)
  assert windows(np.arange(4))["observation"]["task"].tolist() == [0, 0, 1, 1]
