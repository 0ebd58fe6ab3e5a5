"""Requests to answers, whatever protocol they come by: one policy, many clients, batched."""

from collections.abc import Mapping, Sequence
from concurrent import futures
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax.export import limits as limits_lib
from oat_jax.export import loader
from oat_jax.serve import batcher
from oat_jax.serve import figures
from oat_jax.serve import keymap as keymap_lib

# Of a request, besides what is observed; all may be left out.
SETTINGS = ("num_tokens", "deadline_ms", "mean_tokens", "seed", "episode_id", "last_action")


class Setting(NamedTuple):
  """What requests of one batch agree on; a seed of its own keeps a request alone."""

  num_tokens: int
  mean_tokens: int | None = None
  seed: int | None = None


class Answer(NamedTuple):
  """One chunk, float32 (C, A), how many tokens it took, and whether its deadline could be met."""

  actions_CA: np.ndarray
  num_tokens: int
  deadline_met: bool
  ms: float  # of the batch that it was computed in


class _Item(NamedTuple):
  batch: dict[str, Any]  # of one row
  last_A: np.ndarray | None
  deadline_met: bool


class Service:
  """A policy that is asked by many; `warm_up` before the first request, `close` behind the last."""

  def __init__(
    self,
    policy: loader.ExportedPolicy,
    keymap: keymap_lib.Keymap,
    *,
    max_batch: int = 16,
    window_ms: float = 2.0,
    max_queue: int = 256,
    deadline_ms: float | None = None,
  ):
    """`deadline_ms` is that of requests which name none; see `Batcher` for the others."""
    self.policy, self.keymap, self.figures = policy, keymap, figures.Figures()
    self._deadline_ms = deadline_ms
    # Every size that is run is compiled beforehand: powers of two up to the largest.
    self._sizes = [2**i for i in range(max_batch.bit_length()) if 2**i < max_batch] + [max_batch]
    self._ms: dict[int, float] = {}  # of each prefix length in the largest batch
    # Where draws are random, a request with a seed has a batch of its own, to be the same always.
    self._draws = policy.spec.sampling["temperature"] > 0 or policy.spec.tokens is None
    self._batcher = batcher.Batcher(
      self._run,
      max_batch=max_batch,
      window_ms=window_ms,
      max_queue=max_queue,
      clients=lambda: self.figures.clients,
    )

  def warm_up(self, repeats: int = 5) -> None:
    """Compiles the program of every batch size, and measures the largest for deadlines."""
    for size in self._sizes:
      if self.policy.spec.tolerances:
        self.policy.measure(size, int(min(self.policy.spec.tolerances)), repeats=1)
      self._ms = self.policy.measure(size, repeats=repeats if size == self._sizes[-1] else 1)

  def close(self) -> None:
    """Answers what was asked already."""
    self._batcher.close()

  def metadata(self) -> dict[str, Any]:
    """Returns what a client is told first: all of the spec that it can use, as plain values."""
    spec = self.policy.spec
    return {
      "server": "oat_jax",
      "model": spec.name,
      "action_horizon": spec.batch.action_horizon,
      "action_dim": spec.batch.action_dim,
      "action_names": list(spec.batch.action_names),
      "observation": dict(spec.observation),
      "tasks": list(spec.batch.task_names),
      "limits": dict(spec.limits),
      "tokens": None if spec.tokens is None else dict(spec.tokens),
      "tolerances": dict(spec.tolerances),
      "settings": list(SETTINGS),
      "checkpoint": dict(spec.checkpoint),
      "versions": dict(spec.versions),
      "keymap": {"state": list(self.keymap.state), "images": dict(self.keymap.images)},
    }

  def submit(self, request: Mapping[str, Any]) -> futures.Future:
    """Returns the future `Answer` of one request.

    Raises:
      ValueError: the request does not fit the policy.
      batcher.Busy: too many are waiting.
    """
    if not isinstance(request, Mapping):
      raise ValueError(f"the request is {type(request).__name__}; a map is needed")
    spec = self.policy.spec.batch
    observation = keymap_lib.translate(request, self.keymap, spec)
    batch, batched = self.policy.batch(observation)
    if batched:
      raise ValueError("the observation has a batch axis; a request is of one robot")
    setting, met = self._setting(request)
    last_A = _numbers(request, "last_action", spec.action_dim)
    return self._batcher.submit(setting, _Item(batch, last_A, met))

  def _setting(self, request: Mapping[str, Any]) -> tuple[Setting, bool]:
    """Returns how the chunk is to be made, and whether that can meet the deadline."""
    most, budgets = self.policy.max_tokens, sorted(self._ms) or [self.policy.max_tokens]
    K = _whole(request, "num_tokens", 1, most)
    mean_tokens = _whole(request, "mean_tokens", 1, most)
    seed = _whole(request, "seed", 0, 2**32 - 1)
    self.policy.check_mean_tokens(mean_tokens)
    K = most if K is None else K
    deadline_ms = request.get("deadline_ms", self._deadline_ms)
    met = True
    if deadline_ms is not None:
      if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float | np.number):
        raise ValueError(f"'deadline_ms' is {deadline_ms!r}; a number of milliseconds is needed")
      if not deadline_ms > 0:
        raise ValueError(f"'deadline_ms' is {deadline_ms}; it must be above 0")
      fitting = [k for k, ms in self._ms.items() if ms <= deadline_ms and k <= K]
      met, K = bool(fitting), max(fitting, default=budgets[0])
    return Setting(K, mean_tokens, seed if self._draws else None), met

  def _run(self, setting: Any, items: Sequence[Any]) -> list[Answer | Exception]:
    rows = len(items)
    size = next(size for size in self._sizes if size >= rows)
    padded = [item.batch for item in items] + [items[0].batch] * (size - rows)
    batch = jax.tree.map(lambda *x: np.concatenate(x), *padded)
    try:
      actions_BCA, info = self.policy.act_on(batch, **setting._asdict())
    except ValueError as error:  # of a batch that was checked: it is no client's
      raise RuntimeError(f"acting failed: {error}") from error
    self.figures.batch(rows)
    spent_B = np.broadcast_to(info["num_tokens"], size)
    answers: list[Answer | Exception] = []
    for item, actions_CA, spent in zip(items, actions_BCA, spent_B):
      try:  # NaN never leaves the server, and is nobody else's fault
        allowed_CA = limits_lib.apply(self.policy.limits, actions_CA, item.last_A)
        answers.append(Answer(allowed_CA, int(spent), item.deadline_met, info["ms"]))
      except ValueError as error:
        answers.append(error)
    return answers


class Clock:
  """Milliseconds since it was made."""

  def __init__(self):
    self._begin = time.perf_counter()

  @property
  def ms(self) -> float:
    return 1e3 * (time.perf_counter() - self._begin)


def _whole(request: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
  value = request.get(name)
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
    raise ValueError(f"'{name}' is {value!r}; a whole number in {low}..{high} is needed")
  return int(value)


def _numbers(request: Mapping[str, Any], name: str, count: int) -> np.ndarray | None:
  if request.get(name) is None:
    return None
  value = np.asarray(request[name])
  if value.shape != (count,) or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
    raise ValueError(
      f"'{name}' is {value.dtype}{list(value.shape)}; {count} finite numbers are needed"
    )
  return value.astype(np.float32)
