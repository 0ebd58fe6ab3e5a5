"""Many episodes side by side in several processes, stepped in whole chunks.

One message serves R control steps of an episode. A process holds one simulator per task, whatever
the number of its episodes: their states are swapped in and out, which takes far less time than a
chunk and keeps memory flat (a MetaWorld simulator takes 35 MB and 0.1 s to make).

A process that dies is replaced, and the episodes that it held begin again from their seeds.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
import sys
from typing import Any, NamedTuple

import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import process

MAX_RESTARTS = 2  # of an episode, between two calls of `VectorEnv.start`


class VectorState(NamedTuple):
  """Where B episodes stand; windows begin with copies of the first observation, masked."""

  observation: dict[str, np.ndarray]  # (B, T, ...) of the last T control steps, oldest first
  observation_mask: np.ndarray  # bool (B, T), false where the episode had not begun yet
  done: np.ndarray  # bool (B,): success or out of steps
  success: np.ndarray  # bool (B,)
  steps: np.ndarray  # int32 (B,): control steps executed
  restarts: np.ndarray  # int32 (B,): times that the episode began again, its process having died


class VectorEnv:
  """Episodes of one suite; a context manager, to be kept and started again for every evaluation."""

  def __init__(
    self,
    suite_name: str,
    num_processes: int | None = None,
    *,
    observation_steps: int = 2,
    max_steps: int | None = None,
    cameras: tuple[str, ...] = (),
    image_size: int = 128,
  ):
    """Starts the processes.

    Args:
      suite_name: a registered suite.
      num_processes: one per core that this process may use, if None.
      observation_steps: T, the length of the window of observations.
      max_steps: control steps of an episode; the suite's if None.
      cameras: cameras to render.
      image_size: pixels.
    """
    self.suite = env_lib.suite(suite_name)
    self.max_steps = self.suite.max_steps if max_steps is None else max_steps
    self.observation_steps = observation_steps
    for name, value in (("max_steps", self.max_steps), ("observation_steps", observation_steps)):
      if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    if cameras:
      env_lib.choose_renderer()
    args = (suite_name, observation_steps, self.max_steps, tuple(cameras), image_size)
    self._make_worker = lambda: process.Worker(f"{__name__}:Slots", *args)
    self._workers = [self._make_worker() for _ in range(process.count(num_processes))]
    # Slot b belongs to worker b % len(workers).
    self._crashes: dict[int, process.Crash] = {}  # of workers whose episodes have to begin again
    self._assignments: list[tuple[str, int]] = []
    self._restarts_B = np.zeros(0, np.int32)
    self._state: VectorState | None = None

  def __enter__(self) -> "VectorEnv":
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    self.close(now=kind is not None)

  def close(self, now: bool = False) -> None:
    """Ends the processes; with `now` without letting them finish what they are doing."""
    process.close(self._workers, now)
    self._workers = []

  def start(self, assignments: Sequence[tuple[str, int]]) -> VectorState:
    """Resets to one episode per (task, seed) and returns their first observations."""
    for task, seed in assignments:
      if task not in self.suite.tasks:
        raise ValueError(
          f"suite {self.suite.name} has no task '{task}'; its tasks are"
          f" {', '.join(self.suite.tasks)}"
        )
      if seed < 0:
        raise ValueError(f"task '{task}': seed is {seed}; it must not be negative")
    if not assignments:
      raise ValueError("no (task, seed) to start")
    self._assignments = [(task, int(seed)) for task, seed in assignments]
    self._state = None
    self._crashes.clear()
    self._restarts_B = np.zeros(len(assignments), np.int32)
    rows = self._begin(range(len(assignments)))
    leaves = [rows[b] for b in range(len(assignments))]
    done_B, success_B, steps_B = (np.stack([row[i] for row in leaves]) for i in (2, 3, 4))
    self._state = VectorState(
      {name: np.stack([row[0][name] for row in leaves]) for name in leaves[0][0]},
      np.stack([row[1] for row in leaves]),
      done_B,
      success_B,
      steps_B,
      self._restarts_B,
    )
    return self._copy()

  def step(self, actions_BRA: np.ndarray, active_B: np.ndarray | None = None) -> VectorState:
    """Executes up to R actions in every episode, stopping each at its success or last step.

    Episodes whose process died in this call, or in `expert_chunks` before it, stand at their
    beginning afterwards; `restarts` counts it.

    Args:
      actions_BRA: float (B, R, A), clipped to [-1, 1].
      active_B: bool (B,); episodes that are false wait. All of them if None.

    Raises:
      ValueError: wrong shape, or NaN or infinity in an action to be executed.
      RuntimeError: nothing was started, or an episode's process died once more than `MAX_RESTARTS`
        times; the error names task and seed.
    """
    state = self._started()
    actions_BRA = np.asarray(actions_BRA, np.float32)
    B, A = len(self._assignments), self.suite.action_dim
    if actions_BRA.ndim != 3 or actions_BRA.shape[::2] != (B, A) or not actions_BRA.shape[1]:
      raise ValueError(
        f"actions have shape {list(actions_BRA.shape)}; expected [{B}, R, {A}] with R at least 1"
      )
    turns = self._turns(state, active_B)
    for b in turns:
      if not np.isfinite(actions_BRA[b]).all():
        task, seed = self._assignments[b]
        raise ValueError(f"task '{task}', seed {seed}: the actions hold NaN or infinity")
    self._update(self._call("step", {b: (actions_BRA[b],) for b in turns}))
    self._update(self._begin(self._orphans()))
    return self._copy()

  def expert_chunks(self, horizon: int, active_B: np.ndarray | None = None) -> np.ndarray:
    """Returns the scripted expert's next noise-free actions, float32 (B, C, A) in [-1, 1].

    The expert acts for C = `horizon` steps in closed loop from every episode's present state, on
    behind success, and the state is restored bit for bit. Zeros where the episode is done, not
    active, or has lost its process: it begins again in the next `step`.

    Raises:
      ValueError: a task has no expert.
    """
    state = self._started()
    if horizon < 1:
      raise ValueError(f"horizon is {horizon}; it must be at least 1")
    turns = self._turns(state, active_B)
    chunks_BCA = np.zeros((len(self._assignments), horizon, self.suite.action_dim), np.float32)
    for b, chunk_CA in self._call("expert_chunk", {b: (horizon,) for b in turns}).items():
      chunks_BCA[b] = chunk_CA
    return chunks_BCA

  def _begin(self, slots: Iterable[int]) -> dict[int, Any]:
    """Begins the episodes of these slots, again where their process dies; returns their rows."""
    rows, todo = {}, list(slots)
    while todo:
      rows |= self._call("start", {b: self._assignments[b] for b in todo})
      todo = self._orphans()
    return rows

  def _orphans(self) -> list[int]:
    """Returns the slots that have to begin again, those of the crashes since it was last asked."""
    orphans = []
    for index, crash in self._crashes.items():
      slots = range(index, len(self._assignments), len(self._workers))
      slots = [b for b in slots if self._state is None or not self._state.done[b]]
      self._restarts_B[slots] += 1
      if (self._restarts_B[slots] > MAX_RESTARTS).any():
        self.close(now=True)
        raise RuntimeError(
          f"{crash}. Its {len(slots)} episodes were begun {MAX_RESTARTS + 1} times and cannot be"
          " finished"
        ) from crash
      print(f"{crash.how}; begun again: {len(slots)} episodes", file=sys.stderr, flush=True)
      orphans += slots
    self._crashes.clear()
    return orphans

  def _turns(self, state: VectorState, active_B: np.ndarray | None) -> list[int]:
    """Returns the slots that are active, not done, and have not lost their process."""
    turns_B = ~state.done if active_B is None else ~state.done & np.asarray(active_B, bool)
    return [int(b) for b in np.flatnonzero(turns_B) if b % len(self._workers) not in self._crashes]

  def _update(self, rows: Mapping[int, Any]) -> None:
    """Writes rows of a `VectorState`, as they come from the processes."""
    state = self._started()
    for b, (window, *facts) in rows.items():
      for name, value in window.items():
        state.observation[name][b] = value
      for array, value in zip(state[1:], facts):
        array[b] = value

  def _started(self) -> VectorState:
    if self._state is None:
      raise RuntimeError("call start() first")
    return self._state

  def _copy(self) -> VectorState:
    state = self._started()
    return VectorState(
      {k: v.copy() for k, v in state.observation.items()}, *(v.copy() for v in state[1:])
    )

  def _call(self, method: str, args: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
    """Calls `method(slot, *args)` for every slot given, in its process; returns results by slot.

    A process that crashes is replaced and noted in `_crashes`; results of its slots may be missing.
    """
    if not self._workers:
      raise RuntimeError("this VectorEnv is closed")
    queues: dict[process.Worker, deque[int]] = {}
    for b in args:
      queues.setdefault(self._workers[b % len(self._workers)], deque()).append(b)
    results = {}
    try:
      for worker, slots in list(queues.items()):
        what = {b: "task '{}', seed {}".format(*self._assignments[b]) for b in slots}
        try:
          worker.submit([process.Call(method, (b, *args[b]), what[b]) for b in slots])
        except process.Crash as crash:
          self._replace(worker, crash)
          del queues[worker]
      while queues:
        for worker in process.wait(list(queues)):
          try:
            results[queues[worker][0]] = worker.result()
            queues[worker].popleft()
          except process.Crash as crash:
            self._replace(worker, crash)
            queues[worker].clear()
          if not queues[worker]:
            del queues[worker]
    except BaseException:
      self.close(now=True)  # answers still under way would be taken for those of the next call
      self._state = None
      raise
    return results

  def _replace(self, worker: process.Worker, crash: process.Crash) -> None:
    process.close([worker], now=True)
    index = self._workers.index(worker)
    self._workers[index] = self._make_worker()
    self._crashes[index] = crash


class _Slot:
  """One episode of a process."""

  def __init__(self, task: str, observation: env_lib.Observation, window: int):
    self.task = task
    self.history = deque([observation], maxlen=window)
    self.steps = 0
    self.success = False
    self.snapshot: Any = None  # of a slot that does not occupy its task's simulator


class Slots:
  """What a simulator process holds: a simulator per task and the episodes that share them."""

  def __init__(
    self, suite_name: str, window: int, max_steps: int, cameras: tuple[str, ...], image_size: int
  ):
    self._make = lambda task: env_lib.make(suite_name, task, cameras, image_size)
    self._window = window
    self._max_steps = max_steps
    self._envs: dict[str, env_lib.Env] = {}
    self._slots: dict[int, _Slot] = {}
    self._occupants: dict[str, _Slot] = {}

  def start(self, slot: int, task: str, seed: int) -> tuple[Any, ...]:
    if task not in self._envs:
      self._envs[task] = self._make(task)
    self._evict(task)
    observation, _ = self._envs[task].reset(seed=seed)
    self._slots[slot] = self._occupants[task] = _Slot(task, observation, self._window)
    return self._report(self._slots[slot])

  def step(self, slot: int, actions_RA: np.ndarray) -> tuple[Any, ...]:
    episode, env = self._enter(slot)
    unseen = len(actions_RA) - self._window
    for r, action_A in enumerate(actions_RA):
      if episode.success or episode.steps >= self._max_steps:
        break
      env.renders = r >= unseen  # most of a step's time; nobody sees what is before the window
      observation, _, _, _, info = env.step(action_A)
      # Without images of its own, which only an episode that ends now reports, it has the latest.
      episode.history.append(episode.history[-1] | observation)
      episode.steps += 1
      episode.success = info["success"]
    return self._report(episode)

  def expert_chunk(self, slot: int, horizon: int) -> np.ndarray:
    episode, env = self._enter(slot)
    expert = env.expert()
    if expert is None:
      raise ValueError(f"task '{episode.task}' has no scripted expert")
    before = env.snapshot()
    observation, actions = episode.history[-1], []
    env.blind = True
    try:
      for _ in range(horizon):
        actions.append(expert.act(observation))
        observation = env.step(actions[-1])[0]
    finally:
      env.blind = False
      env.restore(before)
    return np.stack(actions)

  def _enter(self, slot: int) -> tuple[_Slot, env_lib.Env]:
    """Brings a slot's state into its task's simulator."""
    episode = self._slots[slot]
    if self._occupants[episode.task] is not episode:
      self._evict(episode.task)
      self._envs[episode.task].restore(episode.snapshot)
      episode.snapshot = None
      self._occupants[episode.task] = episode
    return episode, self._envs[episode.task]

  def _evict(self, task: str) -> None:
    if task in self._occupants:
      self._occupants.pop(task).snapshot = self._envs[task].snapshot()

  def _report(self, episode: _Slot) -> tuple[Any, ...]:
    """The slot's row of a `VectorState`, but for `restarts`."""
    absent = self._window - len(episode.history)
    window = [episode.history[0]] * absent + list(episode.history)
    return (
      {name: np.stack([observation[name] for observation in window]) for name in window[0]},
      np.arange(self._window) >= absent,
      np.bool_(episode.success or episode.steps >= self._max_steps),
      np.bool_(episode.success),
      np.int32(episode.steps),
    )
