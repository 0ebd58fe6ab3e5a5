"""Runs of a sweep on a cluster: a job array of SLURM, JobSets of Kubernetes.

The cluster's scheduler queues, limits and restarts; a run goes on from its working directory.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import re
import shlex
import shutil
import string
import subprocess
import time
from typing import Any

from oat_jax.scaling import sweep

# Of a JobSet's name, to which the names of its pods add the slice and the host: 63 in all.
NAME_LETTERS = 50


def slurm(
  runs: Sequence[sweep.Run],
  out: pathlib.Path,
  script: pathlib.Path,
  jobs: int,
  retries: int,
  options: Sequence[str] = (),
) -> str:
  """Submits what is not done as one job array, of which `jobs` run at a time; returns its id.

  SLURM queues, limits, requeues and logs; `script`, launch/slurm.sbatch, takes a line of a file
  OUT/slurm/runs_TIME.txt for each task of the array.

  Args:
    runs: of the sweep.
    out: its directory, which the nodes see too.
    script: launch/slurm.sbatch.
    jobs, retries: as of `local.run`.
    options: more of sbatch, e.g. --partition=gpu.

  Raises:
    ValueError: all is done, or an array of this sweep is queued already.
    FileNotFoundError: there is no sbatch.
    RuntimeError: sbatch refused.
  """
  todo = sweep.missing(runs)
  if not todo:
    return ""
  folder = out / "slurm"
  folder.mkdir(parents=True, exist_ok=True)
  if shutil.which("sbatch") is None:
    raise FileNotFoundError("sbatch is not on PATH: run this where SLURM's commands are")
  job = folder / "job_id"
  before = job.read_text().strip() if job.exists() else ""
  if before and _queued(before):
    raise ValueError(
      f"array {before} of this sweep is still queued or running: wait for it, or scancel {before}"
    )
  # Tasks of an earlier array that are queued still have their own.
  lines = folder / f"runs_{time.strftime('%Y%m%d_%H%M%S')}.txt"
  lines.write_text("".join(shlex.join(run.arguments) + "\n" for run in todo))
  command = [
    "sbatch",
    "--parsable",
    f"--array=0-{len(todo) - 1}%{jobs}",
    f"--output={folder}/%A_%a.log",
    f"--export=ALL,RUNS={lines},RETRIES={retries}",
    *options,
    str(script),
  ]
  print(shlex.join(command), flush=True)
  asked = subprocess.run(command, capture_output=True, text=True, check=False)
  if asked.returncode:
    raise RuntimeError(f"sbatch refused: {asked.stderr.strip() or asked.stdout.strip()}")
  number = asked.stdout.strip().partition(";")[0]
  job.write_text(number + "\n")
  return number


def _queued(job: str) -> bool:
  command = ["squeue", "--noheader", f"--jobs={job}"]
  listed = subprocess.run(command, capture_output=True, text=True, check=False)
  if listed.returncode and "Invalid job id" not in listed.stderr:
    raise RuntimeError(f"squeue does not say whether {job} is queued: {listed.stderr.strip()}")
  return listed.returncode == 0 and bool(listed.stdout.strip())


def jobsets(
  runs: Sequence[sweep.Run],
  out: pathlib.Path,
  template: pathlib.Path,
  variables: Mapping[str, Any],
) -> list[pathlib.Path]:
  """Writes a JobSet for each run that is not done into OUT/jobsets; returns their paths.

  Args:
    runs: of the sweep.
    out: its directory, on the volume that the pods mount, under the same path.
    template: launch/gke_jobset.yaml.
    variables: what stands behind a dollar sign in it, but for NAME and ARGS.

  Raises:
    ValueError: a variable is missing.
  """
  todo = sweep.missing(runs)
  text = template.read_text()
  text = text[text.index("apiVersion:") :]  # less the comment that says how to use it by hand
  wanted = string.Template(text).get_identifiers()
  missing = [name for name in wanted if name not in ("NAME", "ARGS") and not variables.get(name)]
  if missing:
    raise ValueError(
      f"variables are not set: {', '.join(missing)}; {template.name} says what they are, e.g. "
      f"{missing[0]}=... python launch/sweep.py run --backend=jobset ..."
    )
  folder = out / "jobsets"
  shutil.rmtree(folder, ignore_errors=True)  # of an earlier call, when less was done
  folder.mkdir(parents=True)
  paths = []
  for run in todo:
    # A name in a cluster: small letters, digits and dashes, with room for what JobSet adds.
    name = re.sub(r"[^a-z0-9]+", "-", f"{out.name}-{run.name}".lower()).strip("-")
    if len(name) > NAME_LETTERS:
      raise ValueError(
        f"'{name}' has {len(name)} letters; a JobSet's name has room for {NAME_LETTERS}: take a "
        "shorter --out"
      )
    filled = {**variables, "NAME": name, "ARGS": json.dumps(run.arguments)}
    paths.append(folder / f"{name}.yaml")
    paths[-1].write_text(string.Template(text).substitute(filled))
  return paths
