"""Small sweeps, and a stand-in for launch/train.py that ends as it is told.

As a program it holds the working directory's lock, writes what a run leaves behind, and logs each
start; see `plan`.
"""

import fcntl
import json
import pathlib
import signal
import sys
import time

WIDTHS = {"small": 32, "large": 64}


def values(**changes):
  """Values of a sweep of two sizes and two seeds."""
  axes = {"size": ("small", "large"), "steps": (6,), "seed": (0, 1)}
  base = {"run": "tiny.py:base", "set": {}, "axes": axes, "extra_axes": {}, "evaluations": 2}
  return base | changes


def load(source):
  """Values of a run's config: its size, behind the comma, is its width."""
  import tiny

  from oat_jax.train import config as train_config

  assert source.startswith("tiny.py:base")
  width = WIDTHS[source.partition(",")[2] or "small"]
  model = {"width": width, "num_tokens": 4, "levels": (8, 5)}
  run = tiny.run_values("tokenizer", "/nowhere", model=model)
  return train_config.to_json(train_config.freeze(run))


def size_of(config):
  from oat_jax.scaling import cost

  width = config.model["width"]
  windows = round(400 * config.data.train_fraction)
  return cost.Cost(width * width, 1e3 * width * config.batch_size, windows)


def expand(out, **changes):
  from oat_jax import config as config_lib
  from oat_jax.scaling import sweep

  config = config_lib.freeze(sweep.Config, values(**changes))
  return sweep.expand(config, out, load, size_of)


def plan(out, runs, ends=None, seconds=0.0):
  """Tells the stand-in what to do: {run: exit code of each start, its last one for ever}."""
  from oat_jax.train import config as train_config
  from oat_jax.train import models

  out.mkdir(parents=True, exist_ok=True)
  told = {
    run.name: {
      "ends": (ends or {}).get(run.name, [0]),
      "seconds": seconds,
      "steps": run.config.steps,
      "config": {
        "format_version": models.FORMAT_VERSION,
        "config": train_config.to_json(run.config),
        "dataset_fingerprint": "data",
        "tokenizer": None,
      },
    }
    for run in runs
  }
  (out / "told.json").write_text(json.dumps(told))
  return [sys.executable, __file__, str(out)]


def starts(out):
  """The names of the runs that were started, in order."""
  path = out / "starts"
  return path.read_text().split() if path.exists() else []


def write(workdir, config, steps, loss=0.25, evaluation_set="set"):
  """Leaves behind what a run does that got to its end."""
  (workdir / "checkpoints" / str(steps)).mkdir(parents=True, exist_ok=True)
  (workdir / "config.json").write_text(json.dumps(config))
  rows = [{"step": 1, "train/loss": 1.0, "train/steps_per_s": 4.0}]
  for step in (steps // 2, steps):
    errors = {f"validation/mse_{K}": loss / K + 1 / step for K in (1, 2, 3, 4)}
    rows.append({"step": step, **errors, "validation/distinct_tokens": 9.0})
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  facts = {
    "code": [{"oat_jax": "0.1.0 abc", "jax": "0.10"}],
    "devices": "1 x cpu",
    "evaluation_set": evaluation_set,
    "kind": "tokenizer",
    "windows": 400,
    "episodes": 4,
    "bits_per_token": 10.0,
    "parameters": 1024,
    "flops_per_step": 512.0,
  }
  (workdir / "provenance.json").write_text(json.dumps(facts))


def main():
  out, *arguments = sys.argv[1:]
  out = pathlib.Path(out)
  flags = dict(each.lstrip("-").split("=", 1) for each in arguments)
  workdir = pathlib.Path(flags["workdir"])
  told = json.loads((out / "told.json").read_text())[workdir.name]
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(out / "starts", "a") as log:
      log.write(f"{workdir.name}\n")
    count = starts(out).count(workdir.name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    time.sleep(told["seconds"])
    code = told["ends"][min(count, len(told["ends"])) - 1]
    if code == 0:
      write(workdir, told["config"], told["steps"])
    else:
      print("something went wrong")
  sys.exit(code)


if __name__ == "__main__":
  main()
