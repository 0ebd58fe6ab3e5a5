"""What the gRPC service refuses or gives up: it is told, no episode goes on, and nobody waits."""

from concurrent import futures
import contextlib
import threading
import time

from episodes import connected
from episodes import grpc
from episodes import observation
from episodes import ours
from episodes import remote
from episodes import Scripted
from episodes import serving
from episodes import step
from episodes import wait_until
import numpy as np
import pytest

from oat_jax.serve import service as service_lib

TOKEN = "0123456789abcdef"
PREDICT = ours.messages.DESCRIPTOR.services_by_name["PolicyService"].full_name + "/Predict"
TOLD = (("authorization", f"Api-Key {TOKEN}"),)


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
    raise RuntimeError("secret of the host")

  monkeypatch.setattr(service.policy, "act_on", breaks)
  client.reset()
  with pytest.raises(grpc.RpcError) as error:
    client.predict_action([observation(0)], episode_ids=["e"])
  assert error.value.code() == grpc.StatusCode.INTERNAL
  assert error.value.details() == "the server failed"


def test_steps_of_a_chunk_that_it_does_not_have_are_refused(service):
  with pytest.raises(ValueError, match=r"replan is 9; it must be in 1\.\.8"):
    ours.Handler(service, replan=9)


def test_where_one_of_a_batch_fails_no_episode_goes_on(caplog):
  service = Scripted()
  with serving(service) as port, connected(port) as client:
    service.held = True
    with futures.ThreadPoolExecutor(1) as pool:
      asking = pool.submit(step, client, 0, 2)
      wait_until(service.has_asked(2))
      service.asked[1][2].set_exception(service_lib.NotFinite("the chunk holds NaN"))
      with pytest.raises(grpc.RpcError, match="the chunk holds NaN") as error:
        asking.result()
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert service.asked[0][2].cancelled()
    assert 'kind="server"} 1' in service.figures.text()
    assert "the chunk holds NaN" in caplog.text
    service.held = False
    assert step(client, 10, 2) == [2.0, 3.0]
  for asked, seed in zip(service.asked[2:], (10, 11)):
    np.testing.assert_array_equal(asked[0]["state"], observation(seed)["state"][None])
    assert "last_action" not in asked[1]


def test_a_wrong_observation_leaves_no_trace(client, service):
  wrong = [{"state": np.full(5, np.nan, np.float32), "task": "push"}]
  several = [{"state": np.zeros((2, 5), np.float32), "task": "push"}]
  bad = [wrong, [{"state": np.zeros(4, np.float32), "task": "push"}], [{"task": "push"}], several]
  act = lambda i: client.predict_action([observation(i)], episode_ids=["one"])[0]
  found = []
  for i in range(4):
    for observations in bad:
      with pytest.raises(grpc.RpcError) as error:
        client.predict_action(observations, episode_ids=["one"])
      assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    found.append(act(i))
  first_CA, _ = service.policy.act(observation(0))
  np.testing.assert_allclose(found[:3], first_CA[:3], atol=1e-6)
  both = {"state": np.stack([observation(i)["state"] for i in (2, 3)]), "task": "push"}
  second_CA, _ = service.policy.act(both, last_action=found[2])
  np.testing.assert_allclose(found[3], second_CA[0], atol=1e-6)


def test_all_of_a_request_has_one_deadline():
  service = Scripted()
  service.held = True
  with serving(service, request_s=0.5) as port, connected(port) as client:
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError, match="no answer in time") as error:
      step(client, count=8)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 3
    assert all(future.cancelled() for _, _, future in service.asked)
    assert 'kind="timeout"} 1' in service.figures.text()


@contextlib.contextmanager
def half_open(port, count, metadata):
  """Calls of Predict whose request does not come."""
  over = threading.Event()

  def requests():
    over.wait(60)
    yield from ()

  with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    method = channel.stream_unary("/" + PREDICT, lambda x: x, lambda x: x)
    try:
      yield [method.future(requests(), metadata=metadata, timeout=60) for _ in range(count)]
    finally:
      over.set()


def test_calls_that_do_not_end_block_nobody():
  service = Scripted()
  with serving(service, token=TOKEN, workers=2, request_s=30) as port, connected(port) as client:
    with half_open(port, 16, ()) as calls:
      assert {call.code() for call in calls} == {grpc.StatusCode.UNAUTHENTICATED}
      assert client.stub.HealthCheck(ours.messages.Empty(), metadata=TOLD, timeout=20).ready
  assert 'kind="token"} 16' in service.figures.text()


def test_who_has_the_token_must_end_a_request_too():
  with serving(Scripted(), token=TOKEN, workers=2, request_s=0.5) as port:
    with connected(port) as client, half_open(port, 4, TOLD) as calls:
      assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}
      assert client.stub.HealthCheck(ours.messages.Empty(), metadata=TOLD, timeout=20).ready


def test_a_call_without_a_message_is_told():
  with serving(Scripted()) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    method = channel.stream_unary("/" + PREDICT, lambda x: x, lambda x: x)
    with pytest.raises(grpc.RpcError, match="holds no message"):
      method(iter(()), timeout=60)


def test_failures_are_logged_and_told_where_that_is_wanted(caplog, monkeypatch):
  def breaks():
    raise TypeError("secret of the host")

  service = Scripted()
  monkeypatch.setattr(service, "metadata", breaks)
  for debug, told in ((False, "the server failed"), (True, "TypeError: secret of the host")):
    with serving(service, debug=debug) as port, connected(port) as client:
      with pytest.raises(grpc.RpcError) as error:
        client.health_check()
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.INTERNAL, told)
    assert caplog.text.count("TypeError: secret of the host") == 1 + debug


def test_a_port_that_is_taken_is_an_error():
  with serving(Scripted()) as port:
    with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{port}: the port is taken"):
      ours.start(Scripted(), "127.0.0.1", port)
