"""Training that is killed again and again, against the same training left alone.

A small tokenizer trains in a process of its own, which SIGKILL ends at random moments, every other
one while a checkpoint is being written; each restart must go on from the newest whole checkpoint,
and the last parameters must be those of a run that was never killed, bit for bit.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from oat_jax.bench import data
from oat_jax.train import checkpoint

KILLS, SAVE_EVERY, STEPS = 50, 20, 4000
SMALL = {"width": 32, "head_width": 16, "encoder_layers": 1, "decoder_layers": 1, "shortcut": 0}
_PROGRAM = """
import json, sys
from oat_jax.train import config, loop
loop.train(config.freeze(json.load(open(sys.argv[1]))), sys.argv[2])
"""


def run(configs: Mapping[str, Any], scale: float = 1.0) -> dict[str, float]:
  """`configs` holds `tokenizer_mt4`, of which a small one is trained, with `scale` of the kills."""
  kills = max(2, round(KILLS * scale))
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    data.write_dataset(root / "data", 20, cameras=False)
    values = _values(
      configs["tokenizer_mt4"], root / "data", max(SAVE_EVERY * 8, int(STEPS * scale))
    )
    file = root / "config.json"
    file.write_text(json.dumps(values))
    environment = os.environ | {
      "JAX_COMPILATION_CACHE_DIR": str(root / "programs"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "OAT_JAX_CACHE": str(root / "cache"),
      "PYTHONUNBUFFERED": "1",
      "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }

    def start(name):
      with open(root / "log", "w") as log:  # a pipe that nobody reads would stop the run
        command = [sys.executable, "-c", _PROGRAM, str(file), str(root / name)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
      return Life(process, root / "log", root / name)

    start("whole").finish()
    figures = _killed(lambda: start("killed"), root / "killed", kills)
    same = [_bits(root / name) for name in ("whole", "killed")]
    return figures | {"faults_final_parameters_equal": float(same[0] == same[1])}


def _values(config: Any, dataset: pathlib.Path, steps: int) -> dict[str, Any]:
  values = json.loads(config.to_json_best_effort())
  values["model"] |= SMALL
  values["data"] |= {"path": str(dataset), "task": "", "state": ["observation/state"]}
  return values | {
    "steps": steps,
    "batch_size": 16,
    "save_every": SAVE_EVERY,
    "log_every": SAVE_EVERY,
    "evaluate_every": steps,
    "evaluate_windows": 64,
  }


class Life(NamedTuple):
  """One process that trains in a working directory."""

  process: subprocess.Popen
  log: pathlib.Path
  workdir: pathlib.Path

  def started(self) -> int:
    """Waits until it trains; returns the step that it goes on from."""
    while "trained parameters" not in self.log.read_text():
      if self.process.poll() is not None:
        raise RuntimeError(f"a run did not start: {self.log.read_text()[-2000:]}")
      time.sleep(0.05)
    found = re.search(r"resuming .* at step (\d+)", self.log.read_text())
    return int(found[1]) if found else 0

  def kill(self, step: int, in_save: bool, rng: random.Random) -> None:
    """Kills it when it has saved a step and a random time is over, or has begun to save."""
    seen = lambda: _writing(self.workdir) if in_save else _newest(self.workdir) >= step
    while self.process.poll() is None and not seen():
      time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.005) if in_save else rng.uniform(0, 0.3))
    self.process.send_signal(signal.SIGKILL)
    if self.process.wait() != -signal.SIGKILL:
      raise RuntimeError(f"the run ended before it was killed: {self.log.read_text()[-2000:]}")

  def finish(self) -> None:
    if self.process.wait():
      raise RuntimeError(f"a run failed: {self.log.read_text()[-2000:]}")


def _killed(start: Callable[[], Life], workdir: pathlib.Path, kills: int) -> dict[str, float]:
  """Starts and kills a run, then lets it come to its end."""
  rng = random.Random(0)
  saves = resumed = repeated = 0
  for kill in tqdm.trange(kills, desc="kills", unit="kill"):
    whole, life = _newest(workdir), start()
    resumed += life.started() == whole
    life.kill(whole + SAVE_EVERY * rng.randint(0, 2), kill % 2 == 0, rng)
    saves += bool(_writing(workdir))
    repeated += max(0, _reached(workdir) - _newest(workdir))
  whole, life = _newest(workdir), start()
  resumed += life.started() == whole
  life.finish()
  return {
    "faults_kills": kills,
    "faults_kills_while_saving": saves,
    "faults_restarts": kills + 1,
    "faults_restarts_at_the_newest_checkpoint": resumed,
    "faults_steps_repeated_mean": repeated / kills,
  }


def _newest(workdir: pathlib.Path) -> int:
  return max(checkpoint.steps(workdir), default=0)


def _writing(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Returns the checkpoints that are not whole."""
  folder = checkpoint.directory(workdir)
  return [path for path in folder.glob("*") if not path.name.isdigit()] if folder.exists() else []


def _reached(workdir: pathlib.Path) -> int:
  """Returns the last step that a run has told of."""
  file = workdir / "metrics.jsonl"
  with contextlib.suppress(OSError, ValueError, IndexError):
    return json.loads(file.read_text().splitlines()[-1])["step"]
  return 0


def _bits(workdir: pathlib.Path) -> list[bytes]:
  step, params = checkpoint.load_params(workdir)
  return [str(step).encode(), *(np.asarray(x).tobytes() for x in jax.tree.leaves(params))]
