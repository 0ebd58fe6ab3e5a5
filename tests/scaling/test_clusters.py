"""A sweep as a job array of SLURM, and as JobSets."""

import json
import os
import shlex
import subprocess

import pytest
import stand_ins
import sweeps
import tiny
import yaml

from oat_jax.scaling import clusters

# Values that launch/gke_jobset.yaml asks for.
POD = {
  "IMAGE": "reg/oat_jax", "SLICES": "1", "HOSTS": "4", "CHIPS": "4", "CLAIM": "runs",
  "ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "4x4",
}  # fmt: skip


def commands(folder, monkeypatch, **ends):
  """Stand-ins, first on PATH; returns their log."""
  stand_ins.commands(folder, **ends)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  return folder / "log"


SCRIPT = tiny.ROOT / "launch" / "slurm.sbatch"


def test_slurm_takes_what_is_missing_as_one_array(tmp_path, monkeypatch):
  log = commands(tmp_path / "bin", monkeypatch, sbatch="echo '71;cluster'", squeue="exit 0")
  out = tmp_path / "a sweep"
  runs = sweeps.expand(out)
  told = sweeps.plan(out, runs)
  done = json.loads((out / "told.json").read_text())[runs[1].name]
  sweeps.write(runs[1].workdir, done["config"], 6)
  assert clusters.slurm(runs, out, SCRIPT, 8, 1, ["--partition=gpu"]) == "71" and told
  (file,) = (out / "slurm").glob("runs_*.txt")
  lines = file.read_text().splitlines()
  assert [shlex.split(line) for line in lines] == [runs[i].arguments for i in (0, 2, 3)]
  asked = log.read_text()
  assert asked.startswith("sbatch --parsable --array=0-2%8 ")
  assert f"RUNS={file},RETRIES=1 --partition=gpu {SCRIPT}" in asked


def test_slurm_does_not_queue_twice(tmp_path, monkeypatch):
  commands(tmp_path / "bin", monkeypatch, sbatch="echo 71", squeue="echo 71_0 R")
  out = tmp_path / "out"
  runs = sweeps.expand(out)
  clusters.slurm(runs, out, SCRIPT, 1, 0)
  with pytest.raises(ValueError, match="array 71 of this sweep is still queued"):
    clusters.slurm(runs, out, SCRIPT, 1, 0)
  commands(tmp_path / "down", monkeypatch, squeue="echo 'no controller' >&2; exit 1")
  with pytest.raises(RuntimeError, match="does not say whether 71 is queued: no controller"):
    clusters.slurm(runs, out, SCRIPT, 1, 0)
  commands(tmp_path / "gone", monkeypatch, squeue="echo 'Invalid job id specified' >&2; exit 1")
  assert clusters.slurm(runs, out, SCRIPT, 1, 0) == "71"


def test_slurm_that_refuses_or_is_not_there_is_an_error(tmp_path, monkeypatch):
  runs = sweeps.expand(tmp_path / "out")
  commands(tmp_path / "bin", monkeypatch, sbatch="echo 'bad partition' >&2; exit 1")
  with pytest.raises(RuntimeError, match="sbatch refused: bad partition"):
    clusters.slurm(runs, tmp_path / "out", SCRIPT, 1, 0)
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(FileNotFoundError, match="sbatch is not on PATH"):
    clusters.slurm(runs, tmp_path / "out", SCRIPT, 1, 0)


@pytest.mark.parametrize(
  ("restarts", "code", "again"), [(0, 2, True), (1, 2, False), (5, 143, True)]
)
def test_a_task_of_the_array_takes_its_line_and_is_queued_again(
  tmp_path, monkeypatch, restarts, code, again
):
  log = commands(tmp_path / "bin", monkeypatch, srun=f"exit {code}", scontrol="exit 0")
  lines = [
    ["--config=a.py:b", "--workdir=one two"],
    ["--config.model.levels=(8, 5)", "--workdir=$x"],
  ]
  file = tmp_path / "runs file"
  file.write_text("".join(shlex.join(line) + "\n" for line in lines))
  array = {
    "RUNS": str(file), "RETRIES": "1", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77",
    "SLURM_ARRAY_JOB_ID": "70",
    "SLURM_RESTART_COUNT": str(restarts), "PYTHON": "py",
  }  # fmt: skip
  done = subprocess.run(
    ["bash", str(SCRIPT)], env=os.environ | array, cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == code, done.stderr
  said = log.read_text().splitlines()
  assert said[0].endswith("py launch/train.py --config.model.levels=(8, 5) --workdir=$x")
  assert (said[1:] == ["scontrol requeue 70_1"]) == again


TEMPLATE = tiny.ROOT / "launch" / "gke_jobset.yaml"


def test_every_run_that_is_not_done_gets_a_jobset(tmp_path):
  out = tmp_path / "Sweep_1"
  runs = sweeps.expand(out)
  paths = clusters.jobsets(runs[:2], out, TEMPLATE, POD)
  assert [path.name for path in paths] == [
    "sweep-1-small-steps6-seed0.yaml", "sweep-1-small-steps6-seed1.yaml",
  ]  # fmt: skip
  for run, path in zip(runs, paths):
    manifest = yaml.safe_load(path.read_text())
    assert manifest["metadata"]["name"] == path.stem
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == run.arguments


def test_a_jobset_without_its_settings_or_with_too_long_a_name_is_refused(tmp_path):
  runs = sweeps.expand(tmp_path / ("x" * 60))
  with pytest.raises(ValueError, match="variables are not set: .*IMAGE"):
    clusters.jobsets(runs, tmp_path, TEMPLATE, {})
  with pytest.raises(ValueError, match="has 79 letters; a JobSet's name has room for 50"):
    clusters.jobsets(runs, tmp_path / ("x" * 60), TEMPLATE, POD)
