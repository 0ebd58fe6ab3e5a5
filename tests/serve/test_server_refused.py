"""What a server refuses, gives up or keeps for itself; others go on."""

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
from served import ask
from served import connect
from served import get
from served import observation
from served import serving
from served import websockets

from oat_jax.serve import websocket
from oat_jax.serve import wire


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
