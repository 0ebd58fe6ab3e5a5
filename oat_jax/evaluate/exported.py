"""An export directory as the subject of an evaluation, in this process."""

from collections.abc import Mapping
import os
from typing import Any

import numpy as np

from oat_jax.evaluate import described
from oat_jax.evaluate import rollout
from oat_jax.export import directory
from oat_jax.export import limits
from oat_jax.export import loader


class Exported(described.Described):
  """What `launch/export.py` wrote, as a robot gets it: its chunks are within the export's limits.

  `subject.Subject` has the attributes.
  """

  def __init__(self, path: str | os.PathLike):
    """Loads it; raises what `loader.load` raises, and ValueError as `Described`."""
    self._loaded = loader.load(path)
    super().__init__(os.fspath(path), directory.description(self._loaded.spec))
    self.reconstructs = "encode" in self._loaded.spec.functions

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
    del active_B  # all rows go through one program
    K = num_tokens if self.max_tokens else None
    how: dict[str, Any] = {"mean_tokens": K} if stop else {"num_tokens": K}
    seen, _ = self._policy().batch(described.observation(batch))
    actions_BCA, info = self._policy().act_on(seen, seed=call, **how)
    spent_B = np.broadcast_to(info["num_tokens"], len(actions_BCA))
    return rollout.Acted(limits.follow(self.limits, actions_BCA, last_BA), spent_B, info["ms"])

  def windows(self, count: int, stop: bool) -> list[dict[str, Any]]:
    """See `Subject.windows`: those of the self-test, again and again."""
    batch = dict(self._policy().samples())
    rows = [i % len(batch["dataset"]) for i in range(count)]
    of = lambda values, b: {name: x[b : b + 1] for name, x in values.items()}
    seen = batch.pop("observation")
    return [of(batch, b) | {"observation": of(seen, b)} for b in rows]

  def reconstruct(self, chunks_BCA: np.ndarray, num_tokens: int) -> rollout.Acted:
    """See `Subject.reconstruct`."""
    assert self.tokens is not None, "it does not say that it reconstructs"
    decoded_BCA = self._loaded.decode(self._loaded.encode(chunks_BCA), num_tokens)
    spent = max(K for K in self.tokens["budgets"] if K <= num_tokens)
    return rollout.Acted(decoded_BCA, np.full(len(chunks_BCA), spent))

  def _policy(self) -> loader.ExportedPolicy:
    assert isinstance(self._loaded, loader.ExportedPolicy), "it does not say that it acts"
    return self._loaded
