"""praxis-remote's own client against our service: queues and histories by episode."""

from concurrent import futures
import json
import socket
import time
import weakref

from episodes import begin
from episodes import connected
from episodes import grpc
from episodes import handled
from episodes import observation
from episodes import ours
from episodes import remote
from episodes import Scripted
from episodes import serving
from episodes import step
from episodes import told
from episodes import wait_until
import numpy as np
import pytest
import tiny

from oat_jax.serve import keymap


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
    figure = lambda text: lambda: text in service.figures.text()
    wait_until(figure('requests_total{protocol="grpc"} 3'))
    assert given_up.cancel()
    wait_until(figure('errors_total{kind="cancelled"} 1'))
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
