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
  """Threads that each take the oldest request, and with it others of its key.

  While batches run, requests wait and make the next ones, so clients share the device without any
  waiting of its own. Only where more clients are there than have asked does a thread wait for them,
  and no longer than `window_ms`: a single client never waits. Where several batches run side by
  side, each takes its share, so that none of the threads is left without work.
  """

  def __init__(
    self,
    run: Callable[[Hashable, Sequence[Any]], Sequence[Any]],
    *,
    max_batch: int,
    window_ms: float = 2.0,
    max_queue: int = 256,
    clients: Callable[[], int] = lambda: 1,
    workers: int = 1,
  ):
    """Starts the threads.

    Args:
      run: (key, items) -> a result, or an exception, for each; called by all of the threads.
      max_batch: the most items of a call.
      window_ms: how long the oldest request may wait for others.
      max_queue: requests that may wait; more are refused.
      clients: how many there are at present.
      workers: batches that run side by side.
    """
    self._run, self._max_batch, self._max_queue = run, max_batch, max_queue
    self._window, self._clients, self._workers = window_ms / 1e3, clients, workers
    self._waiting: deque[_Request] = deque()
    self._changed = threading.Condition()
    self._closed = False
    self._since: dict[int, float] = {}  # which batches run, by thread
    start = lambda i: threading.Thread(target=self._loop, args=(i,), name="batcher", daemon=True)
    self._threads = [start(i) for i in range(workers)]
    for thread in self._threads:
      thread.start()

  def submit(self, key: Hashable, item: Any) -> futures.Future:
    """Returns the future result; raises Busy where the queue is full or closed."""
    with self._changed:
      if self._closed:
        raise Busy("the server is stopping")
      if len(self._waiting) >= self._max_queue:
        raise Busy(f"{self._max_queue} requests are waiting; try again later")
      request = _Request(key, item, time.monotonic(), futures.Future())
      self._waiting.append(request)
      self._changed.notify_all()
    return request.future

  def close(self, seconds: float = 10.0) -> None:
    """Finishes what waits, and ends the threads; gives up on batches that take longer."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
    until = time.monotonic() + seconds
    for thread in self._threads:
      thread.join(max(0.0, until - time.monotonic()))

  def busy_s(self) -> float:
    """Returns for how long the oldest batch has been running; infinity if a thread is dead."""
    if not all(thread.is_alive() for thread in self._threads):
      return math.inf
    now = time.monotonic()
    return now - min(list(self._since.values()), default=now)

  def _loop(self, worker: int) -> None:
    while batch := self._next():
      running = [request for request in batch if request.future.set_running_or_notify_cancel()]
      if not running:
        continue
      self._since[worker] = time.monotonic()
      try:
        results = self._run(running[0].key, [request.item for request in running])
      except Exception as error:  # nobody of the batch is left without an answer
        results = [error] * len(running)
      del self._since[worker]
      for request, result in zip(running, results, strict=True):
        if isinstance(result, Exception):
          request.future.set_exception(result)
        else:
          request.future.set_result(result)

  def _next(self) -> list[_Request]:
    """Returns requests of one key, the oldest first; none where all is done."""
    with self._changed:
      while True:
        while not self._waiting:
          if self._closed:
            return []
          self._changed.wait()
        until = self._waiting[0].since + self._window
        while self._waiting and not self._closed:
          left = until - time.monotonic()
          if left <= 0 or len(self._waiting) >= self._share(self._clients()):
            break
          self._changed.wait(left)
        if self._waiting:  # else another thread has taken them
          break
      key, most = self._waiting[0].key, self._share(max(self._clients(), len(self._waiting)))
      alike = [request for request in self._waiting if request.key == key][:most]
      taken = set(map(id, alike))
      self._waiting = deque(x for x in self._waiting if id(x) not in taken)
      return alike

  def _share(self, requests: int) -> int:
    """Returns how many of so many requests a thread takes."""
    return min(self._max_batch, max(1, math.ceil(requests / self._workers)))
