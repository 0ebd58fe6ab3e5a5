"""Reads the table that `sweep.py collect` writes: which rows a law is fitted to, and which not."""

from collections.abc import Mapping, Sequence
import csv
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

DEFAULT_METRIC = {"tokenizer": "mse", "policy": "cross_entropy"}
DATA = ("windows", "examples")
AT = ("last", "least")
# Axes of a sweep that a law knows; budgets too, where data are what was seen.
_KNOWN = ("size", "data", "seed")
_BUDGETS = ("passes", "steps", "flops")
_NUMBERS = ("parameters", "windows", "examples", "flops", "step", "steps", "K", "bits", "loss")
_WORDS = ("run", "kind", "size", "seed", "metric", "evaluation_set", "axes", "code", "device")


class Rows(NamedTuple):
  """One row for each run and prefix, in order of parameters, data, seed and K.

  Attributes:
    kind: "tokenizer" or "policy".
    metric: what the loss is.
    data: the column that counts data, "windows" or "examples".
    at: of a run's evaluated steps, "last" or "least" loss.
    columns: by the table's names, (R,) each.
    history: the rows of all evaluated steps.
    warnings: what was left out, and what a reader must know.
  """

  kind: str
  metric: str
  data: str
  at: str
  columns: Mapping[str, np.ndarray]
  history: Mapping[str, np.ndarray]
  warnings: tuple[str, ...]

  def __getitem__(self, name: str) -> np.ndarray:
    return self.columns[name]

  def where(self, rows_R: np.ndarray) -> "Rows":
    return self._replace(columns={name: each[rows_R] for name, each in self.columns.items()})

  def x(self, names: tuple[str, ...]) -> np.ndarray:
    """Returns the variables (R, T) of a law."""
    return np.stack([self[name] for name in names], axis=1)

  def groups(self) -> np.ndarray:
    """Returns (R,): runs of one size on as much data share their group, whatever seed and K."""
    cells_RX = np.stack([self["parameters"], self["windows"], _of_whole_run(self.columns)], axis=1)
    return np.unique(cells_RX, axis=0, return_inverse=True)[1].reshape(-1)

  def names(self) -> list[str]:
    return [
      f"run {run}, step {step:.0f}" + (f", K={K:.0f}" if K else "")
      for run, step, K in zip(self["run"], self["step"], self["K"])
    ]


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the columns of a CSV file, or of a parquet file if its name ends so.

  Raises:
    ValueError: an empty table, a missing column, or what should be a number and is none.
    ImportError: a parquet file without pyarrow.
  """
  path = pathlib.Path(path)
  if path.suffix == ".parquet":
    try:
      from pyarrow import parquet
    except ImportError as error:
      raise ImportError(
        f"{path} is parquet, which needs pyarrow: pip install 'oat-jax[convert]', or collect a .csv"
      ) from error
    rows = parquet.read_table(path).to_pylist()
  else:
    with open(path, newline="") as lines:
      rows = list(csv.DictReader(lines))
  if not rows:
    raise ValueError(f"{path} has no rows: collect runs that are evaluated")
  missing = [name for name in (*_WORDS, *_NUMBERS) if name not in rows[0]]
  if missing:
    raise ValueError(
      f"{path} has no column {', '.join(missing)}; it should be what `sweep.py collect` wrote"
    )
  columns = {name: np.array([str(row[name]) for row in rows]) for name in _WORDS}
  for name in _NUMBERS:
    columns[name] = np.array([_number(row[name], name, i, path) for i, row in enumerate(rows)])
  return columns


def _number(value: Any, name: str, row: int, path: pathlib.Path) -> float:
  try:
    return float(value)
  except (TypeError, ValueError):
    raise ValueError(f"{path}, row {row + 1}: {name} is {value!r}, not a number") from None


def select(
  table: Mapping[str, np.ndarray],
  metric: str = "",
  data: str = "windows",
  at: str = "last",
  where: Sequence[str] = (),
) -> Rows:
  """Returns the rows of one metric, of each run's last evaluated step or of its least loss.

  Args:
    table: of `read`.
    metric, data, at: as in `law_report.write`.
    where: "AXIS=VALUE", values as JSON: only runs of these places of the sweep's grid.

  Raises:
    ValueError: several kinds or evaluation sets, an unknown metric, runs that differ in what the
      law does not know, two rows of one run and step.
  """
  table = _at(table, where)
  for value, known, name in ((data, DATA, "data"), (at, AT, "at")):
    if value not in known:
      raise ValueError(f"{name} is '{value}'; there are {', '.join(known)}")
  kinds = sorted(set(map(str, table["kind"])))
  if len(kinds) > 1:
    raise ValueError(f"the table mixes {' and '.join(kinds)}: collect one kind, and fit each alone")
  metric = metric or DEFAULT_METRIC.get(kinds[0], "")
  metrics = sorted(set(table["metric"]))
  if metric not in metrics:
    raise ValueError(
      f"the table has no losses of metric '{metric}', only of {', '.join(metrics)}: name one"
    )
  rows = {name: each[table["metric"] == metric] for name, each in table.items()}
  sets = sorted(set(rows["evaluation_set"]))
  if len(sets) > 1:
    of = {each: rows["run"][rows["evaluation_set"] == each][0] for each in sets}
    raise ValueError(
      f"the losses are of {len(sets)} evaluation sets, which cannot be compared: "
      + ", ".join(f"{each[:12]} (e.g. run {run})" for each, run in of.items())
    )
  _check_axes(rows, data)
  order = np.lexsort((rows["step"], rows["K"], rows["seed"], rows[data], rows["parameters"]))
  rows = {name: each[order] for name, each in rows.items()}
  last = {run: rows["step"][rows["run"] == run].max() for run in set(rows["run"])}
  short = sorted(
    run for run in last if last[run] < rows["steps"][rows["run"] == run].max()
  )  # fmt: skip
  warnings = []
  if short:
    warnings.append(
      f"{len(short)} run(s) have not come to their end and are left out: {', '.join(short[:5])}"
      + (" ..." if len(short) > 5 else "")
    )
    whole = ~np.isin(rows["run"], short)
    if not whole.any():
      raise ValueError(f"no run has come to its end: {warnings[0]}")
    rows = {name: each[whole] for name, each in rows.items()}
  chosen = [_chosen(rows, at, run, K) for run, K in dict.fromkeys(zip(rows["run"], rows["K"]))]
  columns = {name: each[chosen] for name, each in rows.items()}
  _check_alone(columns, data)
  return Rows(kinds[0], metric, data, at, columns, rows, tuple(warnings))


def _chosen(rows: Mapping[str, np.ndarray], at: str, run: str, K: float) -> int:
  of = np.flatnonzero((rows["run"] == run) & (rows["K"] == K))
  if at == "last":
    return int(of[np.argmax(rows["step"][of])])
  loss = rows["loss"][of]
  return int(of[np.argmin(np.where(np.isfinite(loss), loss, np.inf))])


def _of_whole_run(columns: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the windows that a run sees to its end, whichever of its steps the row is of."""
  return np.round(columns["examples"] * columns["steps"] / columns["step"])


def _at(table: Mapping[str, np.ndarray], where: Sequence[str]) -> Mapping[str, np.ndarray]:
  """Returns the rows of the asked places of the grid."""
  for each in where:
    name, _, text = each.partition("=")
    try:
      value = json.loads(text)
    except ValueError:
      value = text
    there = [json.loads(axes or "{}").get(name) for axes in table["axes"]]
    kept = np.array([one == value for one in there], bool)
    if not kept.any():
      known = sorted({json.dumps(one) for one in there})
      raise ValueError(f"no run has {name} {text}; the table has {', '.join(known)}")
    table = {column: rows[kept] for column, rows in table.items()}
  return table


def _check_axes(rows: Mapping[str, np.ndarray], data: str) -> None:
  """What the law does not know of, say another codebook, must not differ between its runs."""
  places = [json.loads(axes or "{}") for axes in dict.fromkeys(rows["axes"])]
  known = _KNOWN + (_BUDGETS if data == "examples" else ())
  for name in sorted({name for place in places for name in place} - {*known}):
    values = sorted({json.dumps(place.get(name)) for place in places})
    if len(values) > 1:
      hint = ", or data='examples'" if name in _BUDGETS else ""
      raise ValueError(
        f"the runs have {len(values)} values of {name}: {', '.join(values)}; a law of parameters "
        f"and {data} needs one: choose by where, e.g. {name}={values[0]}{hint}"
      )
  rows_of = list(zip(rows["run"], rows["K"], rows["step"]))
  if len(set(rows_of)) < len(rows_of):
    run = next(each for each in rows_of if rows_of.count(each) > 1)
    raise ValueError(f"run {run[0]} has two rows of step {run[2]:.0f}: the table mixes two sweeps")


def _check_alone(columns: Mapping[str, np.ndarray], data: str) -> None:
  """Two runs of one place are the same run twice, or differ in what is no axis."""
  seen: dict[Any, int] = {}
  seen_R = _of_whole_run(columns)
  for row in range(len(columns["run"])):
    names = ("parameters", "windows", "seed", "K")
    key = (*(columns[name][row] for name in names), seen_R[row])
    other = seen.setdefault(key, row)
    if columns["run"][other] != columns["run"][row]:
      axes = [json.loads(columns["axes"][each] or "{}") for each in (other, row)]
      differ = {name for name in {*axes[0], *axes[1]} if axes[0].get(name) != axes[1].get(name)}
      raise ValueError(
        f"runs {columns['run'][other]} and {columns['run'][row]} have the same parameters, {data} "
        f"and seed, and differ in {', '.join(sorted(differ)) or 'nothing'}: a law of parameters "
        f"and {data} needs a table in which nothing else differs"
      )
