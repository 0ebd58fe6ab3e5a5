"""What a server has done, in Prometheus' text format; counters may be told from any thread."""

from collections.abc import Iterable
import threading

# Upper ends, in milliseconds and in rows.
MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
  """Counts of values up to each end, as Prometheus accumulates them."""

  def __init__(self, ends: Iterable[float]):
    self.ends = tuple(ends)
    self.counts, self.total, self.count = [0] * len(self.ends), 0.0, 0

  def add(self, value: float) -> None:
    self.total += value
    self.count += 1
    for i, end in enumerate(self.ends):
      self.counts[i] += value <= end

  def lines(self, name: str, label: str) -> list[str]:
    join = f"{label}," if label else ""
    braces = f"{{{label}}}" if label else ""
    each = [f'{name}_bucket{{{join}le="{e:g}"}} {n}' for e, n in zip(self.ends, self.counts)]
    last = [f'{name}_bucket{{{join}le="+Inf"}} {self.count}']
    return (
      each + last + [f"{name}_sum{braces} {self.total:g}", f"{name}_count{braces} {self.count}"]
    )


class Figures:
  """Requests by protocol, errors by kind, sizes of batches, latencies by tokens, clients."""

  def __init__(self):
    self._lock = threading.Lock()
    self._requests: dict[str, int] = {}
    self._errors: dict[str, int] = {}
    self._batches = Histogram(ROWS)
    self._latency: dict[int, Histogram] = {}
    self._missed = 0
    self.clients = 0

  def request(self, protocol: str) -> None:
    with self._lock:
      self._requests[protocol] = self._requests.get(protocol, 0) + 1

  def error(self, kind: str) -> None:
    with self._lock:
      self._errors[kind] = self._errors.get(kind, 0) + 1

  def batch(self, rows: int) -> None:
    with self._lock:
      self._batches.add(rows)

  def answered(self, num_tokens: int, ms: float, met: bool) -> None:
    """One answer of K tokens, and how long it took from the request on."""
    with self._lock:
      self._latency.setdefault(num_tokens, Histogram(MS)).add(ms)
      self._missed += not met

  def connected(self, change: int) -> None:
    with self._lock:
      self.clients += change

  def text(self) -> str:
    """Returns the page that /metrics shows."""
    with self._lock:
      lines = ["# TYPE oat_jax_requests_total counter"]
      lines += [
        f'oat_jax_requests_total{{protocol="{k}"}} {n}' for k, n in sorted(self._requests.items())
      ]
      lines += ["# TYPE oat_jax_errors_total counter"]
      lines += [f'oat_jax_errors_total{{kind="{k}"}} {n}' for k, n in sorted(self._errors.items())]
      lines += ["# TYPE oat_jax_deadlines_missed_total counter"]
      lines += [f"oat_jax_deadlines_missed_total {self._missed}"]
      lines += ["# TYPE oat_jax_clients gauge", f"oat_jax_clients {self.clients}"]
      lines += [
        "# TYPE oat_jax_batch_rows histogram",
        *self._batches.lines("oat_jax_batch_rows", ""),
      ]
      lines += ["# TYPE oat_jax_latency_ms histogram"]
      for K, histogram in sorted(self._latency.items()):
        lines += histogram.lines("oat_jax_latency_ms", f'num_tokens="{K}"')
    return "\n".join(lines) + "\n"
