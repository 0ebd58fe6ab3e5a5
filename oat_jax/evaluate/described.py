"""What an export says of itself, read from its directory or told by its server."""

from collections.abc import Mapping, Sequence
from typing import Any

from oat_jax import batch as batch_lib
from oat_jax.export import limits as limits_lib


class Described:
  """The attributes of a `subject.Subject`, from `directory.description` of an export's spec."""

  def __init__(self, where: str, told: Mapping[str, Any]):
    """Raises ValueError where its numbers are not those that a simulator takes."""
    self.where, self.method = where, told["model"]
    self.spec, self.state = batch_lib.BatchSpec(**told["batch"]), tuple(told["state"])
    self.acts = told["kind"] == "policy"
    self.reconstructs = False
    self.tokens: Mapping[str, Any] | None = told["tokens"]
    self.max_tokens = 0 if self.tokens is None else self.tokens["max_tokens"]
    self.refines = bool(told["tolerances"])
    self.shown: dict[str, Any] | None = told["demonstrated"]
    self.limits = limits_lib.of_spec(told["limits"])
    checkpoint = told["checkpoint"]
    self.facts: dict[str, Any] = {
      "workdir": checkpoint["workdir"],
      "step": checkpoint["step"],
      "checkpoint": {"chosen": "as exported"},
      "model": checkpoint["digest"] + f" in {told['dtype']}" * (told["dtype"] != "float32"),
      "sampling": dict(told["sampling"]),
      "limits": dict(told["limits"]),
      "server": None,
    }
    self._tolerances: Mapping[str, float] = told["tolerances"]
    units, datasets = told["units"], self.spec.num_datasets
    own = units == batch_lib.OWN_UNITS
    if not own or datasets > 1:
      raise ValueError(
        f"{where} has actions and states {f'of {datasets} datasets' if own else units}; the "
        "simulator has its own actions and states, so train on them: config.data without standard "
        "and mixture"
      )

  def tolerances(self, mean_tokens: Sequence[int]) -> dict[str, float]:
    """See `Subject.tolerances`."""
    unknown = [K for K in mean_tokens if str(K) not in self._tolerances]
    if unknown:
      raise ValueError(
        f"num_tokens {unknown[0]} cannot be spent on average; {self.where} knows tolerances for "
        f"{', '.join(self._tolerances)}"
      )
    return {str(K): self._tolerances[str(K)] for K in mean_tokens}


def observation(batch: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a batch that `subject.observe` made as `observing.batch` takes it.

  Instructions are left out: an export knows those of its tasks.
  """
  seen = {name: x for name, x in batch["observation"].items() if name != "language"}
  return seen | {"observation_mask": batch["observation_mask"]}
