"""What launch/sweep.py does: plan a sweep, run it, collect its losses, fit a law to them."""

from collections.abc import Callable, Mapping, Sequence
import math
import os
import pathlib
import shlex
import statistics
from typing import Any

from oat_jax import config as config_lib
from oat_jax.cost import chips
from oat_jax.scaling import clusters
from oat_jax.scaling import collect
from oat_jax.scaling import cost
from oat_jax.scaling import law_report
from oat_jax.scaling import local
from oat_jax.scaling import sweep
from oat_jax.scaling import sweep_table


class Sweep:
  """A sweep and its directory."""

  def __init__(
    self,
    values: Mapping[str, Any],
    out: str | os.PathLike,
    load: Callable[[str], Mapping[str, Any]],
  ):
    """Expands the grid.

    Args:
      values: of `sweep.Config`.
      out: its directory.
      load: FILE:ARGUMENT -> values of a run's config.

    Raises:
      ValueError: an axis or a value that does not fit.
    """
    self._out, self._costs = pathlib.Path(out).absolute(), cost.Costs()
    print("counting parameters, FLOPs and windows", flush=True)
    config = config_lib.freeze(sweep.Config, values)
    self.runs = sweep.expand(config, self._out, load, self._costs)

  def plan(self, topology: str = "", measure: bool = False) -> None:
    """Prints the runs, what each costs, and how far it is.

    Args:
      topology: of chips for which device-hours are planned; without one they are those that runs of
        the same model have taken.
      measure: time steps here, of models that have not run.
    """
    states = sweep.states(self.runs)
    hours, of = self._hours(topology, measure)
    print("\n" + sweep_table.text(self.runs, states, hours, of), flush=True)
    if any(math.isnan(hours[run.name]) for run in self.runs):
      print("hours of what has not run: --measure times steps here, --topology plans chips")

  def _hours(self, topology: str, measure: bool) -> tuple[dict[str, float], str]:
    """Returns ({run: device-hours}, what they are of)."""
    configs = {run.name: run.config for run in self.runs}
    if topology:
      where = chips.topology(topology)

      def planned(config):
        print(f"planning {_model(config)} for {topology}", flush=True)
        return cost.step_seconds_there(self._costs.run(config), where)

      return cost.hours(configs, planned, {}), f"planned for {topology}, at peak figures"
    taken: dict[str, list[float]] = {}
    for run in self.runs:
      seconds = cost.step_seconds_measured(run.workdir)
      if not math.isnan(seconds):
        taken.setdefault(cost.alike(run.config), []).append(seconds)
    of = "as runs of this sweep have taken" if taken else ""

    def here(config):
      nonlocal of
      if not measure:
        return math.nan
      of = "as steps take here, one run at a time"
      print(f"timing steps of {_model(config)}", flush=True)
      return cost.step_seconds_here(self._costs.run(config))

    known = {key: statistics.mean(values) for key, values in taken.items()}
    return cost.hours(configs, here, known), of

  def run(self, backend: str, jobs: int, retries: int, sbatch: str, train: Sequence[str]) -> None:
    """Runs what is not done.

    Args:
      backend: local, slurm, jobset.
      jobs: runs at the same time, where the backend is local or slurm.
      retries: how often a failed run is tried again.
      sbatch: more options of sbatch.
      train: the command that trains, launch/train.py.

    Raises:
      RuntimeError: local runs failed to the end, named.
    """
    launch, total = pathlib.Path(train[-1]).parent, len(self.runs)
    self._out.mkdir(parents=True, exist_ok=True)
    if backend == "slurm":
      options = shlex.split(sbatch)
      job = clusters.slurm(self.runs, self._out, launch / "slurm.sbatch", jobs, retries, options)
      print(
        f"submitted as {job}; `plan` says how far it is" if job else f"all {total} runs are done"
      )
    elif backend == "jobset":
      template = launch / "gke_jobset.yaml"
      paths = clusters.jobsets(self.runs, self._out, template, os.environ)
      print(f"{len(paths)} of {total} runs are not done; kubectl apply -f {self._out}/jobsets")
    else:
      failed = local.run(self.runs, self._out, train, jobs, retries)
      if failed:
        lines = [f"  {name}: {why} (logs/{name}.log)" for name, why in failed.items()]
        raise RuntimeError(
          f"{len(failed)} of {total} runs failed, {retries + 1} times each; the others are done:\n"
          + "\n".join(lines)
        )
      print(f"all {total} runs are done; `collect` gathers their losses", flush=True)

  def collect(self, table: str | os.PathLike) -> None:
    """Writes the table of held-out losses of the runs that are done."""
    rows, missing = collect.collect(self.runs)
    path = pathlib.Path(table)
    collect.write(path, rows)
    codes = sorted({row["code"] for row in rows})
    if len(codes) > 1:
      print(f"note: the runs were trained by {len(codes)} versions: " + "; ".join(codes))
    done = len(self.runs) - len(missing)
    print(f"{path}: {len(rows):,} rows of {done} of {len(self.runs)} runs", flush=True)
    if missing:
      print(f"not done: {', '.join(missing)}", flush=True)


def _model(config: Any) -> str:
  return f"a {config.kind} of width {config.model.get('width', '?')}"


def fit(table: str | pathlib.Path, out: str | os.PathLike, **settings: Any) -> None:
  """Fits a law to a table of losses and writes OUT/report; see `law_report.write`."""
  report = pathlib.Path(out) / "report"
  print(law_report.headline(law_report.write(table, report, **settings)))
  print(f"see {report / 'report.md'}", flush=True)
