"""Who acts in an evaluation: a trained policy, a tokenizer over the expert's chunks, the expert."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.data import pipeline
from oat_jax.evaluate import rollout
from oat_jax.policies import anytime
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.train import inputs
from oat_jax.train import models


class PolicyActor:
  """A trained policy as a callable over simulator states; one compiled program for every K."""

  def __init__(self, trained: models.Trained, sampling: Sampling = Sampling(), seed: int = 0):
    policy = trained.model
    if not isinstance(policy, Policy):
      raise ValueError(f"the working directory holds a {trained.config.kind}; a policy's is needed")
    self.trained, self.spec = trained, trained.spec
    self.max_tokens = trained.model.max_tokens
    self.has_tokens = trained.tokenizer is not None
    self._params = jax.device_put(trained.params)
    self._key, self._sampling = jax.random.key(seed), sampling
    self._compiled: set[tuple[int, bool]] = set()  # batch sizes, without and with a tolerance

    def act(params, batch, key, call, num_tokens, tolerance):
      key = jax.random.fold_in(key, call)
      actions_BCA, info = policy.act(params, batch, key, num_tokens, sampling, tolerance)
      # One number for all rows, or one a row where rows stop on their own.
      spent = jnp.asarray(info.get("num_tokens", 0), jnp.int32)
      return actions_BCA, jnp.broadcast_to(spent, actions_BCA.shape[:1])

    self._act = jax.jit(act)

  def batch(self, state: Any, tasks: Sequence[str]) -> dict[str, Any]:
    """Returns the batch that the policy acts on, from a `VectorState` and the tasks' names."""
    names = self.trained.spec.task_names
    unknown = sorted(set(tasks) - set(names)) if names != ("",) else []
    if unknown:
      raise ValueError(
        f"the policy does not know task '{unknown[0]}'; it was trained on {', '.join(names)}"
      )
    parts = []
    for name in self.trained.config.data.state:
      key = name.removeprefix("observation/")
      if key not in state.observation:
        raise ValueError(
          f"the policy reads '{name}'; the simulator gives {sorted(state.observation)}"
        )
      parts.append(state.observation[key])
    state_BTS = np.concatenate(parts, -1).astype(np.float32)
    if state_BTS.shape[1:] != (self.spec.observation_steps, self.spec.state_dim):
      raise ValueError(
        f"the policy reads states of shape {[self.spec.observation_steps, self.spec.state_dim]}; "
        f"the simulator gives {list(state_BTS.shape[1:])}"
      )
    ids = [names.index(task) if task in names else 0 for task in tasks]
    return {
      "observation": {
        **self._images(state.observation),
        "state": state_BTS,
        "task": np.asarray(ids, np.int32),
      },
      "observation_mask": state.observation_mask,
      "dataset": np.zeros(len(tasks), np.int32),
    }

  def _images(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what the policy's cameras see; ValueError where one is missing or of another size."""
    images = {}
    for camera, height, width in self.spec.cameras:
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

  def __call__(
    self, batch: dict[str, Any], num_tokens: int, call: int = 0, tolerance: float | None = None
  ) -> rollout.Acted:
    """Returns chunks decoded from the first `num_tokens` tokens; waits for them.

    Another `call` draws other tokens, where sampling is random. With a tolerance rows end early:
    see `Policy.act`. Compilation is not in the time.
    """
    batch_lib.check(batch, self.spec, batch_lib.ACTING)
    if self.has_tokens:
      tokenizer_lib.check_num_tokens(num_tokens, self.max_tokens)
    budget = np.int32(num_tokens) if self.has_tokens else None
    limit = None if tolerance is None else np.float32(tolerance)
    arguments = (self._params, batch, self._key, np.uint32(call), budget, limit)
    program = len(batch["dataset"]), tolerance is None
    if program not in self._compiled:
      jax.block_until_ready(self._act(*arguments))
      self._compiled.add(program)
    begin = time.perf_counter()
    actions_BCA, num_tokens_B = map(np.asarray, self._act(*arguments))
    return rollout.Acted(actions_BCA, num_tokens_B, 1e3 * (time.perf_counter() - begin))

  def at(
    self, num_tokens: int, tolerance: float | None = None
  ) -> Callable[[dict[str, Any]], rollout.Acted]:
    """Returns what acts at one setting: `num_tokens`, or all that each row needs by a tolerance."""
    budget = num_tokens if tolerance is None else self.max_tokens
    return lambda batch: self(batch, budget, tolerance=tolerance)

  def driver(
    self, tasks: Sequence[str], num_tokens: int, tolerance: float | None = None
  ) -> rollout.Act:
    """Returns what `rollout.run` calls, for episodes of these tasks; every K has equal draws."""
    calls = itertools.count()
    return lambda state, active_B: self(
      self.batch(state, tasks), num_tokens, next(calls), tolerance
    )

  def tolerances(self, mean_tokens: Sequence[int], most: int = 1024) -> dict[str, float]:
    """Returns {K: the tolerance that spends K tokens on average}, on the run's held-out windows.

    Args:
      mean_tokens: each K.
      most: windows that are looked at.
    """
    policy: Any = self.trained.model
    look = jax.jit(
      lambda params, batch: policy.act(
        params, batch, self._key, None, self._sampling, np.float32(0)
      )
    )
    rows = [
      np.asarray(look(self._params, seen)[1]["refinement_BX"])[valid_B]
      for seen, valid_B in self.held_out(most, 256)
    ]
    expected_WX = np.concatenate(rows)
    return {str(K): anytime.calibrate(expected_WX, policy.budgets, K) for K in mean_tokens}

  @functools.cached_property
  def _validation(self) -> Any:
    return inputs.load(self.trained.config.data).validation

  def held_out(self, most: int, rows: int) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yields what is seen in up to `most` held-out windows, evenly spaced, and which rows count."""
    windows = inputs.evenly(self._validation, most)
    for batch, valid_B in pipeline.epoch(windows, min(rows, len(windows))):
      yield {name: batch[name] for name in batch_lib.ACTING}, valid_B


def ceiling_driver(env: Any, trained: models.Trained, num_tokens: int) -> rollout.Act:
  """The best a policy over these tokens could do: the expert's next chunk, encoded and decoded.

  At every replanning the scripted expert is rolled out noise-free from the saved simulator state.
  """
  tokenizer, params = trained.tokenizer, trained.params
  assert tokenizer is not None, "checked by `Evaluation`"
  params = params if trained.config.kind == "tokenizer" else params["tokenizer"]
  spent = int(tokenizer_lib.budget(tokenizer, num_tokens))

  def act(state, active_B):
    del state
    chunks_BCA = env.expert_chunks(tokenizer.spec.action_horizon, active_B)
    tokens_BN = tokenizer.encode(params, chunks_BCA)
    decoded_BCA = np.asarray(tokenizer.decode(params, tokens_BN, num_tokens))
    return rollout.Acted(decoded_BCA, np.full(len(active_B), spent))

  return act


def expert_driver(env: Any, replan: int) -> rollout.Act:
  """The scripted expert itself, without a tokenizer: what the ceiling is measured against."""
  return lambda state, active_B: rollout.Acted(env.expert_chunks(replan, active_B))


def act_latency_ms(
  actor: PolicyActor, budgets: Sequence[int], tolerances: Mapping[str, float] | None = None
) -> dict[str, dict[str, float]]:
  """Returns {K: {mean, p50, p95}}: wall milliseconds from observation to chunk, batch size 1, warm.

  Where a chunk ends when it will, by a tolerance or by tokens of varying length, each call sees
  another held-out window; else all see one of random numbers.

  Args:
    actor: who acts.
    budgets: each K.
    tolerances: with which K tokens are spent on average.
  """
  calls, tokenizer = 100, actor.trained.tokenizer
  if tolerances is not None or (tokenizer is not None and tokenizer.pad_id is not None):
    batches = [batch for batch, _ in actor.held_out(calls, 1)]
  else:
    made = batch_lib.fake(actor.spec, 1)
    batches = [{name: made[name] for name in batch_lib.ACTING}] * calls
  found = {}
  for K in budgets:
    act = actor.at(K, None if tolerances is None else tolerances[str(K)])
    found[str(K)] = rollout.latency_ms([functools.partial(act, batch) for batch in batches])
  return found


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
