"""praxis-remote's own client, and a policy whose actions say which step of which chunk they are."""

from concurrent import futures
import contextlib
import time
import types

import numpy as np
import pytest
import tiny

from oat_jax.serve import figures
from oat_jax.serve import keymap
from oat_jax.serve import service as service_lib

grpc = pytest.importorskip("grpc", reason="the extra `serve` is not installed")
remote = pytest.importorskip("praxis_remote.client", reason="the extra `serve` is not installed")
ours = pytest.importorskip("oat_jax.serve.grpc")


def observation(seed, task="push"):
  rng = np.random.default_rng(seed)
  return {"state": rng.uniform(-1, 1, 5).astype(np.float32), "task": task}


class Scripted:
  """In a Service's place: action c of its i-th chunk is i + c / 100; `held` chunks wait."""

  def __init__(self, spec=None, names=None):
    spec = spec or tiny.spec()
    self.policy = types.SimpleNamespace(spec=types.SimpleNamespace(batch=spec))
    self.keymap = names or keymap.load("", spec)
    self.figures = figures.Figures()
    self.asked, self.held = [], False

  def metadata(self):
    return {"keymap": {}}

  def submit_observation(self, observation, settings):
    self.asked.append((observation, settings, futures.Future()))
    if not self.held:
      self.answer(len(self.asked) - 1)
    return self.asked[-1][2]

  def answer(self, i):
    spec = self.policy.spec.batch
    steps_C = i + np.arange(spec.action_horizon, dtype=np.float32) / 100
    actions_CA = np.repeat(steps_C[:, None], spec.action_dim, 1)
    self.asked[i][2].set_result(service_lib.Answer(actions_CA, 8, True, 1.0))

  def has_asked(self, count):
    return lambda: len(self.asked) == count


@contextlib.contextmanager
def serving(service, **settings):
  server, port = ours.start(service, "127.0.0.1", 0, **({"replan": 3} | settings))
  try:
    yield port
  finally:
    server.stop(None).wait()


@contextlib.contextmanager
def connected(port):
  """praxis-remote's client with a connection of its own, as if it were another process."""
  with remote.PolicyClient("127.0.0.1", port, timeout=60) as client:
    client.channel.close()
    alone = [("grpc.use_local_subchannel_pool", 1)]
    client.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=alone)
    client.stub = ours.stubs.PolicyServiceStub(client.channel)
    yield client


def step(client, i=0, count=1, **settings):
  """The first dimension of the actions that the client is told."""
  found_BA = client.predict_action([observation(i + row) for row in range(count)], **settings)
  return [round(float(x), 2) for x in found_BA[:, 0]]


def begin(client, name):
  """Asks without waiting."""
  request = ours.messages.PredictRequest(
    observations=ours.serialization.encode_observations([observation(0)]), episode_ids=[name]
  )
  return client.stub.Predict.future(request, timeout=60)


def told(future):
  return round(float(ours.serialization.decode_numpy_array(future.result().action)[0, 0]), 2)


def wait_until(condition, seconds=30):
  until = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.01)


def handled(handler, name, i=0):
  return round(float(handler.predict([observation(i)], {}, [("peer", name)])[0, 0]), 2)
