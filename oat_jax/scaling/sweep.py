"""A sweep: a grid of runs with fixed names, each an ordinary run of launch/train.py.

A directory OUT holds `runs/NAME`, working directories, and `logs/NAME.log`. What is done is read
from the working directories alone, so a sweep may be killed, extended or moved.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import difflib
import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple

from oat_jax import config as config_lib
from oat_jax.train import checkpoint
from oat_jax.train import config as train_config
from oat_jax.train import metrics
from oat_jax.train import provenance
from oat_jax.train import workdir as workdir_lib

# Axis -> the key of a run's config that it sets. A size stands behind the comma of the argument,
# and sets what the ladder says, learning rate included. A budget sets the steps.
AXES = {
  "size": "",
  "data": "data.train_fraction",
  "num_tokens": "model.num_tokens",
  "codebook": "model.levels",
  "seed": "seed",
}
# What a run may spend: times it sees its windows, steps, or model FLOPs.
BUDGETS = ("passes", "steps", "flops")
# Of the axes in a name; the sweep's own, config.extra_axes, stand between.
FIRST, LAST = ("size", "data", "num_tokens", "codebook"), (*BUDGETS, "seed")


@dataclasses.dataclass(frozen=True)
class Config:
  """Values of configs/sweeps/*.py."""

  run: str  # FILE:ARGUMENT of the runs' config, without a size
  set: Mapping[str, Any]  # settings of every run, as nested keys: {"data": {"path": DIR}}
  axes: Mapping[str, Any]  # axis -> values; the runs are all combinations
  extra_axes: Mapping[str, str]  # more axes: name -> key of the run's config, e.g. model.dropout
  evaluations: int  # how often a run is evaluated and saved, its end included

  def __post_init__(self):
    config_lib.at_least(self.evaluations, 1, "config.evaluations")
    known = (*AXES, *BUDGETS, *self.extra_axes)
    for name, values in self.axes.items():
      if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(
          f"config.axes holds '{name}'; {hint}axes are {', '.join(known)}, and what "
          "config.extra_axes names, e.g. config.extra_axes.dropout = 'model.dropout'"
        )
      if not isinstance(values, (tuple, list)):
        raise ValueError(f"config.axes.{name} is {values!r}; it must be a sequence of values")
      if not values:
        raise ValueError(f"config.axes.{name} is empty: a grid of no runs; give it one value")
      texts = [_text(value) for value in values]
      if len(set(texts)) < len(texts):
        raise ValueError(f"config.axes.{name} holds a value twice: {', '.join(texts)}")
    if not self.axes:
      raise ValueError("config.axes is empty; name at least one axis and its values")
    budgets = [name for name in BUDGETS if name in self.axes]
    if len(budgets) > 1:
      raise ValueError(f"config.axes has {' and '.join(budgets)}: a run has one budget")
    for name in budgets:
      for value in self.axes[name]:
        wanted = "a whole number" if name == "steps" else "a number"
        fits = isinstance(value, int if name == "steps" else (int, float)) and value > 0
        if not fits or isinstance(value, bool):
          raise ValueError(f"config.axes.{name} holds {value!r}; it must be {wanted} above 0")
    for name in set(AXES) & set(self.extra_axes):
      raise ValueError(f"config.extra_axes.{name} renames an axis that is known; take another name")


class Run(NamedTuple):
  """One run of a sweep.

  Attributes:
    name: made of its place on every axis.
    axes: {axis: value}.
    source: FILE:ARGUMENT of its config.
    changes: {dotted key: value}, what differs from that file's values.
    config: both together.
    workdir: its working directory.
    parameters: that are trained.
    flops: of the whole run, without computing again.
    windows: different ones that are trained on; 0 where no data was read.
    dataset: its fingerprint; "" where no data was read.
    tokenizer: the digest of a policy's tokenizer, or "".
  """

  name: str
  axes: dict[str, Any]
  source: str
  changes: dict[str, Any]
  config: train_config.Config
  workdir: pathlib.Path
  parameters: int
  flops: float
  windows: int
  dataset: str
  tokenizer: str

  @property
  def arguments(self) -> list[str]:
    """Those of launch/train.py."""
    changes = [f"--config.{key}={_argument(value)}" for key, value in self.changes.items()]
    return [f"--config={self.source}", *changes, f"--workdir={self.workdir}"]


def expand(
  config: Config,
  out: str | os.PathLike,
  load: Callable[[str], Mapping[str, Any]],
  size_of: Callable[[train_config.Config], Any],
) -> list[Run]:
  """Returns the runs of the grid, in its order.

  Args:
    config: of the sweep.
    out: its directory.
    load: FILE:ARGUMENT -> values of a run's config.
    size_of: config -> what it costs, see `cost.Costs`.

  Raises:
    ValueError: a value that does not fit its key, naming the run.
  """
  out, runs = pathlib.Path(out).absolute(), []
  names = [name for name in (*FIRST, *config.extra_axes, *LAST) if name in config.axes]
  for values in itertools.product(*(config.axes[name] for name in names)):
    axes = dict(zip(names, values))
    name = _name(axes)
    source = _source(config.run, axes.get("size", ""))
    try:
      runs.append(_run(config, name, axes, source, load(source), out / "runs" / name, size_of))
    except ValueError as error:
      raise ValueError(f"run {name}: {error}") from error
  return runs


def _run(
  config: Config,
  name: str,
  axes: dict[str, Any],
  source: str,
  values: Mapping[str, Any],
  workdir: pathlib.Path,
  size_of: Callable[[train_config.Config], Any],
) -> Run:
  base = train_config.plain(values)
  changes = dict(_flat(train_config.plain(config.set)))
  keys = AXES | dict(config.extra_axes)
  by_axes = {keys[axis]: axes[axis] for axis in axes if keys.get(axis)}
  ours = {*by_axes, "evaluate_every", "save_every", *(["steps"] if {*BUDGETS} & {*axes} else [])}
  twice = sorted(ours & {*changes})
  if twice:
    raise ValueError(f"config.set has '{twice[0]}', which the sweep's axes or evaluations say")
  changes |= by_axes
  planned = train_config.freeze(_changed(base, changes))
  cost = size_of(planned)
  more = {"steps": _steps(axes, planned, cost)}
  every = max(1, -(-more["steps"] // config.evaluations))
  more |= {"evaluate_every": every, "save_every": every}
  # Of a short run the warm-up is a tenth.
  warmup = min(planned.optimizer.warmup_steps, more["steps"] // 10)
  more |= {"optimizer.warmup_steps": warmup}
  changes |= more
  planned = train_config.freeze(_changed(base, changes))
  flops = cost.flops_per_step * planned.steps
  of = (cost.parameters, flops, cost.windows, cost.dataset, cost.tokenizer)
  return Run(name, axes, source, changes, planned, workdir, *of)


def _steps(axes: Mapping[str, Any], planned: train_config.Config, cost: Any) -> int:
  """What the budget allows; the config's own where there is none."""
  if "steps" in axes:
    return axes["steps"]
  if "flops" in axes:
    if not cost.flops_per_step:
      raise ValueError("a budget in FLOPs needs a model that is trained; this one is fitted")
    if axes["flops"] < cost.flops_per_step:
      raise ValueError(f"one step takes {cost.flops_per_step:.3g} FLOPs, more than its budget")
    return round(axes["flops"] / cost.flops_per_step)
  if "passes" in axes:
    if not cost.windows:
      raise ValueError("a budget in passes needs the data; set --config.set.data.path=DIR")
    return max(1, round(axes["passes"] * cost.windows / planned.batch_size))
  return planned.steps


def _name(axes: Mapping[str, Any]) -> str:
  """E.g. 250k_data0.125_seed1."""
  parts = [
    _text(value) if axis == "size" else f"{axis}{_text(value)}" for axis, value in axes.items()
  ]
  return "_".join(parts)


def _text(value: Any) -> str:
  """A value in a name: letters, digits, dots and dashes only."""
  if isinstance(value, (tuple, list)):
    return "-".join(_text(item) for item in value)
  text = f"{value:g}" if isinstance(value, float) else str(value)
  return "".join(c if c.isalnum() or c in ".-" else "-" for c in text)


def _argument(value: Any) -> str:
  return repr(tuple(value)) if isinstance(value, (tuple, list)) else str(value)


def _source(run: str, size: str) -> str:
  """FILE:ARGUMENT with a size behind the comma, or alone."""
  if not size:
    return run
  file, _, variant = run.partition(":")
  return f"{file}:{variant},{size}" if variant else f"{file}:{size}"


def _flat(values: Mapping[str, Any], where: str = "") -> Iterable[tuple[str, Any]]:
  for key, value in values.items():
    name = f"{where}.{key}" if where else key
    if hasattr(value, "items"):
      yield from _flat(value, name)
    else:
      yield name, value


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested values with those of dotted keys; ValueError for a key that is not there."""
  out = json.loads(json.dumps(values))
  for key, value in changes.items():
    *path, last = key.split(".")
    at = out
    for part in path:
      at = at.get(part) if isinstance(at, dict) else None
    if not isinstance(at, dict) or last not in at:
      known = [name for name, _ in _flat(values)]
      near = difflib.get_close_matches(key, known, n=1)
      hint = f"; did you mean '{near[0]}'?" if near else ""
      raise ValueError(f"its config has no key '{key}'{hint}")
    at[last] = value
  return out


class State(NamedTuple):
  """How far a run is.

  Attributes:
    step: of the newest checkpoint.
    done: whether it is whole, its last evaluation included.
    running: whether a process is at it.
    wrong: why it is not this run, or no run that can be trusted; "".
  """

  step: int
  done: bool
  running: bool
  wrong: str


def state(run: Run) -> State:
  """Returns how far a run is, from its working directory."""
  workdir = run.workdir
  running = workdir_lib.in_use(workdir)
  steps = checkpoint.steps(workdir)
  step = max(steps, default=0)
  if not (workdir / "config.json").exists():
    wrong = "it holds checkpoints and no config.json" if steps else ""
    return State(step, False, running, wrong)
  if not steps:  # a run that ended before it saved anything; it may be another one from now on
    return State(0, False, running, "")
  try:
    there = workdir_lib.described(workdir)
  except ValueError as error:
    return State(step, False, running, str(error))
  different = _differences(run, there)
  if different:
    return State(step, False, running, "it holds another run: " + "; ".join(different))
  if running or step < run.config.steps:
    return State(step, False, running, "")
  if step > run.config.steps:
    return State(step, False, running, f"checkpoint {step} is beyond its last step")
  try:
    provenance.read(workdir)
    last = evaluations(workdir)[-1:]
  except ValueError as error:
    return State(step, False, running, str(error))
  if not last or last[0]["step"] != step:
    return State(step, False, running, f"metrics.jsonl has no evaluation of its last step {step}")
  return State(step, True, running, "")


def _differences(run: Run, there: Mapping[str, Any]) -> list[str]:
  """Lists in what a working directory's description is not that of a run."""
  known = {
    "dataset_fingerprint": (there["dataset_fingerprint"], run.dataset),
    "tokenizer": ((there["tokenizer"] or {}).get("digest", ""), run.tokenizer),
  }
  # How many windows are held out is no matter to a run, but to a sweep whose losses compare.
  harmless = tuple(key for key in workdir_lib.HARMLESS if key != "config/evaluate_windows")
  wanted = train_config.to_json(run.config)
  return workdir_lib.differences(there["config"], wanted, harmless, where="config") + [
    f"{name}: {old!r} there, {new!r} now"
    for name, (old, new) in known.items()
    if new not in ("", old)
  ]


def missing(runs: Iterable[Run]) -> list[Run]:
  """Returns the runs that are not done; ValueError as of `states`."""
  runs = list(runs)
  return [run for run, each in zip(runs, states(runs)) if not each.done]


def states(runs: Iterable[Run]) -> list[State]:
  """Returns the runs' states.

  Raises:
    ValueError: directories that were changed by hand, or hold runs of other configurations.
  """
  found = [(run, state(run)) for run in runs]
  wrong = [f"  {run.workdir}: {each.wrong}" for run, each in found if each.wrong]
  if wrong:
    raise ValueError(
      f"{len(wrong)} of {len(found)} runs cannot be trusted; remove or move their directories, "
      "take another --out, or undo the change of the sweep:\n" + "\n".join(wrong)
    )
  return [each for _, each in found]


def evaluations(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Returns the rows of metrics.jsonl that are of held-out data, without their prefix.

  Raises:
    ValueError: the file is missing, or no file of rows.
  """
  try:
    rows = metrics.read(workdir)
    held_out = [row for row in rows if any(key.startswith("validation/") for key in row)]
    return [{key.removeprefix("validation/"): row[key] for key in row} for row in held_out]
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(f"{workdir / 'metrics.jsonl'} cannot be read: {error}") from error
