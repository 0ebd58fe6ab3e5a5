"""A server in a thread of its own, and a client that asks it over its own sockets."""

import asyncio
import concurrent.futures
import contextlib
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from oat_jax.serve import keymap
from oat_jax.serve import service as service_lib

websockets = pytest.importorskip("websockets", reason="the extra `serve` is not installed")
client = pytest.importorskip("websockets.sync.client")
websocket = pytest.importorskip("oat_jax.serve.websocket")
wire = pytest.importorskip("oat_jax.serve.wire")


@contextlib.contextmanager
def serving(policy, token="", limits=None, debug=False, warm=True, port=0, **settings):
  """Yields (port, service, stop): a server in a thread of its own."""
  service = service_lib.Service(policy, keymap.load("", policy.spec.batch), **settings)
  if warm:
    service.warm_up(repeats=1)
  loop, ready = asyncio.new_event_loop(), concurrent.futures.Future()

  async def run():
    server = websocket.Server(service, token=token, limits=limits, debug=debug)
    listening, over = await server.start("127.0.0.1", port), asyncio.Event()
    ready.set_result((listening, server, over))
    await over.wait()

  thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
  thread.start()
  listening, server, over = ready.result(60)
  stopped = []

  def stop():
    if not stopped:
      stopped.append(True)
      asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
      loop.call_soon_threadsafe(over.set)
      thread.join(30)
      service.close()

  try:
    yield listening, service, stop
  finally:
    stop()


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
