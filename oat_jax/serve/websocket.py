"""openpi's websocket protocol, so that the package openpi-client drives a policy unchanged.

On connecting the server sends one message, the metadata. Then each request, a map of what is
observed, is answered by {"actions": float32 (C, A), "server_timing": {...}, ...}. An error is a
text message, behind which the server closes with code 1011. GET /healthz answers 200, /metrics
what Prometheus reads. Messages are those of `wire`.

Nothing is remembered from one request to the next. A client asks once for many steps, so what it
asked with before is not the moment before: that only the client has seen, and sends along.
"""

import asyncio
from concurrent import futures
import hmac
import http
import logging
from typing import Any, NamedTuple

from websockets import exceptions
from websockets.asyncio import server as ws

from oat_jax.serve import batcher
from oat_jax.serve import service as service_lib
from oat_jax.serve import wire


class Limits(NamedTuple):
  """What clients may ask of a server.

  Attributes:
    message_bytes: of a request.
    clients: connections at a time.
    request_s: until a request is answered.
    idle_s: between two requests of a client; also until the first.
  """

  message_bytes: int = 16 * 1024 * 1024
  clients: int = 64
  request_s: float = 30.0
  idle_s: float = 600.0


class Server:
  """The websocket's side of a `Service`; runs inside an event loop."""

  def __init__(
    self,
    service: service_lib.Service,
    *,
    token: str = "",
    limits: Limits | None = None,
    debug: bool = False,
  ):
    """With a `token` clients must send `Authorization: Api-Key TOKEN`; "" asks for none."""
    self._service, self._token, self._debug = service, token, debug
    self._limits = limits or Limits()
    metadata = service.metadata()
    self._metadata = wire.pack(metadata | {"history": _history(metadata["observation_steps"])})
    self._answering = 0
    self._workers = futures.ThreadPoolExecutor(2, "unpack")
    self._stopping = asyncio.Event()
    self._server: ws.Server | None = None

  async def start(self, host: str, port: int) -> int:
    """Listens; returns the port, which is chosen where `port` is 0."""
    self._server = await ws.serve(
      self._converse,
      host,
      port,
      process_request=self._greet,
      origins=[None],  # robots send none; a web page that a person looks at does
      compression=None,
      max_size=self._limits.message_bytes,
      max_queue=1,
      open_timeout=10,
      ping_interval=20,
      ping_timeout=20,
      close_timeout=5,
      logger=_quiet(),
    )
    return next(iter(self._server.sockets)).getsockname()[1]

  async def stop(self, seconds: float = 10.0) -> None:
    """Takes no more requests, answers those that are there, and says goodbye to all clients."""
    assert self._server is not None
    self._stopping.set()
    for _ in range(int(seconds / 0.02)):
      if not self._answering:
        break
      await asyncio.sleep(0.02)
    self._server.close()
    await self._server.wait_closed()
    self._workers.shutdown(wait=False)

  def _greet(self, connection: ws.ServerConnection, request: Any) -> Any:
    """Answers what is no websocket, and refuses whom it does not know; None goes on."""
    if request.path == "/healthz":
      well = self._service.healthy()
      status = http.HTTPStatus.OK if well else http.HTTPStatus.SERVICE_UNAVAILABLE
      return connection.respond(status, "OK\n" if well else "a batch is stuck\n")
    given = request.headers.get("Authorization", "")
    if self._token and not hmac.compare_digest(
      given.encode(errors="replace"), f"Api-Key {self._token}".encode()
    ):
      self._service.figures.error("token")
      return connection.respond(
        http.HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Api-Key TOKEN\n"
      )
    if request.path == "/metrics":
      return connection.respond(http.HTTPStatus.OK, self._service.figures.text())
    if self._stopping.is_set() or self._service.figures.clients >= self._limits.clients:
      self._service.figures.error("busy")
      return connection.respond(
        http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients; try again later\n"
      )
    return None

  async def _converse(self, connection: ws.ServerConnection) -> None:
    self._service.figures.connected(1)
    try:
      await connection.send(self._metadata)
      previous_ms = None
      while not self._stopping.is_set():
        message = await self._next(connection)
        if message is None:
          break
        clock = service_lib.Clock()
        self._answering += 1
        try:
          answer = await self._answer(message, clock, previous_ms)
          await connection.send(answer)
        finally:
          self._answering -= 1
        previous_ms = clock.ms
        if isinstance(answer, str):  # an error
          await connection.close(1011, "error")
          return
      await connection.close(1001, "the server is stopping")
    except exceptions.ConnectionClosed:
      pass
    finally:
      self._service.figures.connected(-1)

  async def _next(self, connection: ws.ServerConnection) -> Any:
    """Returns the next message; None where the server stops before one comes."""
    receiving = asyncio.ensure_future(connection.recv())
    stopping = asyncio.ensure_future(self._stopping.wait())
    try:
      done, _ = await asyncio.wait(
        (receiving, stopping), timeout=self._limits.idle_s, return_when=asyncio.FIRST_COMPLETED
      )
      if receiving in done:
        return receiving.result()
      if not done:
        self._service.figures.error("idle")
        await connection.close(1001, f"no request in {self._limits.idle_s:g} s")
      return None
    finally:
      receiving.cancel()
      stopping.cancel()

  async def _answer(
    self, message: Any, clock: service_lib.Clock, previous_ms: float | None
  ) -> bytes | str:
    """Returns the answer to a request: a message, or the text of an error."""
    figures = self._service.figures
    figures.request("websocket")
    try:
      # Not in the event loop: a large message would keep all other clients waiting.
      loop, work = asyncio.get_running_loop(), self._workers
      future, episode = await loop.run_in_executor(work, self._submit, message)
      found = await asyncio.wait_for(asyncio.wrap_future(future), self._limits.request_s)
    except (ValueError, batcher.Busy) as error:
      figures.error("busy" if isinstance(error, batcher.Busy) else "request")
      return f"{type(error).__name__}: {error}"
    except TimeoutError:
      figures.error("timeout")
      return f"TimeoutError: no answer in {self._limits.request_s:g} s"
    except Exception as error:  # ours: nothing of it leaves, unless that is wanted
      figures.error("server")
      logging.exception("a request failed")
      told = f"{type(error).__name__}: {error}"
      if self._debug or isinstance(error, service_lib.NotFinite):
        return told
      return "InternalError: the server failed; its log says more"
    timing = {"infer_ms": found.ms, "total_ms": clock.ms}
    if previous_ms is not None:
      timing["prev_total_ms"] = previous_ms
    answer = {
      "actions": found.actions_CA,
      "num_tokens": found.num_tokens,
      "deadline_met": found.deadline_met,
      "server_timing": timing,
    }
    return wire.pack(answer if episode is None else answer | {"episode_id": episode})

  def _submit(self, message: Any) -> tuple[futures.Future, str | None]:
    """Returns the future answer, and the episode's name that is sent back with it."""
    request = wire.unpack(message)
    future = self._service.submit(request)
    episode = request.get("episode_id")
    if episode is not None and (not isinstance(episode, str) or len(episode) > 200):
      raise ValueError(f"'episode_id' is {str(episode)[:60]}; a text of at most 200 is needed")
    return future, episode


def _history(steps: int) -> str:
  """Returns what a client is told of the moments that a request holds."""
  if steps == 1:
    return "a request holds one moment"
  return (
    f"a request holds the last {steps} moments, oldest first, one control step apart; fewer count "
    "as an episode's beginning"
  )


def _quiet() -> logging.Logger:
  """Of the websocket library: clients that come and go are no news."""
  logger = logging.getLogger("oat_jax.serve.websocket")
  logger.setLevel(logging.CRITICAL)
  return logger
