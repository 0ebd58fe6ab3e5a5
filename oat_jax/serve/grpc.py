"""The gRPC service of the package praxis-remote, so that praxis-eval evaluates a policy.

A client asks for one action of each of its episodes at a time; the chunks wait here, in a queue for
each episode, which is filled anew when `replan` of them were executed. What was observed in the
steps before is remembered, so that the policy sees the moments that it was trained on.

An episode is known by its connection and, within that, by the client's id of it, or by its row
where the client names none, as praxis-eval does. gRPC lets clients of one process share a
connection: those must name their episodes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import hmac
import json
import logging
import threading
import time
from typing import Any, NamedTuple

import grpc
import numpy as np
from praxis_remote import serialization
from praxis_remote.proto import policy_service_pb2 as messages
from praxis_remote.proto import policy_service_pb2_grpc as stubs

from oat_jax.export import observing
from oat_jax.serve import batcher
from oat_jax.serve import keymap as keymap_lib
from oat_jax.serve import service as service_lib

MAX_EPISODES = 1024  # the one that was asked for least recently is forgotten
IDLE_S = 600.0  # then an episode is forgotten, and a connection closed
AGE_S = 86400.0  # of a connection; its episodes end with it, so it must outlast any of them
POLL_S = 0.05  # how often who waits looks whether the client is still there

SETTINGS = ", ".join(service_lib.SETTINGS)

Key = tuple[str, str | int]  # connection, id or row


class Gone(Exception):
  """The client takes no answer any more."""


class _Waiting(NamedTuple):
  """How long one request may wait, whatever it waits for."""

  until: float
  is_active: Callable[[], bool]

  def check(self) -> None:
    if not self.is_active():
      raise Gone("the request was cancelled")
    if time.monotonic() >= self.until:
      raise futures.TimeoutError

  @contextlib.contextmanager
  def locked(self, lock: threading.Lock) -> Iterator[None]:
    while not lock.acquire(timeout=POLL_S):
      self.check()
    try:
      self.check()
      yield
    finally:
      lock.release()

  def results(self, asked: Sequence[futures.Future]) -> list[Any]:
    """Returns all results; raises what the first that failed did."""
    running = set(asked)
    while running:
      done, running = futures.wait(running, POLL_S, futures.FIRST_EXCEPTION)
      for future in done:
        future.result()
      if running:
        self.check()
    return [future.result() for future in asked]


class _Episode:
  """What waits for one episode, and what was observed in it; changed by who holds the lock."""

  def __init__(self):
    self.lock = threading.Lock()
    self.actions: list[np.ndarray] = []
    self.seen: list[Mapping[str, Any]] = []  # moments before the next, in our own names
    self.last_A: np.ndarray | None = None
    self.used = time.monotonic()


class Handler:
  """What is asked of a `Service` for episodes; several threads may call it."""

  def __init__(
    self,
    service: service_lib.Service,
    keymap: keymap_lib.Keymap | None = None,
    replan: int = 8,
    request_s: float = 30.0,
  ):
    """`replan` actions of each chunk are executed; a request's policy_kwargs may say another."""
    self._horizon = service.policy.spec.batch.action_horizon
    if not 1 <= replan <= self._horizon:
      raise ValueError(f"replan is {replan}; it must be in 1..{self._horizon}, the chunk's steps")
    self._service, self._replan, self._request_s = service, replan, request_s
    self.keymap = service.keymap if keymap is None else keymap
    self._lock = threading.Lock()
    self._episodes: dict[Key, _Episode] = {}  # the newest is last

  def predict(
    self,
    observations: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    keys: Sequence[Key],
    is_active: Callable[[], bool] = lambda: True,
  ) -> np.ndarray:
    """Returns the next action of each episode, float32 (B, A).

    All episodes go on, or none does: what a failed or cancelled request would have been answered is
    not lost.

    Raises:
      ValueError: an observation or a setting does not fit.
      batcher.Busy: too many requests are waiting.
      futures.TimeoutError: not all was there within `request_s`.
      Gone: `is_active` said no.
    """
    waiting = _Waiting(time.monotonic() + self._request_s, is_active)
    settings = dict(settings)
    replan = settings.pop("replan", self._replan)
    if isinstance(replan, bool) or not isinstance(replan, int) or not 1 <= replan <= self._horizon:
      raise ValueError(f"'replan' is {replan!r}; a whole number in 1..{self._horizon} is needed")
    unknown = sorted(set(settings) - set(service_lib.SETTINGS))
    if unknown:
      raise ValueError(f"there is no setting '{unknown[0]}'; known are replan and {SETTINGS}")
    if len(set(keys)) != len(keys):
      raise ValueError("an episode is there twice in one request")
    if len(keys) > MAX_EPISODES:
      raise ValueError(f"there are {len(keys)} episodes in one request; {MAX_EPISODES} is the most")
    moments = [self._moment(observation) for observation in observations]
    episodes = self._find(keys)
    with contextlib.ExitStack() as held:
      for _, episode in sorted(zip(keys, episodes), key=lambda pair: pair[0]):  # no deadlock
        held.enter_context(waiting.locked(episode.lock))
      seen = [[*episode.seen, moment] for episode, moment in zip(episodes, moments)]
      asked: dict[int, futures.Future] = {}
      try:
        for i, episode in enumerate(episodes):
          if not episode.actions:
            last = {} if episode.last_A is None else {"last_action": episode.last_A}
            asked[i] = self._service.submit_observation(_stacked(seen[i]), settings | last)
        answers = dict(zip(asked, waiting.results(list(asked.values()))))
        waiting.check()
      except BaseException:
        for future in asked.values():
          future.cancel()
        raise
      # Nothing below can fail.
      remembered = self._service.policy.spec.batch.observation_steps - 1
      actions = []
      for i, episode in enumerate(episodes):
        chunk = list(answers[i].actions_CA[:replan]) if i in answers else episode.actions
        episode.last_A, episode.actions = chunk[0], chunk[1:]
        episode.seen = seen[i][-remembered:] if remembered else []
        actions.append(chunk[0])
    return np.stack(actions)

  def reset(self, peer: str, episode_ids: Sequence[str]) -> None:
    """Forgets these episodes of a connection; all of them if none is named."""
    with self._lock:
      names = {(peer, name) for name in episode_ids}
      for key in [key for key in self._episodes if key[0] == peer]:
        if not names or key in names:
          del self._episodes[key]

  def _moment(self, observation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one moment in our own names; ValueError unless the policy could act on it."""
    spec = self._service.policy.spec.batch
    moment = keymap_lib.translate(observation, self.keymap, spec)
    if moment["state"].ndim != 1:
      raise ValueError(
        f"the state has shape {list(moment['state'].shape)}; expected [{spec.state_dim}], of one "
        "moment: those before it are remembered here"
      )
    observing.batch(moment, spec)
    return moment

  def _find(self, keys: Sequence[Key]) -> list[_Episode]:
    """Returns the episodes, new ones where there are none, and forgets old ones."""
    now = time.monotonic()
    with self._lock:
      for key in keys:
        episode = self._episodes.pop(key, None)
        if episode is None or now - episode.used > IDLE_S:
          episode = _Episode()
        episode.used = now
        self._episodes[key] = episode
      found = [self._episodes[key] for key in keys]
      for key, episode in list(self._episodes.items()):
        if len(self._episodes) <= MAX_EPISODES and now - episode.used <= IDLE_S:
          break
        del self._episodes[key]
    return found


def _stacked(moments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns one observation of several moments: what is seen has an axis of time."""
  return {
    name: np.stack([moment[name] for moment in moments])
    if name == "state" or name.startswith("image_")
    else value
    for name, value in moments[-1].items()
  }


class Servicer(stubs.PolicyServiceServicer):
  """The service's three methods as gRPC calls them."""

  def __init__(self, handler: Handler, service: service_lib.Service, debug: bool):
    self._handler, self._service, self._debug = handler, service, debug

  def Predict(self, request, context):
    """One action of each observation."""
    self._service.figures.request("grpc")

    def answer():
      try:
        observations = serialization.decode_observations(request.observations)
        settings = serialization.decode_policy_kwargs(request.policy_kwargs)
      except TypeError as error:  # of the message; any other would be ours
        raise ValueError(str(error)) from error
      if not observations:
        raise ValueError("the request holds no observation")
      ids = list(request.episode_ids) or range(len(observations))
      if len(ids) != len(observations):
        raise ValueError(f"there are {len(ids)} episode_ids for {len(observations)} observations")
      peer = context.peer()
      keys = [(peer, name) for name in ids]
      actions_BA = self._handler.predict(observations, settings, keys, context.is_active)
      return messages.PredictResponse(action=serialization.encode_numpy_array(actions_BA))

    return self._guarded(answer, context)

  def Reset(self, request, context):
    """Forgets episodes."""

    def answer():
      self._handler.reset(context.peer(), list(request.episode_ids))
      return messages.ResetResponse(success=True)

    return self._guarded(answer, context)

  def HealthCheck(self, request, context):
    """Says that the policy is there, and what it is."""
    del request

    def answer():
      keymap = self._handler.keymap
      names = {"state": list(keymap.state), "images": dict(keymap.images)}
      info = json.dumps(self._service.metadata() | {"keymap": names})
      return messages.HealthResponse(ready=True, model_info=info)

    return self._guarded(answer, context)

  def _guarded(self, answer, context):
    figures = self._service.figures
    try:
      return answer()
    except ValueError as error:
      figures.error("request")
      code, told = grpc.StatusCode.INVALID_ARGUMENT, str(error)
    except batcher.Busy as error:
      figures.error("busy")
      code, told = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
    except Gone as error:
      figures.error("cancelled")
      code, told = grpc.StatusCode.CANCELLED, str(error)
    except futures.TimeoutError:
      figures.error("timeout")
      code, told = grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time"
    except Exception as error:  # ours: nothing of it leaves, unless that is wanted
      figures.error("server")
      logging.exception("a request failed")
      code, told = grpc.StatusCode.INTERNAL, "the server failed"
      if isinstance(error, service_lib.NotFinite):
        told = str(error)
      elif self._debug:
        told = f"{type(error).__name__}: {error}"
    return context.abort(code, told)


class _Gate(grpc.ServerInterceptor):
  """Turns away who has no token, before anything is read, and who does not end a request.

  gRPC reads a request in one of the few threads that answer, for as long as it takes. Taken for
  streams, which are the same on the wire, requests are read here, if at all, and for so long.
  """

  def __init__(self, service: service_lib.Service, token: str, request_s: float):
    self._service, self._token, self._request_s = service, token, request_s

  def intercept_service(self, continuation, handler_call_details):
    if self._token:
      given = dict(handler_call_details.invocation_metadata).get("authorization", "")
      if not hmac.compare_digest(str(given).encode(), f"Api-Key {self._token}".encode()):
        self._service.figures.error("token")
        return grpc.stream_unary_rpc_method_handler(_refuse)
    method = continuation(handler_call_details)
    if method is None or method.unary_unary is None:
      return method
    respond = method.unary_unary

    def answer(requests, context):
      late = threading.Timer(self._request_s, context.cancel)
      late.start()
      try:
        request = next(requests, None)
      finally:
        late.cancel()
      if request is None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request holds no message")
      return respond(request, context)

    return grpc.stream_unary_rpc_method_handler(
      answer, method.request_deserializer, method.response_serializer
    )


def _refuse(requests, context):
  del requests
  context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed: authorization Api-Key")


def start(
  service: service_lib.Service,
  host: str,
  port: int,
  *,
  keymap: keymap_lib.Keymap | None = None,
  replan: int = 8,
  token: str = "",
  message_bytes: int = 32 * 1024 * 1024,
  request_s: float = 30.0,
  workers: int = 16,
  debug: bool = False,
) -> tuple[grpc.Server, int]:
  """Returns a server that listens, and its port, which is chosen where `port` is 0.

  Observations have the names of `keymap`, or of the service's if it is None. A request may take
  `request_s` to arrive, and as long again to be answered.

  Raises:
    OSError: the address cannot be listened on.
  """
  handler = Handler(service, keymap, replan, request_s)
  milliseconds = {
    "keepalive_time": 60,
    "keepalive_timeout": 20,
    "max_connection_idle": IDLE_S,
    "max_connection_age": AGE_S,
    "max_connection_age_grace": 2 * request_s,
  }
  options = [(f"grpc.{name}_ms", int(1e3 * seconds)) for name, seconds in milliseconds.items()]
  server = grpc.server(
    futures.ThreadPoolExecutor(workers, "grpc"),
    interceptors=[_Gate(service, token, request_s)],
    options=[
      ("grpc.max_receive_message_length", message_bytes),
      ("grpc.max_send_message_length", message_bytes),
      ("grpc.so_reuseport", 0),
      *options,
    ],
    maximum_concurrent_rpcs=4 * workers,
  )
  stubs.add_PolicyServiceServicer_to_server(Servicer(handler, service, debug), server)
  address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
  try:
    bound = server.add_insecure_port(address)
  except RuntimeError as error:
    raise OSError(
      f"cannot listen on {address}: the port is taken, or the host is none of this machine's"
    ) from error
  server.start()
  return server, bound
