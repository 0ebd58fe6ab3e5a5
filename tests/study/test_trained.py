"""What is noted of the calls of a working directory's policy."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax.evaluate import subject
from oat_jax.policies import anytime
from oat_jax.policies.policy import Policy
from oat_jax.study import trained
from oat_jax.train import models

TASKS = ("push", "lift", "push")
B = len(TASKS)


@pytest.fixture
def acting(monkeypatch):
  """Makes the subject whose policy is a function, over `tokens` or none."""
  monkeypatch.setattr(models, "digest", lambda of: "0")

  def make(act, tokens=8):
    spec, nothing = tiny.spec(), dict.fromkeys(("init", "axes", "loss", "evaluate", "prepare"))
    policy = Policy(**nothing, act=act, spec=spec, max_tokens=tokens or 1)
    data = SimpleNamespace(state=("observation/state",), path="")
    config = SimpleNamespace(kind="policy", data=data, model={"name": "function"})
    tokenizer = SimpleNamespace(max_tokens=tokens, pad_id=None) if tokens else None
    return trained.Trained(models.Trained(config, spec, policy, tokenizer, {}, 3))

  return make


def stopping(spent):
  def act(params, batch, key, num_tokens, sampling, tolerance):
    return jnp.zeros((B, 8, 3)), spent(num_tokens)

  return act


@pytest.mark.parametrize(
  "spent, tokens, expected",
  [
    (lambda K: {}, 0, [0] * B),
    (lambda K: {"num_tokens": K}, 8, [5] * B),
    (lambda K: {"num_tokens": np.array([1, 4, 2])}, 8, [1, 4, 2]),
  ],
)
def test_tokens_are_counted_for_each_row(acting, spent, tokens, expected):
  drive = subject.driver(acting(stopping(spent), tokens), TASKS, 5)
  acted = drive(tiny.simulated(), np.ones(B, bool), None)
  assert acted.num_tokens_B.tolist() == expected
  assert acted.actions_BCA.shape == (B, 8, 3) and isinstance(acted.actions_BCA, np.ndarray)


def test_compilation_is_not_in_the_milliseconds(acting, monkeypatch):
  """A clock that moves 1 s for every trace and 1 ms for whatever else is asked."""
  now = [0.0]

  def clock():
    now[0] += 0.001
    return now[0]

  def slow_to_trace(params, batch, key, num_tokens, sampling, tolerance):
    now[0] += 1.0
    return jnp.zeros((B, 8, 3)), {}

  monkeypatch.setattr(anytime.time, "perf_counter", clock)
  drive = subject.driver(acting(slow_to_trace), TASKS, 5)
  times = [drive(tiny.simulated(), np.ones(B, bool), None).ms for _ in range(3)]
  assert times == pytest.approx([1.0] * 3) and now[0] > 1
