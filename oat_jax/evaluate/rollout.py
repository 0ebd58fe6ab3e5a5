"""Episodes side by side in a simulator, driven by any callable that gives chunks of actions.

Receding horizon: a chunk of C actions is asked for, its first R are executed, and the next chunk is
asked for.
"""

from collections.abc import Callable, Sequence
import time
from typing import Any, NamedTuple

import numpy as np
import tqdm

# (state of the episodes, active_B) -> actions (B, C, A); rows that are not active are ignored.
Act = Callable[[Any, np.ndarray], np.ndarray]


class Episode(NamedTuple):
  """One row of a report.

  Attributes:
    method: who acted: the policy's name, ceiling, or expert.
    num_tokens: K, or 0 where there are no tokens.
    replan: R, steps executed of each chunk.
    task, seed: of the episode; the seed fixes the goal.
    success: whether the task was solved within the steps allowed.
    steps: control steps executed.
  """

  method: str
  num_tokens: int
  replan: int
  task: str
  seed: int
  success: bool
  steps: int


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
  progress: bool = True,
) -> list[Episode]:
  """Runs every (task, seed) to its end.

  Args:
    env: an `oat_jax.envs.vector.VectorEnv`.
    act: gives the chunks.
    pairs: the episodes.
    replan: R; the chunks must have at least as many steps.
    method, num_tokens: noted in the rows.
    progress: shows a bar of finished episodes.

  Raises:
    ValueError: replan is below 1 or longer than the chunks.
  """
  if replan < 1:
    raise ValueError(f"replan is {replan}; it must be at least 1")
  state = env.start(pairs)
  label = f"{method} R={replan}" + (f" K={num_tokens}" if num_tokens else "")
  with tqdm.tqdm(total=len(pairs), desc=f"{label:<20}", unit="ep", disable=not progress) as bar:
    while not state.done.all():
      chunks_BCA = act(state, ~state.done)
      if chunks_BCA.shape[1] < replan:
        raise ValueError(f"replan is {replan}, but a chunk has {chunks_BCA.shape[1]} steps")
      state = env.step(chunks_BCA[:, :replan], ~state.done)
      bar.update(int(state.done.sum()) - bar.n)
      bar.set_postfix(success=int(state.success.sum()), refresh=False)
  return [
    Episode(method, num_tokens, replan, task, seed, bool(state.success[b]), int(state.steps[b]))
    for b, (task, seed) in enumerate(pairs)
  ]


def latency_ms(act: Callable[[], Any], repeats: int = 100) -> dict[str, float]:
  """Returns p50 and p95 of the wall milliseconds of `act()`, warm; it must wait for its result."""
  for _ in range(5):
    act()
  times = []
  for _ in range(repeats):
    begin = time.perf_counter()
    act()
    times.append(1e3 * (time.perf_counter() - begin))
  return {"p50": float(np.percentile(times, 50)), "p95": float(np.percentile(times, 95))}
