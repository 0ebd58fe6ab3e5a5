"""Which checkpoint is evaluated: the newest, or the best on goals that are not reported."""

from collections.abc import Mapping
import itertools
import os
from typing import Any

from oat_jax.envs import goals
from oat_jax.study import trained as trained_lib
from oat_jax.train import checkpoint

CHOSEN = "by success on selection goals"

# Settings of an evaluation that hold for the choice too.
_SHARED = ("temperature", "top_k", "stop", "ensemble", "max_steps", "processes", "replace")


def evaluate(
  workdir: str | os.PathLike,
  suite_name: str,
  *,
  select: int | None = None,
  select_episodes: int = 10,
  **settings: Any,
) -> dict[str, Any]:
  """Evaluates a working directory, and returns the content of evaluation.json.

  With `select`, every step that the directory keeps is evaluated on goals of seeds `select`,
  `select` + 1, ..., at the first R and the largest K; the best of them, the later one of equals, is
  the one that is reported. Those evaluations lie in the report's `selection/STEP`.

  Args:
    workdir, suite_name, settings: as `trained.evaluation` takes them.
    select: the first selection seed; None for the newest checkpoint, or the setting `step`.
    select_episodes: selection goals per task.

  Raises:
    ValueError, FileNotFoundError: as `Evaluation`; or selection goals that are reported ones too.
  """
  if select is None:
    return trained_lib.evaluation(workdir, suite_name, **settings).run()
  for name in ("step", "ceiling"):
    if settings.get(name):
      raise ValueError(f"select chooses a policy's checkpoint; leave out {name}")
  # What is wrong with the report's own settings is said now, not behind the selection.
  unheeding: dict[str, Any] = settings | {"replace": True}
  whole = trained_lib.evaluation(workdir, suite_name, **unheeding)
  there = whole.content() if (whole.target / "evaluation.json").exists() else {}
  same = {"chosen": CHOSEN, "first_seed": select, "episodes_per_task": select_episodes}
  if not settings.get("replace") and there != {}:
    found = ((there or {}).get("facts") or {}).get("checkpoint") or {}
    if not same.items() <= found.items():
      raise ValueError(
        f"{whole.target} is of another evaluation (its checkpoint was chosen otherwise); pass "
        "another --out, or --replace"
      )
  reported = [("reported", first, first + whole.episodes) for first in whole.seeds]
  goals.check_apart([*reported, ("selection", select, select + select_episodes)])
  whole.check_rendering()
  _, R, _ = whole.settings[0]
  K = max(K for _, _, K in whole.settings)
  of_step = lambda step: trained_lib.evaluation(
    workdir,
    suite_name,
    num_tokens=(max(K, 1),),
    replans=(R,),
    episodes=select_episodes,
    seeds=(select,),
    step=step,
    out=whole.target / "selection" / str(step),
    **{name: settings[name] for name in _SHARED if name in settings},
  )
  rates, steps = {}, checkpoint.steps(workdir)
  # The first is made now: what is wrong with the selection's own settings is said, too.
  evaluations = itertools.chain([of_step(steps[0])], map(of_step, steps[1:]))
  for step, each in zip(steps, evaluations):
    print(f"selection: step {step}", flush=True)
    content = each.run()
    by_replan = next(iter(content["success"].values()))
    rates[step] = by_replan[str(R)]["overall"][str(K)]
  best = choose(rates)
  print(f"selection: step {best} of {', '.join(map(str, rates))}", flush=True)
  chosen = {
    **same,
    "replan": R,
    "num_tokens": K,
    "success": {str(step): rate for step, rate in rates.items()},
  }
  return trained_lib.evaluation(workdir, suite_name, step=best, chosen=chosen, **settings).run()


def choose(rates: Mapping[int, Mapping[str, float]]) -> int:
  """Returns the step with the highest rate, the latest of equals."""
  return max(rates, key=lambda step: (rates[step]["rate"], step))
