"""Cluster launchers, as far as a machine without a cluster can check them."""

import json
import os
import re
import shutil
import string
import subprocess
import sys

import pytest
import stand_ins
import tiny
import yaml

LAUNCH = tiny.ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
SLICE = {
  "PROJECT": "p", "ZONE": "us-west4-a", "NAME": "oat-1b", "TYPE": "v5litepod-256",
  "SHARED": "10.0.0.2:/runs", "PAUSE": "0",
}  # fmt: skip
POD = {
  "NAME": "oat-1b", "IMAGE": "reg/oat_jax", "SLICES": "2", "HOSTS": "64", "CHIPS": "4",
  "ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "16x16",
  "CLAIM": "runs",
  "ARGS": json.dumps(["--config=configs/policy_oat.py:1b", "--workdir=/runs/oat-1b"]),
}  # fmt: skip


def run(script, *args, path=None, **variables):
  environment = {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
  return subprocess.run(
    ["bash", str(LAUNCH / script), *args],
    env=environment | variables,
    capture_output=True,
    text=True,
    cwd=tiny.ROOT,
  )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_clean(script):
  subprocess.run(["bash", "-n", str(script)], check=True)
  here = os.path.join(os.path.dirname(sys.executable), "shellcheck")
  shellcheck = here if os.path.exists(here) else shutil.which("shellcheck")
  if shellcheck is None:
    pytest.skip("shellcheck is not installed")
  found = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
  assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (130, True), (143, True), (1, False)])
def test_slurm_queues_a_job_again_that_a_signal_stopped(tmp_path, code, requeued):
  path = stand_ins.commands(tmp_path / "bin", srun=f"exit {code}", scontrol="exit 0")
  done = run(
    "slurm.sbatch", "--config=configs/policy_oat.py:300m", "--workdir=W dir", path=path,
    SLURM_JOB_ID="77",
  )  # fmt: skip
  log = (path / "log").read_text().splitlines()
  assert done.returncode == code
  srun = "srun --kill-on-bad-exit=0 --cpus-per-task=8 .venv/bin/python launch/train.py --config="
  assert log[0].startswith(srun)
  assert (log[1:] == ["scontrol requeue 77"]) == requeued


def test_a_dry_run_of_slurm_prints_what_it_would_run():
  done = run("slurm.sbatch", "--workdir=a b", DRY_RUN="1", PYTHON="python3")
  assert done.returncode == 0
  srun = "srun --kill-on-bad-exit=0 --cpus-per-task=8"
  assert done.stdout.strip() == rf"{srun} python3 launch/train.py --workdir=a\ b"


def test_a_dry_run_of_a_slice_prints_what_it_would_run():
  done = run(
    "tpu_vm.sh", "--workdir=/mnt/shared/w", DRY_RUN="1", REPOSITORY="r", REVISION="v", **SLICE
  )
  assert done.returncode == 0, done.stderr
  install, train, delete = done.stdout.strip().splitlines()
  assert "tpu-vm ssh oat-1b --worker=all" in install and "checkout" in install
  assert "mount" in install and "10.0.0.2:/runs" in install
  assert "launch/train.py" in train and "--distributed" in train and "/mnt/shared/w" in train
  assert "queued-resources delete oat-1b" in delete


def test_a_slice_that_is_preempted_is_asked_for_again(tmp_path):
  """Not there, given, lost while it installs, given again, lost in training, and so to the end.

  It is called ACTIVE for some time after it is lost.
  """
  states = tmp_path / "states"
  lost = ["ACTIVE", "ACTIVE", "UNREACHABLE", "SUSPENDED"]
  states.write_text("\n".join(["NONE", *(2 * ["ACTIVE", *lost, "NONE"]), "ACTIVE"]) + "\n")
  installed = tmp_path / "installed"
  trained = tmp_path / "trained"
  path = stand_ins.commands(
    tmp_path / "bin",
    gcloud=f"""case "$*" in
      *describe*)
        now=$(head -n 1 {states}); sed -i 1d {states}
        [[ $now == NONE ]] && echo "NOT_FOUND: no such resource" >&2 && exit 1
        [[ $now == UNREACHABLE ]] && echo "no network" >&2 && exit 1
        echo $now ;;
      *install*) [[ -e {installed} ]] || {{ touch {installed}; exit 255; }} ;;
      *train.py*) [[ -e {trained} ]] && exit 0; touch {trained}; exit 1 ;;
    esac""",
  )
  done = run("tpu_vm.sh", "--workdir=w", path=path, REPOSITORY="r", REVISION="v", SPOT="1", **SLICE)
  assert done.returncode == 0, done.stderr
  log = [line for line in (path / "log").read_text().splitlines() if "describe" not in line]
  what = [re.search(r"create|delete|train.py|install", line)[0] for line in log]
  first, second = ["create", "install", "delete"], ["create", "install", "train.py", "delete"]
  assert what == [*first, *second, *second]
  assert "--spot" in log[0]


def test_a_run_that_fails_on_a_slice_that_stays_ends(tmp_path):
  path = stand_ins.commands(
    tmp_path / "bin", gcloud='case "$*" in *describe*) echo ACTIVE ;; *train.py*) exit 1 ;; esac'
  )
  done = run("tpu_vm.sh", "--workdir=w", path=path, REPOSITORY="r", REVISION="v", **SLICE)
  assert done.returncode == 1 and "training failed on a slice that is there" in done.stderr
  assert "delete" not in (path / "log").read_text()


def test_a_slice_without_its_settings_is_an_error_that_says_them():
  done = run("tpu_vm.sh")
  assert done.returncode != 0 and "set PROJECT, ZONE, NAME, TYPE and SHARED" in done.stderr


@pytest.fixture
def manifest():
  return yaml.safe_load(string.Template((LAUNCH / "gke_jobset.yaml").read_text()).substitute(POD))


def test_the_jobset_has_fields_that_the_api_knows(manifest):
  """Of v1alpha2 (github.com/kubernetes-sigs/jobset); the jobs inside by Kubernetes' own schema."""
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  spec = manifest["spec"]
  assert spec.keys() <= {"failurePolicy", "replicatedJobs", "network", "successPolicy", "suspend"}
  assert spec["failurePolicy"].keys() <= {"maxRestarts", "restartStrategy", "rules"}
  validate = pytest.importorskip("kubernetes_validate", reason="the extra `dev`")
  for job in spec["replicatedJobs"]:
    assert job.keys() <= {"name", "replicas", "template", "groupName", "dependsOn"}
    whole = {
      "apiVersion": "batch/v1",
      "kind": "Job",
      "metadata": {"name": "one"},
      **job["template"],
    }
    validate.validate(whole, "1.30", strict=True)


def test_the_jobset_asks_for_every_host_and_restarts(manifest):
  job = manifest["spec"]["replicatedJobs"][0]
  inner = job["template"]["spec"]
  pod = inner["template"]["spec"]
  assert job["replicas"] == 2 and inner["parallelism"] == inner["completions"] == 64
  assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 100 and inner["backoffLimit"] == 0
  (rule,) = inner["podFailurePolicy"]["rules"]  # a wrong setting is no preemption
  assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [1]
  (whole,) = manifest["spec"]["failurePolicy"]["rules"]
  assert whole == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
  container = pod["containers"][0]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
  assert container["command"] + container["args"] == [
    "python", "launch/train.py", "--config=configs/policy_oat.py:1b", "--workdir=/runs/oat-1b",
  ]  # fmt: skip
  assert container["resources"]["limits"]["google.com/tpu"] == 4
