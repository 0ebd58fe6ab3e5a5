"""Episodes side by side in a simulator, driven by any callable that gives chunks of actions.

Receding horizon: a chunk of C actions is asked for, its first R are executed, and the next chunk is
asked for.
"""

from collections.abc import Callable, Sequence
import time
from typing import Any, NamedTuple

import numpy as np
import tqdm

from oat_jax.evaluate import chunks
from oat_jax.export import limits as limits_lib


class Acted(NamedTuple):
  """What one call of a policy gave for B episodes.

  Attributes:
    actions_BCA: chunks.
    num_tokens_B: tokens generated for each row, 0 where there are none; None for 0 everywhere.
    ms: wall milliseconds of the call, for all rows together; 0 where no policy was asked.
  """

  actions_BCA: np.ndarray
  num_tokens_B: np.ndarray | None = None
  ms: float = 0.0


# (state of the episodes, active_B, last_BA) -> chunks; rows that are not active are ignored. The
# last is what each episode executed last, NaN where that is nothing; None before the first step.
Act = Callable[[Any, np.ndarray, np.ndarray | None], Acted]


class Episode(NamedTuple):
  """One row of a report.

  Attributes:
    method: who acted: the policy's name, ceiling, or expert.
    num_tokens: K, or 0 where there are no tokens.
    replan: R, steps executed of each chunk.
    task, seed: of the episode; the seed fixes the goal.
    success: whether the task was solved within the steps allowed.
    steps: control steps executed.
    calls: chunks that were asked for.
    tokens: tokens generated for a chunk, mean over the calls.
    policy_ms: wall milliseconds of the batched calls that gave the chunks, mean over the calls.
  """

  method: str
  num_tokens: int
  replan: int
  task: str
  seed: int
  success: bool
  steps: int
  calls: int
  tokens: float
  policy_ms: float


class Outcome(NamedTuple):
  """What became of the episodes, in the order in which they were asked for.

  Attributes:
    rows: of the report.
    actions: float32 (steps, A) of each episode, as they were executed.
    restarts: times that each episode began again because its simulator process died.
  """

  rows: list[Episode]
  actions: list[np.ndarray]
  restarts: list[int]


def assignments(tasks: Sequence[str], episodes: int, first_seed: int) -> list[tuple[str, int]]:
  """Returns (task, seed) for `episodes` episodes of each task."""
  return [(task, first_seed + i) for i in range(episodes) for task in tasks]


def run(
  env: Any,
  act: Act,
  pairs: Sequence[tuple[str, int]],
  *,
  replan: int,
  method: str,
  num_tokens: int = 0,
  ensemble: float | None = None,
  limits: limits_lib.Limits | None = None,
  progress: bool = True,
) -> Outcome:
  """Runs every (task, seed) to its end.

  An episode whose simulator process died begins again, with nothing of its first try in its row.

  Args:
    env: an `oat_jax.envs.vector.VectorEnv`.
    act: gives the chunks.
    pairs: the episodes.
    replan: R; the chunks must have at least as many steps.
    method, num_tokens: noted in the rows.
    ensemble: m of `chunks.Ensemble`, to execute the average of overlapping chunks; None for the
      newest chunk alone.
    limits: that the average is held to; chunks are by whoever acts.
    progress: shows a bar of finished episodes.

  Raises:
    ValueError: replan is below 1 or longer than the chunks.
    RuntimeError: an episode's simulator process dies again and again.
  """
  if replan < 1:
    raise ValueError(f"replan is {replan}; it must be at least 1")
  average = None if ensemble is None else chunks.Ensemble(ensemble, replan)
  state = env.start(pairs)
  B = len(pairs)
  calls_B, tokens_B, ms_B = np.zeros(B, np.int64), np.zeros(B), np.zeros(B)
  executed: list[list[np.ndarray]] = [[] for _ in pairs]
  label = f"{method} R={replan}" + (f" K={num_tokens}" if num_tokens else "")
  with tqdm.tqdm(total=B, desc=f"{label:<20}", unit="ep", disable=not progress) as bar:
    while not state.done.all():
      active_B = ~state.done
      last_BA = _last(executed)
      acted = act(state, active_B, last_BA)
      C = acted.actions_BCA.shape[1]
      if C < replan:
        raise ValueError(f"replan is {replan}, but a chunk has {C} steps")
      whole = acted.actions_BCA
      actions_BRA = whole[:, :replan]
      if average is not None:
        actions_BRA = average(whole)
        if limits is not None:
          actions_BRA = limits_lib.follow(limits, actions_BRA, last_BA)
      calls_B += active_B
      tokens_B += 0 if acted.num_tokens_B is None else active_B * acted.num_tokens_B
      ms_B += active_B * acted.ms
      before, state = state, env.step(actions_BRA, active_B)
      for b in np.flatnonzero(active_B):
        executed[b].append(actions_BRA[b, : max(state.steps[b] - before.steps[b], 0)])
      again_B = state.restarts > before.restarts
      calls_B[again_B], tokens_B[again_B], ms_B[again_B] = 0, 0, 0
      for b in np.flatnonzero(again_B):
        executed[b].clear()
      if average is not None:
        average.clear(again_B)
      bar.update(int(state.done.sum()) - bar.n)
      bar.set_postfix(success=int(state.success.sum()), refresh=False)
  means = zip(calls_B.tolist(), (tokens_B / calls_B).tolist(), (ms_B / calls_B).tolist())
  ends = zip(state.success.tolist(), state.steps.tolist())
  rows = [
    Episode(method, num_tokens, replan, task, seed, *end, *mean)
    for (task, seed), end, mean in zip(pairs, ends, means)
  ]
  return Outcome(rows, [np.concatenate(parts) for parts in executed], state.restarts.tolist())


def _last(executed: Sequence[Sequence[np.ndarray]]) -> np.ndarray | None:
  """Returns what each episode executed last, as `Act` takes it."""
  ends = [parts[-1][-1] if parts and len(parts[-1]) else None for parts in executed]
  some = next((end_A for end_A in ends if end_A is not None), None)
  if some is None:
    return None
  return np.stack([np.full_like(some, np.nan) if end_A is None else end_A for end_A in ends])


def latency_ms(acts: Sequence[Callable[[], Any]]) -> dict[str, float]:
  """Returns mean, p50 and p95 of the wall milliseconds of calls, warm; each must wait for its end.

  Args:
    acts: called in turn. Programs are compiled beforehand; the first calls warm the caches.
  """
  for act in acts[:5]:
    act()
  times = []
  for act in acts:
    begin = time.perf_counter()
    act()
    times.append(1e3 * (time.perf_counter() - begin))
  of = lambda q: float(np.percentile(times, q))
  return {"mean": float(np.mean(times)), "p50": of(50), "p95": of(95)}
