"""Acting under a budget: prefix lengths, deadlines, refinement; and how its tolerance is found."""

import jax
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.policies import anytime
from oat_jax.policies import Sampling

N = 8
SPEC = tiny.spec()


@pytest.fixture(scope="module")
def policy():
  return tiny.policy(SPEC, tiny.tokenizer(SPEC))


@pytest.fixture(scope="module")
def params(policy):
  params = tiny.init(policy, tiny.init(tiny.tokenizer(SPEC)))
  params["network"]["to_logits"]["w"] *= 20
  params["network"]["positions"] *= 0
  return params


@pytest.fixture(scope="module")
def robot(policy, params):
  return anytime.Anytime(policy, params, tolerance=0.0)


def seen(rows=1):
  made = batch_lib.fake(SPEC, rows)
  return {name: made[name] for name in batch_lib.ACTING}


def slow(robot, monkeypatch, ms):
  """Makes prefixes take these milliseconds, as if they had been measured."""
  monkeypatch.setattr(robot, "_ms", {(1, ""): dict(zip(range(1, N + 1), ms))})


def test_a_prefix_is_the_policy_s_own(robot, policy, params):
  for K in (1, 5, 8):
    chunk_BCA, info = robot.act(seen(3), num_tokens=K)
    key = jax.random.fold_in(jax.random.key(0), 0)
    expected_BCA, expected = jax.jit(policy.act)(params, seen(3), key, K)
    np.testing.assert_allclose(chunk_BCA, expected_BCA, atol=1e-6)
    np.testing.assert_array_equal(info["tokens_BN"], expected["tokens_BN"])
    assert (info["num_tokens"] == K).all() and info["deadline_met"] and info["ms"] > 0
  whole, _ = robot.act(seen(3))
  np.testing.assert_array_equal(whole, chunk_BCA)


def test_the_most_tokens_that_fit_a_deadline_are_taken(robot, monkeypatch):
  slow(robot, monkeypatch, [1, 2, 3, 4, 5, 6, 7, 8])
  for deadline, K in ((1.0, 1), (3.5, 3), (8.0, 8), (100, 8)):
    info = robot.act(seen(), deadline_ms=deadline)[1]
    assert info["num_tokens"].tolist() == [K] and info["deadline_met"]
  assert robot.act(seen(), deadline_ms=100, num_tokens=2)[1]["num_tokens"] == 2
  # A machine that hiccupped when a short prefix was measured: the longer one that fits is taken.
  slow(robot, monkeypatch, [1, 9, 3, 4, 5, 6, 7, 8])
  assert robot.act(seen(), deadline_ms=3.5)[1]["num_tokens"] == 3


def test_a_deadline_that_nothing_meets_takes_one_token_and_says_so(robot, monkeypatch):
  slow(robot, monkeypatch, [1, 2, 3, 4, 5, 6, 7, 8])
  chunk_BCA, info = robot.act(seen(), deadline_ms=0.5)
  assert info["num_tokens"].tolist() == [1] and info["deadline_met"] is False
  np.testing.assert_array_equal(chunk_BCA, robot.act(seen(), num_tokens=1)[0])


def test_what_is_measured_is_the_time_that_acting_takes(policy, params, monkeypatch):
  robot, costs = anytime.Anytime(policy, params), {}

  def act(batch, *, num_tokens, stop, tolerance, call):
    costs[num_tokens] = costs.get(num_tokens, -1) + 1
    return None, {"ms": num_tokens + (100 if costs[num_tokens] < 3 else 0)}  # cold caches

  monkeypatch.setattr(robot, "act", act)
  measured = robot.measure(seen(), repeats=10)
  assert measured == pytest.approx({K: K for K in range(1, N + 1)})
  assert set(costs.values()) == {12}
  monkeypatch.setattr(anytime, "MEASURED", 3)
  assert list(robot.measure(seen(), repeats=1)) == [1, 5, 8]


def test_compiling_is_not_in_the_milliseconds(policy, params, monkeypatch):
  robot, now = anytime.Anytime(policy, params), [0.0]
  act, seconds = robot._act, iter([100.0, 1.0, 2.0])  # the first call compiles

  def takes(*arguments):
    now[0] += next(seconds)
    return act(*arguments)

  monkeypatch.setattr(robot, "_act", takes)
  monkeypatch.setattr(anytime.time, "perf_counter", lambda: now[0])
  assert [robot.act(seen())[1]["ms"] for _ in range(2)] == [1000.0, 2000.0]


def test_a_deadline_measures_by_itself_for_each_batch_size(policy, params, monkeypatch):
  robot, measured = anytime.Anytime(policy, params, tolerance=0.0), []

  def measure(batch, stop, tolerance):
    B = len(batch["dataset"])
    measured.append((B, stop))
    times = {K: float(K * B * (2 if stop else 1)) for K in range(1, N + 1)}
    robot._ms[B, stop] = times
    return times

  monkeypatch.setattr(robot, "measure", measure)
  spent = [robot.act(seen(B), deadline_ms=6)[1]["num_tokens"].tolist() for B in (1, 3, 1)]
  assert measured == [(1, ""), (3, "")] and spent == [[6], [2] * 3, [6]]
  # Ending early is another program, and takes its own time.
  assert robot.act(seen(), deadline_ms=6, stop="refinement")[1]["num_tokens"].tolist() == [3]
  assert measured[2:] == [(1, "refinement")]


def test_refinement_ends_each_row_by_its_tolerance(policy, params, robot):
  expected_BX = robot.act(seen(30), stop="refinement")[1]["refinement_BX"]
  tolerance = anytime.calibrate(expected_BX, policy.budgets, 4.0)
  calibrated = anytime.Anytime(policy, params, tolerance=tolerance)
  spent_B = calibrated.act(seen(30), stop="refinement")[1]["num_tokens"]
  np.testing.assert_array_equal(spent_B, anytime.spent(expected_BX, policy.budgets, tolerance))
  assert 1 < spent_B.mean() <= 4 and len(set(spent_B.tolist())) > 1
  at_most = calibrated.act(seen(30), stop="refinement", num_tokens=2)[1]["num_tokens"]
  np.testing.assert_array_equal(at_most, np.minimum(spent_B, 2))


@pytest.mark.parametrize("budgets", [(1, 2, 3, 4), (1, 2, 4, 8)])
def test_the_tolerance_is_the_smallest_that_keeps_the_mean(budgets):
  rng = np.random.default_rng(0)
  expected_WX = np.exp(rng.normal(-np.arange(4.0), 1, (50, 4)))
  ends = lambda row, t: next((K for K, e in zip(budgets, row) if e <= t), budgets[-1])
  mean = lambda t: np.mean([ends(row, t) for row in expected_WX])
  for wanted in (1.0, 1.7, 2.5, float(budgets[-1])):
    tolerance = anytime.calibrate(expected_WX, budgets, wanted)
    assert mean(tolerance) <= wanted
    smaller = expected_WX[expected_WX < tolerance]
    assert not len(smaller) or mean(smaller.max()) > wanted
  assert anytime.calibrate(expected_WX, budgets, budgets[-1]) == 0


def test_draws_differ_by_call_only(policy, params):
  robot = anytime.Anytime(policy, params, sampling=Sampling(1.0, 10))
  one, again, other = (robot.act(seen(4), call=call)[1]["tokens_BN"] for call in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert not np.array_equal(one, other)
  counted = [robot.act(seen(4))[1]["tokens_BN"] for _ in range(3)]  # calls 0, 1, 2
  np.testing.assert_array_equal(counted[1:], [one, other])


def test_a_policy_without_tokens_acts_too():
  policy = tiny.policy(SPEC, name="regression")
  robot = anytime.Anytime(policy, jax.jit(policy.init)(jax.random.key(0)))
  chunk_BCA, info = robot.act(seen(2), deadline_ms=1e6)
  assert chunk_BCA.shape == (2, 8, 3) and info["num_tokens"].tolist() == [0, 0]
  with pytest.raises(ValueError, match="num_tokens is 2; it must be in 1..1"):
    robot.act(seen(), num_tokens=2)


def test_what_cannot_be_is_an_error(policy, params, robot):
  for settings, message in [
    ({"num_tokens": 0}, "num_tokens is 0; it must be in 1..8"),
    ({"num_tokens": 9}, "num_tokens is 9; it must be in 1..8"),
    ({"deadline_ms": 0}, "deadline_ms is 0; it must be above 0"),
    ({"stop": "now"}, "stop is 'now'; it must be one of"),
  ]:
    with pytest.raises(ValueError, match=message):
      robot.act(seen(), **settings)
  with pytest.raises(ValueError, match="no tolerance was given; see anytime.calibrate"):
    anytime.Anytime(policy, params).act(seen(), stop="refinement")
  with pytest.raises(ValueError, match="has not learned refinements"):
    anytime.Anytime(tiny.policy(SPEC, name="regression"), {}, tolerance=0.1)
  broken = seen()
  broken["observation"]["state"][0, 0, 0] = np.nan
  with pytest.raises(ValueError, match="holds NaN"):
    robot.act(broken)
  with pytest.raises(ValueError, match="have shape .*; 8 columns"):
    anytime.calibrate(np.ones((3, 4)), policy.budgets, 4)
  with pytest.raises(ValueError, match="mean_tokens is 9; it must be in 1..8"):
    anytime.calibrate(np.ones((3, 8)), policy.budgets, 9)
