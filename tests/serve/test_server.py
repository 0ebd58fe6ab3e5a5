"""A server in this process, over its own sockets: answers, batches, deadlines, and its end."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest
from served import ask
from served import connect
from served import get
from served import observation
from served import serving
from served import websockets

from oat_jax.serve import wire


def test_a_client_is_told_what_the_policy_is_and_gets_its_chunks(server, policy):
  connection, metadata = connect(server[0])
  assert metadata["action_horizon"] == 8 and metadata["tasks"] == ["lift", "push"]
  assert metadata["observation"]["state"]["shape"] == ["B", 2, 5]
  assert metadata["observation_steps"] == 2 and "the last 2 moments" in metadata["history"]
  assert metadata["limits"] == dict(policy.spec.limits)
  with connection:
    for K in (1, 4, 8):
      answer = ask(connection, observation(K) | {"num_tokens": K})
      wanted_CA, _ = policy.act(observation(K), num_tokens=K)
      assert answer["actions"].dtype == np.float32 and answer["num_tokens"] == K
      np.testing.assert_allclose(answer["actions"], wanted_CA, rtol=0, atol=1e-6)
      timing = answer["server_timing"]
      assert 0 < timing["infer_ms"] <= timing["total_ms"] < 1e4
    assert timing["prev_total_ms"] > 0
    held = ask(connection, observation() | {"last_action": np.zeros(3), "episode_id": "a"})
    assert held["episode_id"] == "a"
    rate_A = np.asarray(policy.spec.limits["rate"])
    assert (np.abs(held["actions"][0]) <= rate_A + 1e-6).all()


def test_nothing_is_remembered_from_one_request_to_the_next(server, policy):
  """A moment of the request before is not the moment before, nor is one of another episode."""
  seen = observation()
  single = seen | {"state": seen["state"][1]}
  alone_CA, both_CA = policy.act(single)[0], policy.act(seen)[0]
  assert not np.allclose(alone_CA, both_CA)
  with connect(server[0])[0] as connection:
    for episode in ({}, {"episode_id": "a"}, {"episode_id": "a"}, {"episode_id": "b"}):
      ask(connection, observation(3) | episode)
      answer = ask(connection, single | episode)
      np.testing.assert_allclose(answer["actions"], alone_CA, rtol=0, atol=1e-6)
      assert answer.get("episode_id") == episode.get("episode_id")
    answer = ask(connection, seen | {"episode_id": "b"})
    np.testing.assert_allclose(answer["actions"], both_CA, rtol=0, atol=1e-6)


def test_a_seed_is_run_alone_where_draws_are_random(policy, monkeypatch):
  monkeypatch.setitem(policy.spec.sampling, "temperature", 1.0)
  held, sizes, act_on = threading.Event(), [], policy.act_on

  def slow(batch, **settings):
    sizes.append((settings["seed"], len(batch["dataset"])))
    held.wait(30)
    return act_on(batch, **settings)

  policy.act_on = slow
  try:
    with serving(policy, max_batch=4, warm=False) as (port, service, _):

      def run(seed):
        with connect(port)[0] as connection:
          return ask(connection, observation() | ({} if seed is None else {"seed": seed}))

      with concurrent.futures.ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(run, seed) for seed in (None, None, None, 7, 7, 7)]
        while 'requests_total{protocol="websocket"} 6' not in service.figures.text():
          time.sleep(0.01)
        time.sleep(0.1)
        held.set()
        assert all(future.result(60)["num_tokens"] == 8 for future in futures)
  finally:
    del policy.act_on
  assert sizes.count((7, 1)) == 3 and sum(seed == 7 for seed, _ in sizes) == 3


def test_a_deadline_that_the_queue_has_passed_is_missed(policy):
  held, act_on = threading.Event(), policy.act_on
  policy.act_on = lambda batch, **settings: (held.wait(30), act_on(batch, **settings))[1]
  try:
    with serving(policy, warm=False) as (port, service, _):
      threading.Timer(0.3, held.set).start()
      with connect(port)[0] as connection:
        late = ask(connection, observation() | {"deadline_ms": 100})
        assert late["deadline_met"] is False and late["server_timing"]["total_ms"] > 100
      assert "oat_jax_deadlines_missed_total 1" in service.figures.text()
  finally:
    held.set()
    del policy.act_on


def test_deadlines_and_early_ends_are_the_client_s_choice(server):
  connection, metadata = connect(server[0])
  with connection:
    assert ask(connection, observation() | {"deadline_ms": 1e4})["num_tokens"] == 8
    hurried = ask(connection, observation() | {"deadline_ms": 1e-6})
    assert hurried["num_tokens"] == 1 and hurried["deadline_met"] is False
    ended = ask(connection, observation() | {"mean_tokens": 1})
    assert 1 <= ended["num_tokens"] <= 8 and "1" in metadata["tolerances"]


def test_concurrent_clients_are_batched_and_each_gets_its_own(policy):
  held = threading.Event()
  with serving(policy, max_batch=4, warm=False) as (port, service, _):
    act_on, sizes = policy.act_on, []

    def slow(batch, **settings):
      sizes.append(len(batch["dataset"]))
      held.wait(30)
      return act_on(batch, **settings)

    policy.act_on = slow
    try:

      def run(i):
        with connect(port)[0] as connection:
          return ask(connection, observation(i))["actions"]

      with concurrent.futures.ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(run, i) for i in range(9)]
        while (
          sum(
            "websocket" in line and line.endswith(" 9")
            for line in service.figures.text().splitlines()
          )
          < 1
        ):
          time.sleep(0.01)
        held.set()
        found = [future.result(60) for future in futures]
    finally:
      del policy.act_on
    for i, actions_CA in enumerate(found):
      np.testing.assert_allclose(actions_CA, policy.act(observation(i))[0], rtol=0, atol=1e-5)
    assert len(sizes) <= 5 and max(sizes) == 4  # 9 requests


def test_any_order_of_bytes_and_layout_will_do(server, policy):
  connection, _ = connect(server[0])
  seen = observation()
  wide = np.zeros((2, 10))
  wide[:, ::2] = seen["state"]
  with connection:
    for state in (seen["state"].astype(">f8"), wide[:, ::2], np.asfortranarray(seen["state"])):
      answer = ask(connection, seen | {"state": state})
      np.testing.assert_allclose(answer["actions"], policy.act(seen)[0], rtol=0, atol=1e-6)


def test_stopping_answers_what_was_asked(policy):
  held = threading.Event()
  act_on = policy.act_on
  policy.act_on = lambda batch, **settings: (held.wait(30), act_on(batch, **settings))[1]
  try:
    with serving(policy, warm=False) as (port, service, stop):
      asking, idle = connect(port)[0], connect(port)[0]
      with asking, idle:
        asking.send(wire.pack(observation()))
        while not service.figures.text().count('protocol="websocket"} 1'):
          time.sleep(0.01)
        stopping = threading.Thread(target=stop)
        stopping.start()
        time.sleep(0.1)
        held.set()
        assert wire.unpack(asking.recv(timeout=30))["actions"].shape == (8, 3)
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
          idle.recv(timeout=30)
        assert closed.value.rcvd.code == 1001
        stopping.join(30)
      with pytest.raises(OSError):
        connect(port)
  finally:
    held.set()
    del policy.act_on


def test_figures_say_what_was_done(server):
  port, _ = server
  connection, _ = connect(port)
  with connection:
    ask(connection, observation() | {"num_tokens": 2})
  _, text = get(port, "/metrics")
  for part in (
    'oat_jax_latency_ms_bucket{num_tokens="2",le="+Inf"} ',
    'oat_jax_requests_total{protocol="websocket"} ',
    'oat_jax_batch_rows_bucket{le="1"} ',
    "oat_jax_clients ",
  ):
    assert part in text
  for line in text.splitlines():
    assert line.startswith("# TYPE ") or float(line.rpartition(" ")[2]) >= 0, line
