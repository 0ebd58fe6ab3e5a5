"""The gRPC service of the package praxis-remote, so that praxis-eval evaluates a policy.

A client asks for one action of each of its episodes at a time; the chunks wait here, in a queue for
each episode, which is filled anew when `replan` of them were executed. What was observed in the
steps before is remembered, so that the policy sees the moments that it was trained on.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent import futures
import hmac
import json
import threading
from typing import Any

import grpc
import numpy as np
from praxis_remote import serialization
from praxis_remote.proto import policy_service_pb2 as messages
from praxis_remote.proto import policy_service_pb2_grpc as stubs

from oat_jax.serve import batcher
from oat_jax.serve import service as service_lib

MAX_EPISODES = 4096  # the one that was asked for least recently is forgotten


class _Episode:
  """What waits for one episode, and what was observed in it."""

  def __init__(self, moments: int):
    self.actions: deque[np.ndarray] = deque()
    self.seen: deque[Mapping[str, Any]] = deque(maxlen=moments)
    self.last_A: np.ndarray | None = None


class Handler:
  """Predict, Reset and HealthCheck over a `Service`; several threads may call it."""

  def __init__(self, service: service_lib.Service, replan: int = 8, request_s: float = 30.0):
    """`replan` actions of each chunk are executed; a request's policy_kwargs may say another."""
    horizon = service.policy.spec.batch.action_horizon
    if not 1 <= replan <= horizon:
      raise ValueError(f"replan is {replan}; it must be in 1..{horizon}, the chunk's steps")
    self._service, self._replan, self._request_s = service, replan, request_s
    self._lock = threading.Lock()
    self._episodes: dict[str, _Episode] = {}

  def predict(
    self,
    observations: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    episode_ids: Sequence[str],
  ) -> np.ndarray:
    """Returns the next action of each episode, float32 (B, A).

    Raises:
      ValueError: an observation or a setting does not fit.
      batcher.Busy: too many requests are waiting.
    """
    settings = dict(settings)
    replan = settings.pop("replan", self._replan)
    horizon = self._service.policy.spec.batch.action_horizon
    if isinstance(replan, bool) or not isinstance(replan, int) or not 1 <= replan <= horizon:
      raise ValueError(f"'replan' is {replan!r}; a whole number in 1..{horizon} is needed")
    unknown = sorted(set(settings) - set(service_lib.SETTINGS))
    if unknown:
      raise ValueError(f"there is no setting '{unknown[0]}'; known are replan and {SETTINGS}")
    if len(set(episode_ids)) != len(episode_ids):
      raise ValueError("an episode is there twice in one request")
    with self._lock:
      episodes = [self._episode(name) for name in episode_ids]
    asked = {}
    for name, episode, observation in zip(episode_ids, episodes, observations):
      episode.seen.append(observation)
      if not episode.actions:
        request = _stacked(episode.seen) | settings
        if episode.last_A is not None:
          request["last_action"] = episode.last_A
        asked[name] = self._service.submit(request)
    for name, episode in zip(episode_ids, episodes):
      if name in asked:
        clock = service_lib.Clock()
        answer = asked[name].result(self._request_s)
        episode.actions.extend(answer.actions_CA[:replan])
        self._service.figures.answered(answer.num_tokens, clock.ms, answer.deadline_met)
    actions = []
    for episode in episodes:
      episode.last_A = episode.actions.popleft()
      actions.append(episode.last_A)
    return np.stack(actions)

  def reset(self, episode_ids: Sequence[str]) -> None:
    """Forgets these episodes; all of them if none is named."""
    with self._lock:
      for name in episode_ids or list(self._episodes):
        self._episodes.pop(name, None)

  def _episode(self, name: str) -> _Episode:
    moments = self._service.policy.spec.batch.observation_steps
    episode = self._episodes.pop(name, None) or _Episode(moments)
    self._episodes[name] = episode  # the newest is last
    while len(self._episodes) > MAX_EPISODES:
      self._episodes.pop(next(iter(self._episodes)))
    return episode


SETTINGS = ", ".join(service_lib.SETTINGS)


def _stacked(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns one request of several moments: arrays have an axis of time, the rest is the last's."""
  newest = dict(seen[-1])
  for name, value in newest.items():
    if isinstance(value, np.ndarray) and value.ndim:
      parts = [np.asarray(moment.get(name)) for moment in seen]
      if any(x.shape != value.shape or x.dtype != value.dtype for x in parts):
        raise ValueError(f"'{name}' is unlike that of the step before; reset the episode")
      newest[name] = np.stack(parts)
  return newest


class Servicer(stubs.PolicyServiceServicer):
  """The service's three methods as gRPC calls them."""

  def __init__(self, handler: Handler, service: service_lib.Service, token: str, debug: bool):
    self._handler, self._service, self._token, self._debug = handler, service, token, debug

  def Predict(self, request, context):
    """One action of each observation."""
    self._admit(context)
    self._service.figures.request("grpc")

    def answer():
      observations = serialization.decode_observations(request.observations)
      if not observations:
        raise ValueError("the request holds no observation")
      ids = [str(name) for name in request.episode_ids]
      ids = ids or [f"{context.peer()} {i}" for i in range(len(observations))]
      if len(ids) != len(observations):
        raise ValueError(f"there are {len(ids)} episode_ids for {len(observations)} observations")
      settings = serialization.decode_policy_kwargs(request.policy_kwargs)
      actions_BA = self._handler.predict(observations, settings, ids)
      return messages.PredictResponse(action=serialization.encode_numpy_array(actions_BA))

    return self._guarded(answer, context)

  def Reset(self, request, context):
    """Forgets episodes."""
    self._admit(context)
    self._handler.reset([str(name) for name in request.episode_ids])
    return messages.ResetResponse(success=True)

  def HealthCheck(self, request, context):
    """Says that the policy is there, and what it is."""
    del request
    self._admit(context)
    info = json.dumps(self._service.metadata())
    return messages.HealthResponse(ready=True, model_info=info)

  def _admit(self, context) -> None:
    if not self._token:
      return
    given = dict(context.invocation_metadata()).get("authorization", "")
    if not hmac.compare_digest(str(given).encode(), f"Api-Key {self._token}".encode()):
      self._service.figures.error("token")
      context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed: authorization Api-Key")

  def _guarded(self, answer, context):
    figures = self._service.figures
    try:
      return answer()
    except (ValueError, TypeError) as error:
      figures.error("request")
      code, told = grpc.StatusCode.INVALID_ARGUMENT, str(error)
    except batcher.Busy as error:
      figures.error("busy")
      code, told = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
    except futures.TimeoutError:
      figures.error("timeout")
      code, told = grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time"
    except Exception as error:  # ours: nothing of it leaves, unless that is wanted
      figures.error("server")
      code = grpc.StatusCode.INTERNAL
      told = f"{type(error).__name__}: {error}" if self._debug else "the server failed"
    return context.abort(code, told)


def start(
  service: service_lib.Service,
  host: str,
  port: int,
  *,
  replan: int = 8,
  token: str = "",
  message_bytes: int = 32 * 1024 * 1024,
  request_s: float = 30.0,
  workers: int = 16,
  debug: bool = False,
) -> tuple[grpc.Server, int]:
  """Returns a server that listens, and its port, which is chosen where `port` is 0."""
  options = [
    ("grpc.max_receive_message_length", message_bytes),
    ("grpc.max_send_message_length", message_bytes),
    ("grpc.so_reuseport", 0),
  ]
  server = grpc.server(futures.ThreadPoolExecutor(workers), options=options)
  handler = Handler(service, replan, request_s)
  stubs.add_PolicyServiceServicer_to_server(Servicer(handler, service, token, debug), server)
  bound = server.add_insecure_port(f"{host}:{port}")
  server.start()
  return server, bound
