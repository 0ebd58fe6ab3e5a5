"""A server in this process, over its own sockets: answers, errors, limits, tokens, and its end."""

import asyncio
import concurrent.futures
import contextlib
import re
import socket
import threading
import time
import urllib.error
import urllib.request

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from oat_jax.export import loader
from oat_jax.serve import keymap
from oat_jax.serve import service as service_lib
from oat_jax.serve import websocket
from oat_jax.serve import wire

websockets = pytest.importorskip("websockets", reason="the extra `serve` is not installed")
client = pytest.importorskip("websockets.sync.client")


@pytest.fixture(scope="module")
def policy(policy_export):
  return loader.load(policy_export)


@contextlib.contextmanager
def serving(policy, token="", limits=None, debug=False, warm=True, **settings):
  """Yields (port, service, stop): a server in a thread of its own."""
  service = service_lib.Service(policy, keymap.load("", policy.spec.batch), **settings)
  if warm:
    service.warm_up(repeats=1)
  loop, ready = asyncio.new_event_loop(), concurrent.futures.Future()

  async def run():
    server = websocket.Server(service, token=token, limits=limits, debug=debug)
    port, over = await server.start("127.0.0.1", 0), asyncio.Event()
    ready.set_result((port, server, over))
    await over.wait()

  thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
  thread.start()
  port, server, over = ready.result(60)
  stopped = []

  def stop():
    if not stopped:
      stopped.append(True)
      asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
      loop.call_soon_threadsafe(over.set)
      thread.join(30)
      service.close()

  try:
    yield port, service, stop
  finally:
    stop()


@pytest.fixture(scope="module")
def server(policy):
  with serving(policy, max_batch=4) as (port, service, _):
    yield port, service


def connect(port, **settings):
  made = client.connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, **settings)
  return made, wire.unpack(made.recv(timeout=30))


def ask(connection, request):
  connection.send(request if isinstance(request, bytes | str) else wire.pack(request))
  answer = connection.recv(timeout=30)
  return answer if isinstance(answer, str) else wire.unpack(answer)


def observation(seed=0):
  rng = np.random.default_rng(seed)
  return {"state": rng.uniform(-1, 1, (2, 5)).astype(np.float32), "task": "push"}


def get(port, path, **headers):
  request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
  with urllib.request.urlopen(request, timeout=30) as response:
    return response.status, response.read().decode()


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


@pytest.mark.parametrize(
  ("request_", "message"),
  [
    ({"state": np.zeros(4), "task": "push"}, r"'state' has shape \[4\]; expected \[5\]"),
    ({"task": "push"}, "the request has no 'state'; it holds"),
    ({"state": np.zeros(5)}, "the request has no 'task'"),
    ({"state": np.zeros(5), "task": "sing"}, "there is no task 'sing'; the policy knows"),
    ({"state": np.zeros(5), "task": b"push"}, "'task' is b'push'; it must be a name"),
    ({"state": np.full(5, np.nan), "task": "push"}, "holds NaN or infinity"),
    ({"state": "text", "task": "push"}, "numbers are needed"),
    ({"state": None, "task": "push"}, "numbers are needed"),
    ({"state": np.zeros((1, 2, 5)), "task": "push"}, "a request is of one robot"),
    (observation() | {"num_tokens": 9}, r"'num_tokens' is 9; a whole number in 1\.\.8 is needed"),
    (observation() | {"num_tokens": 2.5}, "a whole number"),
    (observation() | {"num_tokens": np.zeros(2)}, "a whole number"),
    (observation() | {"mean_tokens": 8}, "mean_tokens is 8; the export knows tolerances for"),
    (observation() | {"seed": -1}, "'seed' is -1"),
    (observation() | {"deadline_ms": 0}, "'deadline_ms' is 0; it must be above 0"),
    (observation() | {"deadline_ms": "soon"}, "a number of milliseconds is needed"),
    (observation() | {"deadline_ms": float("nan")}, "it must be above 0"),
    (observation() | {"last_action": np.zeros(2)}, "3 finite numbers are needed"),
    (observation() | {"last_action": np.full(3, np.inf)}, "3 finite numbers are needed"),
    ([1, 2], "the request is list; a map is needed"),
    (observation() | {"num_tokens": "a" * 10**6}, r"'num_tokens' is 'a{59}\.\.\.; a whole number"),
    (observation() | {"last_action": np.full(3, 1e39)}, "3 finite numbers are needed"),
    (observation() | {"episode_id": 3}, "'episode_id' is 3; a text of at most 200 is needed"),
    (b"\xc1", "the message cannot be read"),
    (b"", "the message cannot be read"),
    ("{}", "the message is text"),
  ],
)  # fmt: skip
def test_a_wrong_request_is_told_to_its_client_alone(request_, message, server):
  good, _ = connect(server[0])
  bad, _ = connect(server[0])
  with good, bad:
    answer = ask(bad, request_)
    assert isinstance(answer, str) and re.search(message, answer), answer
    assert "Traceback" not in answer and "/" not in answer.replace("observation/", "")
    with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
      bad.recv(timeout=30)
    assert closed.value.rcvd.code == 1011
    assert ask(good, observation())["actions"].shape == (8, 3)


@hypothesis.given(st.binary(max_size=200) | st.text(max_size=50))
@hypothesis.settings(max_examples=50)
def test_any_message_is_answered_and_the_server_goes_on(server, message):
  connection, _ = connect(server[0])
  with connection:
    assert isinstance(ask(connection, message), str)
  connection, _ = connect(server[0])
  with connection:
    assert ask(connection, observation())["actions"].shape == (8, 3)


def test_any_order_of_bytes_and_layout_will_do(server, policy):
  connection, _ = connect(server[0])
  seen = observation()
  wide = np.zeros((2, 10))
  wide[:, ::2] = seen["state"]
  with connection:
    for state in (seen["state"].astype(">f8"), wide[:, ::2], np.asfortranarray(seen["state"])):
      answer = ask(connection, seen | {"state": state})
      np.testing.assert_allclose(answer["actions"], policy.act(seen)[0], rtol=0, atol=1e-6)


def test_a_failure_inside_is_not_told_unless_wanted(policy):
  def breaks(batch, **settings):
    raise RuntimeError("secret of the host")

  policy.act_on = breaks
  try:
    for debug, told in ((False, "InternalError: the server failed"), (True, "secret of the host")):
      with serving(policy, warm=False, debug=debug) as (port, service, _):
        connection, _ = connect(port)
        with connection:
          assert told in ask(connection, observation())
        assert 'oat_jax_errors_total{kind="server"} 1' in service.figures.text()
  finally:
    del policy.act_on


def test_nan_never_leaves_and_hurts_nobody_else(policy):
  act_on = policy.act_on

  def spoils(batch, **settings):
    actions_BCA, info = act_on(batch, **settings)
    actions_BCA = np.array(actions_BCA)
    actions_BCA[batch["observation"]["state"][:, 0, 0] == 7] = np.nan
    return actions_BCA, info

  policy.act_on = spoils
  try:
    with serving(policy, warm=False) as (port, _, _):
      sick = observation()
      sick["state"][0, 0] = 7
      one, two = connect(port)[0], connect(port)[0]
      with one, two:
        assert "chunk holds NaN or infinity; nothing" in ask(one, sick)
        assert np.isfinite(ask(two, observation())["actions"]).all()
  finally:
    del policy.act_on


def test_without_the_token_nobody_gets_in(policy):
  token = "0123456789abcdef"
  with serving(policy, token=token, warm=False) as (port, service, _):
    for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": token}):
      with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect(port, additional_headers=headers)
      assert refused.value.response.status_code == 401
      with pytest.raises(urllib.error.HTTPError, match="401"):
        get(port, "/metrics", **headers)
    assert get(port, "/healthz") == (200, "OK\n")
    connection, _ = connect(port, additional_headers={"Authorization": f"Api-Key {token}"})
    with connection:
      assert ask(connection, observation())["num_tokens"] == 8
    assert get(port, "/metrics", Authorization=f"Api-Key {token}")[0] == 200
    assert 'oat_jax_errors_total{kind="token"} 6' in service.figures.text()


def test_too_large_too_many_and_too_slow(policy):
  limits = websocket.Limits(message_bytes=10_000, clients=2, request_s=30, idle_s=0.3)
  with serving(policy, limits=limits, warm=False) as (port, service, _):
    one, _ = connect(port)
    with one:
      one.send(b"\0" * 20_000)
      with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
        one.recv(timeout=30)
      assert closed.value.rcvd.code == 1009
    one, two = connect(port)[0], connect(port)[0]
    with one, two:
      with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect(port)
      assert refused.value.response.status_code == 503
      with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
        one.recv(timeout=30)  # says nothing
      assert closed.value.rcvd.code == 1001 and "no request in 0.3 s" in closed.value.rcvd.reason
      with pytest.raises(websockets.exceptions.ConnectionClosed):
        two.recv(timeout=30)
    with connect(port)[0] as three:
      assert ask(three, observation())["num_tokens"] == 8
    assert 'kind="idle"} 2' in service.figures.text()


def test_connections_that_are_dropped_leave_nothing_behind(server):
  port, service = server
  for _ in range(1000):
    with socket.create_connection(("127.0.0.1", port)) as half_open:
      half_open.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
  for i in range(20):
    connection, _ = connect(port)
    connection.send(wire.pack(observation(i)))
    connection.socket.close()  # without a word, before the answer
  connection, _ = connect(port)
  with connection:
    assert ask(connection, observation())["num_tokens"] == 8
  until = time.monotonic() + 30
  while service.figures.clients and time.monotonic() < until:
    time.sleep(0.02)
  assert service.figures.clients == 0


def test_a_request_that_takes_too_long_is_given_up(policy):
  held = threading.Event()
  act_on = policy.act_on
  policy.act_on = lambda batch, **settings: (held.wait(30), act_on(batch, **settings))[1]
  try:
    limits = websocket.Limits(request_s=0.2)
    with serving(policy, limits=limits, warm=False) as (port, _, _):
      connection, _ = connect(port)
      with connection:
        assert ask(connection, observation()) == "TimeoutError: no answer in 0.2 s"
      held.set()
  finally:
    held.set()
    del policy.act_on


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
