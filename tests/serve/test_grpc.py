"""praxis-remote's own client against our service: queues and histories by episode."""

from concurrent import futures
import contextlib
import json
import socket
import threading
import time
import types
import weakref

import numpy as np
import pytest
import tiny

from oat_jax.export import loader
from oat_jax.serve import figures
from oat_jax.serve import keymap
from oat_jax.serve import service as service_lib

grpc = pytest.importorskip("grpc", reason="the extra `serve` is not installed")
remote = pytest.importorskip("praxis_remote.client", reason="the extra `serve` is not installed")
ours = pytest.importorskip("oat_jax.serve.grpc")

TOKEN = "0123456789abcdef"
PREDICT = ours.messages.DESCRIPTOR.services_by_name["PolicyService"].full_name + "/Predict"
TOLD = (("authorization", f"Api-Key {TOKEN}"),)


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


@pytest.mark.parametrize("settings", [{}, {"episode_ids": ["same", "names"]}])
def test_clients_do_not_disturb_each_other(settings):
  with serving(Scripted()) as port, connected(port) as one, connected(port) as two:
    assert step(one, count=2, **settings) == [0.0, 1.0]
    assert step(two, count=2, **settings) == [2.0, 3.0]
    assert step(one, count=2, **settings) == [0.01, 1.01]
    two.reset(**settings)
    two.reset()
    assert step(one, count=2, **settings) == [0.02, 1.02]
    assert step(two, count=2, **settings) == [4.0, 5.0]


def test_a_client_that_gave_up_asks_again_and_nothing_is_lost():
  service = Scripted()
  with serving(service) as port, connected(port) as client:
    assert [step(client, i) for i in range(3)] == [[0.0], [0.01], [0.02]]
    service.held = True
    with pytest.raises(grpc.RpcError) as error:
      step(client, 3, timeout=0.3)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: service.asked[1][2].cancelled())
    service.held = False
    assert [step(client, i) for i in (3, 4)] == [[2.0], [2.01]]
  (before, settings, _), (again, same, _) = service.asked[1:]
  np.testing.assert_array_equal(before["state"], again["state"])
  np.testing.assert_array_equal(again["state"], np.stack([observation(i)["state"] for i in (2, 3)]))
  np.testing.assert_array_equal(settings["last_action"], same["last_action"])


def test_a_retry_beside_the_first_call_goes_on_in_the_same_chunk():
  service = Scripted()
  service.held = True
  with serving(service) as port, connected(port) as client:
    first = begin(client, "a")
    wait_until(service.has_asked(1))
    second, given_up = begin(client, "a"), begin(client, "a")
    time.sleep(0.3)
    assert given_up.cancel()
    assert len(service.asked) == 1
    service.answer(0)
    assert (told(first), told(second)) == (0.0, 0.01)
    assert step(client, episode_ids=["a"]) == [0.02]
    assert len(service.asked) == 1


def test_batches_that_name_the_same_episodes_in_another_order_do_not_wait_for_ever():
  with serving(Scripted()) as port, connected(port) as one:
    with futures.ThreadPoolExecutor(8) as pool:
      orders = [["a", "b"], ["b", "a"]] * 40
      found = list(pool.map(lambda names: step(one, count=2, episode_ids=names), orders))
  assert len(found) == 80


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


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_what_praxis_eval_sends_is_understood(kind):
  spec = tiny.spec(cameras=(("agentview", 4, 6), ("wrist", 4, 6)))
  service = Scripted(spec)
  frames = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 6, 3), np.uint8)
  with serving(service, keymap=keymap.load("praxis", spec), replan=1) as port:
    with connected(port) as client:
      for frame in frames:
        first = np.moveaxis(frame, -1, 1)
        sent = first.astype(np.float32) / 255 if kind == "float32" else first
        images = {"agentview": sent[0], "observation.images.wrist": sent[1]}
        client.predict_action_from_parts(np.ones(5, np.float32), images, "push")
      info = json.loads(client.health_check()[1])
  assert info["keymap"]["images"]["wrist"] == "observation.images.wrist"
  for i, moments in enumerate((frames[:1], frames[:2], frames[1:])):
    seen = service.asked[i][0]
    np.testing.assert_array_equal(seen["image_agentview"], moments[:, 0])
    np.testing.assert_array_equal(seen["image_wrist"], moments[:, 1])
    assert seen["task"] == "push"


def test_a_number_may_be_part_of_the_state():
  service = Scripted(names=keymap.Keymap(state=("joints", "gripper")))
  with serving(service, replan=1) as port, connected(port) as client:
    for gripper in (0.5, np.array(0.25)):
      joints = np.arange(4, dtype=np.float32)
      client.predict_action([{"joints": joints, "gripper": gripper, "task": "push"}])
  np.testing.assert_array_equal(
    service.asked[1][0]["state"], [[0, 1, 2, 3, x] for x in (0.5, 0.25)]
  )


def handled(handler, name, i=0):
  return round(float(handler.predict([observation(i)], {}, [("peer", name)])[0, 0]), 2)


def test_episodes_are_forgotten_when_idle_and_when_there_are_too_many(monkeypatch):
  handler = ours.Handler(Scripted(), replan=3)
  monkeypatch.setattr(ours, "MAX_EPISODES", 2)
  assert [handled(handler, name) for name in "abc"] == [0.0, 1.0, 2.0]
  assert [handled(handler, name) for name in "cba"] == [2.01, 1.01, 3.0]
  monkeypatch.setattr(ours, "IDLE_S", 0.2)
  time.sleep(0.3)
  assert handled(handler, "a") == 4.0
  assert len(handler._episodes) == 1
  with pytest.raises(ValueError, match="3 episodes in one request; 2 is the most"):
    handler.predict([observation(0)] * 3, {}, [("peer", i) for i in range(3)])


def test_for_who_is_gone_nothing_is_computed_and_no_action_is_taken():
  service = Scripted()
  handler = ours.Handler(service, replan=3)
  ask = lambda is_active: handler.predict([observation(0)], {}, [("peer", "a")], is_active)
  with pytest.raises(ours.Gone):
    ask(lambda: False)
  assert not service.asked
  with pytest.raises(ours.Gone):
    ask(lambda: not service.asked)
  assert [handled(handler, "a") for _ in range(2)] == [1.0, 1.01]
  with pytest.raises(ours.Gone):
    ask(lambda: False)
  assert handled(handler, "a") == 1.02


def test_nothing_of_a_request_is_kept_but_what_the_policy_sees():
  handler, extra = ours.Handler(Scripted(), replan=3), np.zeros(1000)
  gone = weakref.ref(extra)
  handler.predict([observation(0) | {"extra": extra}], {}, [("peer", 0)])
  del extra
  assert gone() is None


def test_a_port_that_is_taken_is_an_error():
  with serving(Scripted()) as port:
    with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{port}: the port is taken"):
      ours.start(Scripted(), "127.0.0.1", port)


def test_an_address_of_ipv6_is_listened_on():
  try:
    with socket.socket(socket.AF_INET6) as probe:
      probe.bind(("::1", 0))
  except OSError:
    pytest.skip("there is no IPv6 here")
  server, port = ours.start(Scripted(), "::1", 0)
  try:
    with remote.PolicyClient("[::1]", port, timeout=60) as client:
      assert client.health_check()[0]
  finally:
    server.stop(None).wait()
