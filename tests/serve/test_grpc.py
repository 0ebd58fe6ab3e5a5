"""praxis-remote's own client against our service: queues and histories by episode."""

import json

import numpy as np
import pytest

from oat_jax.export import loader
from oat_jax.serve import keymap
from oat_jax.serve import service as service_lib

grpc = pytest.importorskip("grpc", reason="the extra `serve` is not installed")
remote = pytest.importorskip("praxis_remote.client", reason="the extra `serve` is not installed")
ours = pytest.importorskip("oat_jax.serve.grpc")


@pytest.fixture(scope="module")
def service(policy_export):
  policy = loader.load(policy_export)
  made = service_lib.Service(policy, keymap.load("", policy.spec.batch), max_batch=4)
  yield made
  made.close()


@pytest.fixture
def client(service):
  server, port = ours.start(service, "127.0.0.1", 0, replan=3)
  with remote.PolicyClient("127.0.0.1", port, timeout=60) as made:
    yield made
  server.stop(None).wait()


def observation(seed, task="push"):
  rng = np.random.default_rng(seed)
  return {"state": rng.uniform(-1, 1, 5).astype(np.float32), "task": task}


def test_the_service_says_what_it_is(client, service):
  ready, info = client.health_check()
  assert ready and json.loads(info)["tasks"] == ["lift", "push"]


def test_a_chunk_is_executed_for_so_many_steps_and_made_anew_with_what_was_seen(client, service):
  policy = service.policy
  act = lambda i: client.predict_action([observation(i)], episode_ids=["one"])[0]
  found = [act(i) for i in range(6)]
  first_CA, _ = policy.act(observation(0))
  np.testing.assert_allclose(found[:3], first_CA[:3], atol=1e-6)
  both = {"state": np.stack([observation(i)["state"] for i in (2, 3)]), "task": "push"}
  second_CA, _ = policy.act(both, last_action=found[2])
  np.testing.assert_allclose(found[3:], second_CA[:3], atol=1e-6)
  assert not np.allclose(found[3], first_CA[3])


def test_episodes_do_not_see_each_other_and_are_forgotten_when_reset(client, service):
  fresh_CA, _ = service.policy.act(observation(5))
  names = ["a", "b", "c"]
  step = lambda i: client.predict_action([observation(i + j) for j in range(3)], episode_ids=names)
  step(0)
  assert step(10).shape == (3, 3)
  assert client.reset(episode_ids=["b"])
  found_BA = client.predict_action([observation(20), observation(5)], episode_ids=["a", "b"])
  np.testing.assert_allclose(found_BA[1], fresh_CA[0], atol=1e-6)
  assert client.reset()
  again_A = client.predict_action([observation(5)], episode_ids=["a"])[0]
  np.testing.assert_allclose(again_A, fresh_CA[0], atol=1e-6)


def test_settings_go_along(client, service):
  settings = {"num_tokens": 1, "replan": 1}
  client.reset()
  coarse = client.predict_action([observation(1)], policy_kwargs=settings, episode_ids=["x"])[0]
  np.testing.assert_allclose(
    coarse, service.policy.act(observation(1), num_tokens=1)[0][0], atol=1e-6
  )
  assert 'num_tokens="1",le="+Inf"} 1' in service.figures.text()


@pytest.mark.parametrize(
  ("observations", "settings", "message"),
  [
    ([{"state": np.zeros(4, np.float32), "task": "push"}], {}, r"expected \[5\]"),
    ([{"state": np.zeros(5, np.float32), "task": "sing"}], {}, "there is no task 'sing'"),
    ([{"task": "push"}], {}, "has no 'state'"),
    ([observation(0)], {"num_tokens": 9}, "whole number in 1..8"),
    ([observation(0)], {"replan": 9}, r"'replan' is 9; a whole number in 1\.\.8"),
    ([observation(0)], {"speed": 1}, "there is no setting 'speed'"),
  ],
)
def test_a_wrong_request_is_told_and_the_service_goes_on(observations, settings, message, client):
  client.reset()
  with pytest.raises(grpc.RpcError, match=message) as error:
    client.predict_action(observations, policy_kwargs=settings, episode_ids=["e"])
  assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
  client.reset()
  assert client.predict_action([observation(0)], episode_ids=["e"]).shape == (1, 3)


def test_an_episode_twice_in_a_request_is_an_error(client):
  with pytest.raises(grpc.RpcError, match="twice in one request"):
    client.predict_action([observation(0)] * 2, episode_ids=["e", "e"])


def test_without_the_token_nobody_is_answered(service):
  server, port = ours.start(service, "127.0.0.1", 0, token="0123456789abcdef")
  try:
    with remote.PolicyClient("127.0.0.1", port, timeout=60) as client:
      with pytest.raises(grpc.RpcError) as error:
        client.health_check()
      assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
      told = (("authorization", "Api-Key 0123456789abcdef"),)
      assert client.stub.HealthCheck(ours.messages.Empty(), metadata=told).ready
  finally:
    server.stop(None).wait()


def test_a_failure_inside_is_not_told(service, client, monkeypatch):
  def breaks(batch, **settings):
    raise RuntimeError("secret of /home/user")

  monkeypatch.setattr(service.policy, "act_on", breaks)
  client.reset()
  with pytest.raises(grpc.RpcError) as error:
    client.predict_action([observation(0)], episode_ids=["e"])
  assert error.value.code() == grpc.StatusCode.INTERNAL
  assert error.value.details() == "the server failed"


def test_steps_of_a_chunk_that_it_does_not_have_are_refused(service):
  with pytest.raises(ValueError, match=r"replan is 9; it must be in 1\.\.8"):
    ours.Handler(service, replan=9)
