"""What `launch/sweep.py plan` prints."""

from collections.abc import Mapping, Sequence
import math

from oat_jax.scaling import sweep


def text(
  runs: Sequence[sweep.Run], states: Sequence[sweep.State], hours: Mapping[str, float], of: str
) -> str:
  """Returns the table of a sweep's runs.

  Args:
    runs, states: of the sweep.
    hours: device-hours of each run by name, nan where they are not known.
    of: what the hours are of.
  """
  lines = [
    ["run", "parameters", "windows", "steps", "windows seen", "FLOPs", "device-hours", "state"]
  ]
  for run, state in zip(runs, states):
    lines.append(
      [
        run.name,
        f"{run.parameters:,}",
        f"{run.windows:,}" if run.windows else "?",
        f"{run.config.steps:,}",
        f"{run.config.steps * run.config.batch_size:,}",
        f"{run.flops:.3g}",
        _hours(hours.get(run.name, math.nan)),
        describe(run, state),
      ]
    )
  left = [run for run, state in zip(runs, states) if not state.done]
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  align = lambda line: [
    cell.ljust(width) if i in (0, len(line) - 1) else cell.rjust(width)
    for i, (cell, width) in enumerate(zip(line, widths))
  ]
  out = ["  ".join(align(line)).rstrip() for line in lines]
  total = sum(hours.get(run.name, math.nan) for run in left)
  flops = sum(run.flops for run in left)
  out += ["", f"{len(runs) - len(left)} of {len(runs)} runs are done"]
  if left:
    out[-1] += f"; the others take {flops:.3g} FLOPs"
    known = f", {_hours(total)} device-hours" if not math.isnan(total) else ""
    out[-1] += f"{known}{f' ({of})' if of else ''}"
  return "\n".join(out)


def describe(run: sweep.Run, state: sweep.State) -> str:
  """Returns a state in a word or two."""
  if state.done:
    return "done"
  part = f"{100 * state.step / run.config.steps:.0f} % saved" if state.step else "to do"
  return f"{part}, running" if state.running else part


def _hours(value: float) -> str:
  return "?" if math.isnan(value) else f"{value:.3g}"
