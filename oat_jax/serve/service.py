"""Requests to answers, whatever protocol they come by: one policy, many clients, batched."""

from collections.abc import Mapping, Sequence
from concurrent import futures
import itertools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax.export import directory
from oat_jax.export import limits as limits_lib
from oat_jax.export import loader
from oat_jax.export import versions
from oat_jax.serve import batcher
from oat_jax.serve import figures
from oat_jax.serve import keymap as keymap_lib

# Of a request, besides what is observed; all may be left out.
SETTINGS = ("num_tokens", "deadline_ms", "mean_tokens", "seed", "last_action")

STUCK_S = 60.0  # a batch that runs for longer


class NotFinite(RuntimeError):
  """The policy's chunk held NaN or infinity: nothing of it is told."""


class Setting(NamedTuple):
  """What requests of one batch agree on."""

  num_tokens: int
  mean_tokens: int | None = None
  seed: int | None = None
  alone: int = 0  # a number of its own keeps a request alone


class Answer(NamedTuple):
  """What a request is answered.

  Attributes:
    actions_CA: one chunk, float32, within the limits.
    num_tokens: that it took.
    deadline_met: whether it was there in time, as far as the server can see.
    ms: of the batch that it was computed in.
  """

  actions_CA: np.ndarray
  num_tokens: int
  deadline_met: bool
  ms: float


class _Item(NamedTuple):
  batch: dict[str, Any]  # of one row
  last_A: np.ndarray | None
  deadline_ms: float | None
  clock: "Clock"


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
    workers: int = 1,
  ):
    """`deadline_ms` is that of requests which name none; see `Batcher` for the others."""
    self.policy, self.keymap, self.figures = policy, keymap, figures.Figures()
    self._deadline_ms = deadline_ms
    # Every size that is run is compiled beforehand: powers of two up to the largest.
    self._sizes = [2**i for i in range(max_batch.bit_length()) if 2**i < max_batch] + [max_batch]
    # Milliseconds of each prefix length in the largest batch, without and with early ends.
    self._ms: dict[bool, dict[int, float]] = {False: {}, True: {}}
    self._alone = itertools.count(1)
    # Where draws are random, a request with a seed is run alone, to be the same always.
    self._draws = policy.spec.sampling["temperature"] > 0 or policy.spec.tokens is None
    self._batcher = batcher.Batcher(
      self._run,
      max_batch=max_batch,
      window_ms=window_ms,
      max_queue=max_queue,
      clients=lambda: self.figures.clients,
      workers=workers,
    )

  def warm_up(self, repeats: int = 5) -> None:
    """Compiles the program of every batch size, and measures the largest for deadlines."""
    for size in self._sizes:
      times = repeats if size == self._sizes[-1] else 1
      self._ms[False] = self.policy.measure(size, repeats=times)
      if self.policy.spec.tolerances:
        fewest = min(map(int, self.policy.spec.tolerances))
        self._ms[True] = self.policy.measure(size, fewest, repeats=times)

  def close(self) -> None:
    """Answers what was asked already."""
    self._batcher.close()

  def healthy(self) -> bool:
    """Whether the thread that acts lives, and its batch is not stuck."""
    return self._batcher.busy_s() < STUCK_S

  def metadata(self) -> dict[str, Any]:
    """Returns what a client is told first: all of the spec that it can use, as plain values."""
    spec = self.policy.spec
    return directory.description(spec) | {
      "server": "oat_jax",
      "server_versions": versions.of("jax", "jaxlib", "numpy"),  # "versions" wrote the export
      "action_horizon": spec.batch.action_horizon,
      "action_dim": spec.batch.action_dim,
      "action_names": list(spec.batch.action_names),
      "observation_steps": spec.batch.observation_steps,
      "tasks": list(spec.batch.task_names),
      "settings": list(SETTINGS),
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
    observation = keymap_lib.translate(request, self.keymap, self.policy.spec.batch)
    return self.submit_observation(observation, request)

  def submit_observation(
    self, observation: Mapping[str, Any], settings: Mapping[str, Any]
  ) -> futures.Future:
    """As `submit`, of an observation in our own names and the `SETTINGS` that are given."""
    batch, batched = self.policy.batch(observation)
    if batched:
      raise ValueError("the observation has a batch axis; a request is of one robot")
    most = self.policy.max_tokens
    K, mean_tokens = (_whole(settings, name, 1, most) for name in ("num_tokens", "mean_tokens"))
    seed = _whole(settings, "seed", 0, 2**32 - 1)
    self.policy.check_mean_tokens(mean_tokens)
    K = most if K is None else K
    deadline_ms = _milliseconds(settings.get("deadline_ms", self._deadline_ms))
    if deadline_ms is not None:
      measured = self._ms[mean_tokens is not None]
      K = max((k for k, ms in measured.items() if ms <= deadline_ms and k <= K), default=1)
    seed = seed if self._draws else None
    setting = Setting(K, mean_tokens, seed, 0 if seed is None else next(self._alone))
    last_A = _numbers(settings, "last_action", self.policy.spec.batch.action_dim)
    return self._batcher.submit(setting, _Item(batch, last_A, deadline_ms, Clock()))

  def _run(self, setting: Any, items: Sequence[Any]) -> list[Answer | Exception]:
    rows = len(items)
    size = next(size for size in self._sizes if size >= rows)
    padded = [item.batch for item in items] + [items[0].batch] * (size - rows)
    batch = jax.tree.map(lambda *x: np.concatenate(x), *padded)
    K, mean_tokens, seed, _ = setting
    try:
      actions_BCA, info = self.policy.act_on(
        batch, num_tokens=K, mean_tokens=mean_tokens, seed=seed
      )
    except ValueError as error:  # of a batch that was checked: it is no client's
      raise RuntimeError(f"acting failed: {error}") from error
    self.figures.batch(rows)
    spent_B = np.broadcast_to(info["num_tokens"], size)
    answers: list[Answer | Exception] = []
    for item, actions_CA, spent in zip(items, actions_BCA, spent_B):
      try:
        allowed_CA = limits_lib.apply(self.policy.limits, actions_CA, item.last_A)
      except ValueError:  # nobody else's fault
        answers.append(NotFinite("the policy's chunk holds NaN or infinity; nothing of it is told"))
        continue
      took = item.clock.ms
      met = item.deadline_ms is None or took <= item.deadline_ms
      answers.append(Answer(allowed_CA, int(spent), met, info["ms"]))
      self.figures.answered(int(spent), took, met)
    return answers


class Clock:
  """Milliseconds since it was made."""

  def __init__(self):
    self._begin = time.perf_counter()

  @property
  def ms(self) -> float:
    return 1e3 * (time.perf_counter() - self._begin)


def _whole(settings: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
  value = settings.get(name)
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
    raise ValueError(f"'{name}' is {_short(value)}; a whole number in {low}..{high} is needed")
  return int(value)


def _milliseconds(value: Any) -> float | None:
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int | float | np.number):
    raise ValueError(f"'deadline_ms' is {_short(value)}; a number of milliseconds is needed")
  if not value > 0:
    raise ValueError(f"'deadline_ms' is {value}; it must be above 0")
  return float(value)


def _numbers(settings: Mapping[str, Any], name: str, count: int) -> np.ndarray | None:
  if settings.get(name) is None:
    return None
  value = np.asarray(settings[name])
  wrong = f"'{name}' is {value.dtype}{list(value.shape)}; {count} finite numbers are needed"
  if value.shape != (count,) or value.dtype.kind not in "iuf":
    raise ValueError(wrong)
  with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
    value = value.astype(np.float32)
  if not np.isfinite(value).all():
    raise ValueError(wrong)
  return value


def _short(value: Any) -> str:
  """Returns how a value looks, of any length in a few characters."""
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:60]}..."
