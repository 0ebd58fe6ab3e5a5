"""A server in this process, in a thread of its own, for tests that ask it over its sockets."""

import asyncio
import concurrent.futures
import contextlib
import threading
import urllib.request

from oat_jax.serve import keymap
from oat_jax.serve import service as service_lib
from oat_jax.serve import websocket


@contextlib.contextmanager
def serving(policy, token="", limits=None, debug=False, warm=True, port=0, **settings):
  """Yields (port, service, stop) of an `ExportedPolicy`."""
  service = service_lib.Service(policy, keymap.load("", policy.spec.batch), **settings)
  if warm:
    service.warm_up(repeats=1)
  loop, ready = asyncio.new_event_loop(), concurrent.futures.Future()

  async def run():
    server = websocket.Server(service, token=token, limits=limits, debug=debug)
    found, over = await server.start("127.0.0.1", port), asyncio.Event()
    ready.set_result((found, server, over))
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


def get(port, path, **headers):
  """Returns (status, text)."""
  request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
  with urllib.request.urlopen(request, timeout=30) as response:
    return response.status, response.read().decode()
