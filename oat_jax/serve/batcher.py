"""Requests of concurrent clients, run together: those that are alike, as many as wait, in order."""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent import futures
import math
import threading
import time
from typing import Any, NamedTuple


class Busy(RuntimeError):
  """The queue is full; the client may try again."""


class _Request(NamedTuple):
  key: Hashable
  item: Any
  since: float
  future: futures.Future


class Batcher:
  """One thread that takes the oldest request, and with it all others of its key.

  While a batch runs, requests wait and make the next batch, so clients share the device without any
  waiting of its own. Only where more clients are there than have asked does it wait for them, and
  no longer than `window_ms`: a single client never waits.
  """

  def __init__(
    self,
    run: Callable[[Hashable, Sequence[Any]], Sequence[Any]],
    *,
    max_batch: int,
    window_ms: float = 2.0,
    max_queue: int = 256,
    clients: Callable[[], int] = lambda: 1,
  ):
    """Starts the thread.

    Args:
      run: (key, items) -> a result, or an exception, for each; called by one thread alone.
      max_batch: the most items of a call.
      window_ms: how long the oldest request may wait for others.
      max_queue: requests that may wait; more are refused.
      clients: how many there are at present.
    """
    self._run, self._max_batch, self._max_queue = run, max_batch, max_queue
    self._window, self._clients = window_ms / 1e3, clients
    self._waiting: deque[_Request] = deque()
    self._changed = threading.Condition()
    self._closed = False
    self._running_since: float | None = None
    self._thread = threading.Thread(target=self._loop, name="batcher", daemon=True)
    self._thread.start()

  def submit(self, key: Hashable, item: Any) -> futures.Future:
    """Returns the future result; raises Busy where the queue is full or closed."""
    with self._changed:
      if self._closed:
        raise Busy("the server is stopping")
      if len(self._waiting) >= self._max_queue:
        raise Busy(f"{self._max_queue} requests are waiting; try again later")
      request = _Request(key, item, time.monotonic(), futures.Future())
      self._waiting.append(request)
      self._changed.notify()
    return request.future

  def close(self, seconds: float = 10.0) -> None:
    """Finishes what waits, and ends the thread; gives up on a batch that takes longer."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join(seconds)

  def busy_s(self) -> float:
    """Returns for how long the batch that runs has been running; infinity if the thread is dead."""
    if not self._thread.is_alive():
      return math.inf
    since = self._running_since
    return 0.0 if since is None else time.monotonic() - since

  def _loop(self) -> None:
    while batch := self._next():
      running = [request for request in batch if request.future.set_running_or_notify_cancel()]
      if not running:
        continue
      self._running_since = time.monotonic()
      try:
        results = self._run(running[0].key, [request.item for request in running])
      except Exception as error:  # nobody of the batch is left without an answer
        results = [error] * len(running)
      self._running_since = None
      for request, result in zip(running, results, strict=True):
        if isinstance(result, Exception):
          request.future.set_exception(result)
        else:
          request.future.set_result(result)

  def _next(self) -> list[_Request]:
    """Returns requests of one key, the oldest first; none where all is done."""
    with self._changed:
      while not self._waiting:
        if self._closed:
          return []
        self._changed.wait()
      until = self._waiting[0].since + self._window
      while not self._closed and len(self._waiting) < min(self._clients(), self._max_batch):
        left = until - time.monotonic()
        if left <= 0:
          break
        self._changed.wait(left)
      key = self._waiting[0].key
      alike = [request for request in self._waiting if request.key == key][: self._max_batch]
      taken = set(map(id, alike))
      self._waiting = deque(x for x in self._waiting if id(x) not in taken)
      return alike
