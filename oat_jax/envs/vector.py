"""Many episodes side by side in several processes, stepped in whole chunks.

One message serves R control steps of an episode. A process holds one simulator per task, whatever
the number of its episodes: their states are swapped in and out, which takes far less time than a
chunk and keeps memory flat (a MetaWorld simulator takes 35 MB and 0.1 s to make).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from oat_jax.envs import env as env_lib
from oat_jax.envs import process


class VectorState(NamedTuple):
  """Where B episodes stand; windows begin with copies of the first observation, masked."""

  observation: dict[str, np.ndarray]  # (B, T, ...) of the last T control steps, oldest first
  observation_mask: np.ndarray  # bool (B, T), false where the episode had not begun yet
  done: np.ndarray  # bool (B,): success or out of steps
  success: np.ndarray  # bool (B,)
  steps: np.ndarray  # int32 (B,): control steps executed


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
    self._workers = [
      process.Worker(f"{__name__}:Slots", *args) for _ in range(process.count(num_processes))
    ]
    self._assignments: list[tuple[str, int]] = []
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
    reports = self._call("start", {b: pair for b, pair in enumerate(self._assignments)})
    leaves = [reports[b] for b in range(len(assignments))]
    self._state = VectorState(
      {name: np.stack([report[0][name] for report in leaves]) for name in leaves[0][0]},
      *(np.stack([report[i] for report in leaves]) for i in range(1, len(VectorState._fields))),
    )
    return self._copy()

  def step(self, actions_BRA: np.ndarray, active_B: np.ndarray | None = None) -> VectorState:
    """Executes up to R actions in every episode, stopping each at its success or last step.

    Args:
      actions_BRA: float (B, R, A), clipped to [-1, 1].
      active_B: bool (B,); episodes that are false wait. All of them if None.

    Raises:
      ValueError: wrong shape, or NaN or infinity in an action to be executed.
      RuntimeError: nothing was started, or a simulator process died; the error names task and seed.
    """
    state = self._started()
    actions_BRA = np.asarray(actions_BRA, np.float32)
    B, A = len(self._assignments), self.suite.action_dim
    if actions_BRA.ndim != 3 or actions_BRA.shape[::2] != (B, A) or not actions_BRA.shape[1]:
      raise ValueError(
        f"actions have shape {list(actions_BRA.shape)}; expected [{B}, R, {A}] with R at least 1"
      )
    turns = np.flatnonzero(
      ~state.done if active_B is None else ~state.done & np.asarray(active_B, bool)
    )
    for b in turns:
      if not np.isfinite(actions_BRA[b]).all():
        task, seed = self._assignments[b]
        raise ValueError(f"task '{task}', seed {seed}: the actions hold NaN or infinity")
    reports = self._call("step", {int(b): (actions_BRA[b],) for b in turns})
    for b, (window, *facts) in reports.items():
      for name, value in window.items():
        state.observation[name][b] = value
      for array, value in zip(state[1:], facts):
        array[b] = value
    return self._copy()

  def expert_chunks(self, horizon: int, active_B: np.ndarray | None = None) -> np.ndarray:
    """Returns the scripted expert's next noise-free actions, float32 (B, C, A) in [-1, 1].

    The expert acts for C = `horizon` steps in closed loop from every episode's present state, on
    behind success, and the state is restored bit for bit. Zeros where the episode is done or not
    active.

    Raises:
      ValueError: a task has no expert.
    """
    state = self._started()
    if horizon < 1:
      raise ValueError(f"horizon is {horizon}; it must be at least 1")
    turns = np.flatnonzero(
      ~state.done if active_B is None else ~state.done & np.asarray(active_B, bool)
    )
    chunks_BCA = np.zeros((len(self._assignments), horizon, self.suite.action_dim), np.float32)
    for b, chunk_CA in self._call("expert_chunk", {int(b): (horizon,) for b in turns}).items():
      chunks_BCA[b] = chunk_CA
    return chunks_BCA

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
    """Calls `method(slot, *args)` for every slot given, in its process; returns results by slot."""
    if not self._workers:
      raise RuntimeError("this VectorEnv is closed")
    queues: dict[process.Worker, deque[int]] = {}
    for b in args:
      queues.setdefault(self._workers[b % len(self._workers)], deque()).append(b)
    results = {}
    try:
      for worker, slots in queues.items():
        what = {b: "task '{}', seed {}".format(*self._assignments[b]) for b in slots}
        worker.submit([process.Call(method, (b, *args[b]), what[b]) for b in slots])
      while queues:
        for worker in process.wait(list(queues)):
          results[queues[worker].popleft()] = worker.result()
          if not queues[worker]:
            del queues[worker]
    except BaseException:
      self.close(now=True)  # answers still under way would be taken for those of the next call
      self._state = None
      raise
    return results


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
    for action_A in actions_RA:
      if episode.success or episode.steps >= self._max_steps:
        break
      observation, _, _, _, info = env.step(action_A)
      episode.history.append(observation)
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
    """The slot's row of a `VectorState`."""
    absent = self._window - len(episode.history)
    window = [episode.history[0]] * absent + list(episode.history)
    return (
      {name: np.stack([observation[name] for observation in window]) for name in window[0]},
      np.arange(self._window) >= absent,
      np.bool_(episode.success or episode.steps >= self._max_steps),
      np.bool_(episode.success),
      np.int32(episode.steps),
    )
