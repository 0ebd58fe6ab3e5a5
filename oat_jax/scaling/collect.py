"""From the working directories of a sweep to one table of held-out losses.

A row for each run, evaluation, metric and prefix length; the columns are `COLUMNS`.
"""

from collections.abc import Mapping, Sequence
import csv
import json
import pathlib
from typing import Any

import numpy as np

from oat_jax.scaling import sweep
from oat_jax.train import provenance
from oat_jax.train import workdir as workdir_lib

COLUMNS = (
  "run",
  "kind",
  "size",
  "seed",
  "parameters",  # trained ones
  "windows",  # different ones trained on
  "examples",  # windows seen up to `step`, repeats counted
  "flops",  # of training up to `step`, without computing again
  "step",
  "steps",  # of the whole run
  "metric",
  "K",  # the prefix's length; 0 where the metric has none
  "bits",  # that K tokens hold
  "loss",
  "evaluation_set",
  "axes",  # JSON
  "config",  # JSON
  "code",
  "device",
)
# Metrics that are losses, by what they are averaged over.
PREFIX = ("mse", "chunk_mse")  # of chunks decoded from the first K tokens
TOKEN = ("cross_entropy",)  # nats of token k; the table has the mean of the first K


def collect(runs: Sequence[sweep.Run]) -> tuple[list[dict[str, Any]], list[str]]:
  """Returns (rows of the runs that are done, names of those that are not).

  Raises:
    ValueError: none is done, directories cannot be trusted, or not all losses are of the same
      held-out windows, units and tokens.
  """
  rows, missing = [], []
  for run, state in zip(runs, sweep.states(runs)):
    if state.done:
      rows += _rows(run)
    else:
      missing.append(run.name)
  if not rows:
    raise ValueError(f"none of the {len(runs)} runs is done; launch/sweep.py run trains them")
  check_evaluation_set(rows)
  return rows, missing


def check_evaluation_set(rows: Sequence[Mapping[str, Any]]) -> None:
  """Raises ValueError unless all rows are measured on one evaluation set."""
  sets: dict[str, list[str]] = {}
  for row in rows:
    sets.setdefault(row["evaluation_set"], []).append(row["run"])
  if len(sets) > 1:
    lines = [f"  {key}: {', '.join(sorted(set(names)))}" for key, names in sets.items()]
    raise ValueError(
      f"the runs were measured on {len(sets)} evaluation sets, so their losses do not compare; "
      "held-out windows, units of errors and, of policies, the tokenizer must be the same:\n"
      + "\n".join(lines)
    )


def _rows(run: sweep.Run) -> list[dict[str, Any]]:
  facts = provenance.read(run.workdir)
  config = json.dumps(workdir_lib.described(run.workdir)["config"], separators=(",", ":"))
  code = "; ".join(f"oat_jax {each['oat_jax']}, jax {each['jax']}" for each in facts["code"])
  out = []
  for values in sweep.evaluations(run.workdir):
    step = int(values["step"])
    common = {
      "run": run.name,
      "kind": run.config.kind,
      "size": run.axes.get("size", ""),
      "seed": run.config.seed,
      "parameters": facts["parameters"],
      "windows": facts["windows"],
      "examples": step * run.config.batch_size,
      "flops": step * facts["flops_per_step"],
      "step": step,
      "steps": run.config.steps,
    }
    last = {
      "evaluation_set": facts["evaluation_set"],
      "axes": json.dumps(run.axes),
      "config": config,
      "code": code,
      "device": facts["devices"],
    }
    for metric, K, loss in losses(values):
      bits = K * facts["bits_per_token"]
      out.append(common | {"metric": metric, "K": K, "bits": bits, "loss": loss} | last)
  return out


def losses(values: Mapping[str, float]) -> list[tuple[str, int, float]]:
  """Returns (metric, K, loss) of one evaluation's values, as metrics.jsonl names them."""
  found = []
  for metric in (*PREFIX, *TOKEN):
    by_k = {
      int(name.rpartition("_")[2]): value
      for name, value in values.items()
      if name.rpartition("_")[0] == metric and name.rpartition("_")[2].isdigit()
    }
    of_k = np.array([by_k[K] for K in sorted(by_k)])
    if metric in TOKEN:
      of_k = np.cumsum(of_k) / np.arange(1, len(of_k) + 1)
    found += [(metric, K, float(loss)) for K, loss in zip(sorted(by_k), of_k)]
    if metric in values:  # of a policy without tokens
      found.append((metric, 0, values[metric]))
  return found


def write(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes a table, whole or not at all: Parquet where the name ends so, else CSV."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".parquet":
    try:
      import pyarrow
      from pyarrow import parquet
    except ImportError as error:
      raise ImportError(
        f"{path} needs pyarrow ({error}): pip install 'oat-jax[convert]', or name a .csv"
      ) from error
    temporary = path.with_name(path.name + ".tmp")
    parquet.write_table(pyarrow.Table.from_pylist(list(map(dict, rows))), temporary)
    temporary.replace(path)
    return
  with open(path.with_name(path.name + ".tmp"), "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    writer.writerows([row[name] for name in COLUMNS] for row in rows)
  path.with_name(path.name + ".tmp").replace(path)
