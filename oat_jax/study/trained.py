"""A working directory as the subject of an evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import os
import pathlib
from typing import Any

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.data import pipeline
from oat_jax.envs import goals
from oat_jax.evaluate import evaluation as evaluation_lib
from oat_jax.evaluate import rollout
from oat_jax.export import limits
from oat_jax.policies import anytime
from oat_jax.policies import decoding
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.train import inputs
from oat_jax.train import models

WINDOWS = 1024  # held-out ones that tolerances are measured on


class Trained:
  """A run's policy or tokenizer; `subject.Subject` has the attributes."""

  def __init__(
    self,
    trained: models.Trained,
    where: str | os.PathLike = "the working directory",
    sampling: Sampling = Sampling(),
    checkpoint: Mapping[str, Any] | None = None,
  ):
    """Places the parameters on the default device.

    Args:
      trained: what the directory holds.
      where: the directory.
      sampling: how tokens are drawn.
      checkpoint: how the step was chosen, noted in the report.

    Raises:
      ValueError: the sampling is for a model that draws nothing.
    """
    self.trained, self.where, self.spec = trained, os.fspath(where), trained.spec
    self.method = trained.config.model["name"]
    self.state = trained.config.data.state
    self.acts = isinstance(trained.model, Policy)
    self.reconstructs = trained.tokenizer is not None
    self.max_tokens = trained.tokenizer.max_tokens if trained.tokenizer is not None else 0
    self.refines = getattr(trained.model, "refines", False)
    self.shown = goals.demonstrated(trained.config.data.path)
    self.limits: limits.Limits | None = None  # they are of exports
    decoding.check(sampling)
    if sampling != Sampling() and not (self.acts and self.max_tokens):
      raise ValueError(f"{sampling} is given, but {where} draws none")
    self.facts: dict[str, Any] = {
      "workdir": pathlib.Path(where).name,
      "step": trained.step,
      "checkpoint": checkpoint,
      "model": models.digest(trained),
      "sampling": sampling._asdict(),
      "limits": None,
      "server": None,
    }
    self._sampling = sampling
    self._tolerances: dict[str, float] = {}
    if isinstance(trained.model, Policy):
      self._acting = anytime.Anytime(trained.model, trained.params, sampling=sampling)

  def act(
    self,
    batch: Mapping[str, Any],
    num_tokens: int,
    call: int = 0,
    stop: bool = False,
    active_B: np.ndarray | None = None,
    last_BA: np.ndarray | None = None,
  ) -> rollout.Acted:
    """See `Subject.act`."""
    del active_B, last_BA  # all rows go through one program, and there are no limits
    tolerance = self.tolerances([num_tokens])[str(num_tokens)] if stop else None
    return self._act(batch, num_tokens, tolerance, call)

  def at(
    self, num_tokens: int, tolerance: float | None = None
  ) -> Callable[[dict[str, Any]], rollout.Acted]:
    """Returns what acts at one setting: `num_tokens`, or all that each row needs by a tolerance."""
    return lambda batch: self._act(batch, num_tokens, tolerance, 0)

  def _act(
    self, batch: Mapping[str, Any], num_tokens: int, tolerance: float | None, call: int
  ) -> rollout.Acted:
    how: dict[str, Any] = {"num_tokens": num_tokens if self.max_tokens else None}
    if tolerance is not None:
      how = {"stop": "refinement", "tolerance": tolerance}
    actions_BCA, info = self._acting.act(batch, call=call, **how)
    spent_B = np.broadcast_to(info["num_tokens"], len(actions_BCA))
    return rollout.Acted(actions_BCA, spent_B, info["ms"])

  def tolerances(self, mean_tokens: Sequence[int]) -> dict[str, float]:
    """See `Subject.tolerances`; measured on up to `WINDOWS` of the run's held-out windows."""
    unknown = [K for K in mean_tokens if str(K) not in self._tolerances]
    if unknown:
      policy: Any = self.trained.model
      expected_WX = self._expected
      for K in unknown:
        self._tolerances[str(K)] = anytime.calibrate(expected_WX, policy.budgets, K)
    return {str(K): self._tolerances[str(K)] for K in mean_tokens}

  def windows(self, count: int, stop: bool) -> list[dict[str, Any]]:
    """See `Subject.windows`: held-out ones where a chunk ends when it will, else random numbers."""
    tokenizer = self.trained.tokenizer
    if stop or (tokenizer is not None and tokenizer.pad_id is not None):
      return [batch for batch, _ in self.held_out(count, 1)]
    made = batch_lib.fake(self.spec, 1)
    return [{name: made[name] for name in batch_lib.ACTING}] * count

  def reconstruct(self, chunks_BCA: np.ndarray, num_tokens: int) -> rollout.Acted:
    """See `Subject.reconstruct`."""
    tokenizer, params = self.trained.tokenizer, self.trained.params
    assert tokenizer is not None, "it does not say that it reconstructs"
    params = params["tokenizer"] if self.acts else params
    tokens_BN = tokenizer.encode(params, chunks_BCA)
    decoded_BCA = np.asarray(tokenizer.decode(params, tokens_BN, num_tokens))
    spent = int(tokenizer_lib.budget(tokenizer, num_tokens))
    return rollout.Acted(decoded_BCA, np.full(len(chunks_BCA), spent))

  def held_out(self, most: int, rows: int) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yields what is seen in up to `most` held-out windows, evenly spaced, and which rows count."""
    windows = inputs.evenly(self._validation, most)
    for batch, valid_B in pipeline.epoch(windows, min(rows, len(windows))):
      yield {name: batch[name] for name in batch_lib.ACTING}, valid_B

  @functools.cached_property
  def _validation(self) -> Any:
    return inputs.load(self.trained.config.data).validation

  @functools.cached_property
  def _expected(self) -> np.ndarray:
    """The change expected behind each block of tokens, (W, X), of held-out windows."""
    policy: Any = self.trained.model
    key, sampling = jax.random.key(0), self._sampling
    look = jax.jit(
      lambda params, batch: policy.act(params, batch, key, None, sampling, np.float32(0))
    )
    params = jax.device_put(self.trained.params)
    rows = [
      np.asarray(look(params, seen)[1]["refinement_BX"])[valid_B]
      for seen, valid_B in self.held_out(WINDOWS, 256)
    ]
    return np.concatenate(rows)


def evaluation(
  workdir: str | os.PathLike,
  suite_name: str,
  *,
  step: int | None = None,
  chosen: dict[str, Any] | None = None,
  temperature: float = 0.0,
  top_k: int = 0,
  out: str | os.PathLike | None = None,
  **settings: Any,
) -> evaluation_lib.Evaluation:
  """Returns the evaluation of a working directory's policy; with `ceiling` of its tokenizer.

  Args:
    workdir: of the policy; of the tokenizer (or of a policy that holds one) for a ceiling.
    suite_name: a registered suite.
    step: the checkpoint's step; the newest by default.
    chosen: how the step was chosen, noted in the report.
    temperature, top_k: how tokens are drawn.
    out: the report's directory; by default `workdir`/report, `refinement` in it with that stop.
    settings: as `Evaluation` takes them.

  Raises:
    ValueError, FileNotFoundError, RuntimeError, ImportError: as `Evaluation`; or the directory
      holds nothing that can be evaluated in a simulator.
  """
  loaded = models.load(workdir, step)
  data = loaded.config.data
  if data.standard or data.mixture or data.actions or data.states:
    raise ValueError(
      f"{workdir} was trained on standardised or rearranged data; the simulator has its own "
      "actions and states, so train on them: config.data without standard and mixture"
    )
  noted = chosen or {"chosen": "newest" if step is None else "as asked for"}
  sampling = Sampling(temperature, top_k)
  if settings.get("ceiling") and sampling != Sampling():
    raise ValueError(f"{sampling} is given, but a ceiling draws none")
  target = pathlib.Path(workdir) / "report" / settings.get("stop", "") if out is None else out
  subject = Trained(loaded, workdir, sampling, noted)
  return evaluation_lib.Evaluation(subject, suite_name, target, **settings)
