"""A server as the subject of an evaluation: where simulator and policy want different packages.

Needs websockets and msgpack, and neither jax nor what trained the policy.
"""

from collections.abc import Mapping
from concurrent import futures
import logging
import time
from typing import Any

import numpy as np
from websockets import exceptions
from websockets.sync import client

from oat_jax import batch as batch_lib
from oat_jax.evaluate import described
from oat_jax.evaluate import rollout
from oat_jax.serve import wire

MOST = 2**20  # entries of what the server tells: a budget a token, a name a task
CONNECTIONS = 16  # episodes that ask at the same time; the server batches them
ANSWER_S = 120.0


class Remote(described.Described):
  """The policy behind oat-jax-serve's websocket; a context manager.

  Every active episode is a request of its own. Nothing is kept between requests, so one whose
  connection was closed while the simulator was busy is sent again.
  """

  def __init__(self, address: str, token: str = ""):
    """Connects.

    Args:
      address: ws://HOST:PORT, or HOST:PORT.
      token: that the server was started with.

    Raises:
      ConnectionError: nobody answers there.
      ValueError: the token is refused, or no policy is served there under our own names.
    """
    self._address = address if "://" in address else f"ws://{address}"
    self._token, self._idle = token, []
    self._pool = futures.ThreadPoolExecutor(CONNECTIONS, "ask")
    connection, self._told = self._connect()
    self._idle.append(connection)
    try:
      super().__init__(f"the server at {self._address}", self._told)
      self._check_names()
      self.facts["server"] = dict(self._told["server_versions"])
    except (KeyError, TypeError) as error:
      self.__exit__()
      raise ValueError(
        f"{self._address} does not tell what its policy is ({type(error).__name__}: {error}); "
        "this evaluates what oat-jax-serve of the same version serves"
      ) from error
    except ValueError:
      self.__exit__()
      raise

  def __enter__(self) -> "Remote":
    return self

  def __exit__(self, *_: Any) -> None:
    self._pool.shutdown()
    for connection in self._idle:
      connection.close()

  def act(
    self,
    batch: Mapping[str, Any],
    num_tokens: int,
    call: int = 0,
    stop: bool = False,
    active_B: np.ndarray | None = None,
    last_BA: np.ndarray | None = None,
  ) -> rollout.Acted:
    """See `Subject.act`; the milliseconds are those until all episodes have their chunks.

    Raises:
      ConnectionError: the server has gone.
      ValueError: the server serves another policy by now.
      RuntimeError: the server answers with an error.
    """
    rows = described.observation(batch)
    B = len(rows["state"])
    how: dict[str, Any] = {"deadline_ms": None}  # whatever the server was started with
    if self.max_tokens:
      how |= {"mean_tokens" if stop else "num_tokens": num_tokens}

    def ask(b):
      row = {name: x[b] for name, x in rows.items()}
      row |= {"task": int(row["task"]), "seed": (call * B + b) % 2**32}
      if last_BA is not None and not np.isnan(last_BA[b]).any():
        row["last_action"] = last_BA[b]
      return self._ask(row | how)

    active = np.flatnonzero(np.ones(B, bool) if active_B is None else active_B)
    begin = time.perf_counter()
    answers = list(self._pool.map(ask, active.tolist()))
    ms = 1e3 * (time.perf_counter() - begin)
    actions_BCA = np.zeros((B, self.spec.action_horizon, self.spec.action_dim), np.float32)
    spent_B = np.zeros(B, np.int32)
    for b, answer in zip(active, answers):
      actions_BCA[b], spent_B[b] = answer["actions"], answer["num_tokens"]
    return rollout.Acted(actions_BCA, spent_B, ms)

  def windows(self, count: int, stop: bool) -> list[dict[str, Any]]:
    """See `Subject.windows`: random numbers; none where what is seen decides how long it takes."""
    if stop or (self.tokens is not None and self.tokens["pad_id"] is not None):
      return []
    made = batch_lib.fake(self.spec, 1)
    return [{name: made[name] for name in batch_lib.ACTING}] * count

  def reconstruct(self, chunks_BCA: np.ndarray, num_tokens: int) -> rollout.Acted:
    """A server only acts."""
    raise NotImplementedError("it does not say that it reconstructs")

  def _check_names(self) -> None:
    """Raises ValueError where the server takes observations by other names than ours."""
    taken = self._told["keymap"]
    own = {
      "state": ["state"],
      "images": {name: f"image_{name}" for name, _, _ in self.spec.cameras},
    }
    if taken != own:
      raise ValueError(
        f"{self.where} takes observations named {taken}; an evaluation sends {own}: start the "
        "server without --keymap"
      )

  def _connect(self) -> tuple[Any, Any]:
    """Returns a new connection, and what the server told on it."""
    headers = {"Authorization": f"Api-Key {self._token}"} if self._token else {}
    connection = None
    try:
      connection = client.connect(
        self._address,
        additional_headers=headers,
        compression=None,
        max_size=None,
        proxy=None,  # what is served here is not to be looked for elsewhere
        logger=_quiet(),
      )
      told: Any = connection.recv(timeout=ANSWER_S)
      return connection, wire.unpack(told, most=MOST)
    except exceptions.InvalidStatus as error:
      said = (error.response.body or b"").decode(errors="replace").strip()
      raise ValueError(f"{self._address} refuses: {said or error}") from error
    except (OSError, ValueError, exceptions.WebSocketException) as error:
      if connection is not None:
        connection.close()
      raise ConnectionError(
        f"no server answers at {self._address} ({error or type(error).__name__}); start one: "
        "oat-jax-serve --export=DIR"
      ) from error

  def _ask(self, request: Mapping[str, Any]) -> Any:
    """Returns the answer, by a connection that is idle or a new one."""
    data = wire.pack(request)
    for _ in range(CONNECTIONS + 1):  # all that are idle may have been closed
      try:
        connection, fresh = self._idle.pop(), False
      except IndexError:
        (connection, told), fresh = self._connect(), True
        if told != self._told:
          connection.close()
          raise ValueError(
            f"{self.where} serves another policy by now, or is another version; the same command "
            "goes on when it is the same again"
          ) from None
      try:
        connection.send(data)
        answer: Any = connection.recv(timeout=ANSWER_S)
      except (exceptions.ConnectionClosed, TimeoutError, OSError) as error:
        connection.close()
        if fresh:
          raise ConnectionError(
            f"{self.where} has gone ({error or type(error).__name__}); start it again, and the "
            "same command goes on"
          ) from error
        continue
      if isinstance(answer, str):
        connection.close()
        raise RuntimeError(f"{self.where} answers: {answer}")
      self._idle.append(connection)
      return wire.unpack(answer)
    raise AssertionError("a new connection answers or raises")


def _quiet() -> logging.Logger:
  """Of the websocket library: what it has to say of a server that hangs is said by the error."""
  logger = logging.getLogger("oat_jax.evaluate.remote")
  logger.setLevel(logging.CRITICAL + 1)
  return logger
