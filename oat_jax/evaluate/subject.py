"""Who is evaluated: a policy, or a tokenizer over the expert's chunks, wherever it runs."""

from collections.abc import Callable, Mapping, Sequence
import functools
import itertools
from typing import Any, Protocol

import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.evaluate import rollout
from oat_jax.export import limits as limits_lib


class Subject(Protocol):
  """A model in this process or behind a server; the same things are asked of all of them.

  Attributes:
    where: the directory or address, for messages.
    method: the model's name, e.g. "autoregressive".
    spec: of its batches.
    state: features that `state` is made of, as the dataset or the simulator names them.
    max_tokens: N; 0 where there are no tokens.
    acts: whether it is a policy; a tokenizer only reconstructs.
    reconstructs: whether it can be asked for `reconstruct`.
    refines: whether its chunks can end early.
    facts: what a report says of it: `model`, a digest, `step`, and others.
    shown: `goals.demonstrated` of what it was trained on; None where nobody knows.
    limits: that its actions are held to; None where there are none.
  """

  where: str
  method: str
  spec: batch_lib.BatchSpec
  state: tuple[str, ...]
  max_tokens: int
  acts: bool
  reconstructs: bool
  refines: bool
  facts: dict[str, Any]
  shown: dict[str, Any] | None
  limits: limits_lib.Limits | None

  def act(
    self,
    batch: Mapping[str, Any],
    num_tokens: int,
    call: int = 0,
    stop: bool = False,
    active_B: np.ndarray | None = None,
    last_BA: np.ndarray | None = None,
  ) -> rollout.Acted:
    """Returns chunks of B rows, and waits for them; compilation is not in the milliseconds.

    Args:
      batch: of `batch.ACTING`.
      num_tokens: K, the first of the tokens that are decoded; of no meaning without tokens.
      call: another number draws other tokens, where sampling is random.
      stop: each row ends where further tokens are not expected to matter, and K are spent on
        average.
      active_B: rows that are not active may be answered with anything.
      last_BA: what was executed last, as `rollout.Act` has it; the limits' rate counts from it.
    """
    ...

  def tolerances(self, mean_tokens: Sequence[int]) -> dict[str, float]:
    """Returns {K: with which tolerance K tokens are spent on average}; ValueError if not known."""
    ...

  def windows(self, count: int, stop: bool) -> list[dict[str, Any]]:
    """Returns batches of one row to measure milliseconds on; none where it has none to show.

    Args:
      count: of them.
      stop: chunks end early, so that what is seen decides how long they take.
    """
    ...

  def reconstruct(self, chunks_BCA: np.ndarray, num_tokens: int) -> rollout.Acted:
    """Returns chunks, encoded and decoded from the first K tokens."""
    ...


def driver(
  subject: Subject, tasks: Sequence[str], num_tokens: int, stop: bool = False
) -> rollout.Act:
  """Returns what `rollout.run` calls, for episodes of these tasks; every K has equal draws."""
  calls = itertools.count()
  return lambda state, active_B, last_BA: subject.act(
    observe(state, tasks, subject), num_tokens, next(calls), stop, active_B, last_BA
  )


def ceiling_driver(env: Any, subject: Subject, num_tokens: int) -> rollout.Act:
  """The best a policy over these tokens could do: the expert's next chunk, encoded and decoded.

  At every replanning the scripted expert is rolled out noise-free from the saved simulator state.
  """
  chunks = lambda active_B: env.expert_chunks(subject.spec.action_horizon, active_B)
  return lambda state, active_B, last_BA: subject.reconstruct(chunks(active_B), num_tokens)


def expert_driver(env: Any, replan: int) -> rollout.Act:
  """The scripted expert itself, without a tokenizer: what the ceiling is measured against."""
  return lambda state, active_B, last_BA: rollout.Acted(env.expert_chunks(replan, active_B))


def observe(state: Any, tasks: Sequence[str], subject: Subject) -> dict[str, Any]:
  """Returns the batch that a policy acts on, from a `VectorState` and the tasks' names.

  Raises:
    ValueError: the simulator does not give what the policy looks at, or a task is not known.
  """
  spec = subject.spec
  names = spec.task_names
  unknown = sorted(set(tasks) - set(names)) if names != ("",) else []
  if unknown:
    raise ValueError(
      f"the policy does not know task '{unknown[0]}'; it was trained on {', '.join(names)}"
    )
  parts = []
  for name in subject.state:
    key = name.removeprefix("observation/")
    if key not in state.observation:
      raise ValueError(
        f"the policy reads '{name}'; the simulator gives {sorted(state.observation)}"
      )
    parts.append(state.observation[key])
  state_BTS = np.concatenate(parts, -1).astype(np.float32)
  if state_BTS.shape[1:] != (spec.observation_steps, spec.state_dim):
    raise ValueError(
      f"the policy reads states of shape {[spec.observation_steps, spec.state_dim]}; "
      f"the simulator gives {list(state_BTS.shape[1:])}"
    )
  ids = [names.index(task) if task in names else 0 for task in tasks]
  return {
    "observation": {
      **_images(state.observation, spec),
      "state": state_BTS,
      "task": np.asarray(ids, np.int32),
    },
    "observation_mask": state.observation_mask,
    "dataset": np.zeros(len(tasks), np.int32),
  }


def latency_ms(
  subject: Subject, budgets: Sequence[int], stop: bool, calls: int = 100
) -> dict[str, dict[str, float]]:
  """Returns {K: {mean, p50, p95}}: wall milliseconds from observation to chunk, batch size 1, warm.

  Empty where the subject has no windows to measure on.
  """
  batches = subject.windows(calls, stop) if budgets else []
  acts: Callable[[int], list[Any]] = lambda K: [
    functools.partial(subject.act, batch, K, stop=stop) for batch in batches
  ]
  return {str(K): rollout.latency_ms(acts(K)) for K in budgets} if batches else {}


def known_as(
  tasks: Sequence[str], spec: batch_lib.BatchSpec, instructions: Mapping[str, str]
) -> list[str]:
  """Returns what a policy knows each task as: its name, or the sentence that asks for it."""
  return [task if task in spec.task_names else instructions.get(task, task) for task in tasks]


def rendered(spec: batch_lib.BatchSpec) -> tuple[tuple[str, ...], int]:
  """Returns names and the one size, in pixels, of the cameras that are rendered for a policy.

  Raises:
    ValueError: they are not square, or not of one size.
  """
  for camera, height, width in spec.cameras:
    first, size, _ = spec.cameras[0]
    if height != width:
      raise ValueError(
        f"the policy sees camera '{camera}' at {height}x{width} pixels; the simulator renders "
        "squares: train with config.data.image_size=(SIZE, SIZE)"
      )
    if height != size:
      raise ValueError(
        f"the policy sees camera '{first}' at {size}x{size} pixels and '{camera}' at "
        f"{height}x{width}; the simulator renders all cameras at one size"
      )
  return tuple(name for name, _, _ in spec.cameras), spec.cameras[0][1] if spec.cameras else 1


def _images(
  observation: Mapping[str, np.ndarray], spec: batch_lib.BatchSpec
) -> dict[str, np.ndarray]:
  """Returns what the policy's cameras see; ValueError where one is missing or of another size."""
  images = {}
  for camera, height, width in spec.cameras:
    name = f"image_{camera}"
    if name not in observation:
      given = [key.removeprefix("image_") for key in observation if key.startswith("image_")]
      raise ValueError(
        f"the policy sees camera '{camera}'; the simulator renders {', '.join(given) or 'none'}"
      )
    found = observation[name].shape[2:4]
    if found != (height, width):
      raise ValueError(
        f"the policy sees camera '{camera}' at {height}x{width} pixels; the simulator renders it "
        f"at {found[0]}x{found[1]}"
      )
    images[name] = observation[name]
  return images
