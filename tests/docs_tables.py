"""What is known of the docs' commands: which are not run, what makes the others small."""

import re

BENCH = "tests/bench/test_bench.py"
ELSEWHERE = "an environment of its own"
# (what the command holds, why it is not run here, the test or make target that does)
LISTED = [
  (r"^make quickstart$", "44 minutes; its smallest variant is run", "tests/test_quickstart.py"),
  (r"^make( (test|docs-check))?$", "what runs this", "tests/test_docs.py"),
  (r"^(\.venv/bin/)?pip install", "changes the environment", "tests/test_wheel.py"),
  (r"^make sim-libero", ELSEWHERE, "tests/sims/test_libero.py"),
  (r"^make sim-robocasa|^\.venv-robocasa", ELSEWHERE, "tests/sims/test_robocasa.py"),
  (r"^make test-clients", ELSEWHERE, "tests/clients/against.py"),
  (r"--suite=libero/10", ELSEWHERE, "tests/sims/test_libero.py"),
  (r"^import praxis_eval", ELSEWHERE, "tests/clients/drive_praxis.py"),
  (
    r"^python examples/robot_client",
    "a robot, openpi-client",
    "tests/examples/test_robot_client.py",
  ),
  (r"^(srun|sbatch) |launch/tpu_vm\.sh", "a cluster", "tests/test_launchers.py"),
  (r"^mpirun |--coordinator=|--distributed", "several processes", "tests/train/test_processes.py"),
  (r"policy_8gpu\.py", "eight GPUs", "tests/parallel/test_sharding_tables.py"),
  (r"benchmark\.py (act|train|tokenizers|serve)", "minutes at full size", BENCH),
  (r"benchmark\.py law", "minutes at full size", "tests/scaling/test_power_law.py"),
  (r"benchmark\.py faults", "an hour", "tests/bench/test_faults.py"),
  (r"benchmark\.py peer", "PyTorch and a checkout", BENCH),
  (r"sweeps/policy\.py", "a tokenizer of another sweep", "tests/scaling/test_sweep.py"),
  (r"sweep\.py fit", "more runs than are made here", "tests/scaling/test_sweep_command.py"),
  (r"--backend=(slurm|jobset)", "a cluster", "tests/scaling/test_clusters.py"),
  (r"--data=droid", "a dataset of 1.7 TB", "tests/study/test_show_data.py"),
]
OAT = "--config.model.encoder_layers=1 --config.model.decoder_layers=1"
# Launch file -> what is added to make it small, by what it holds; the first that fits.
SMALLER = {
  "launch/collect.py": [("", "--episodes=2")],
  "launch/train.py": [
    (r"tokenizer_(bin|fast)", "--config.evaluate_windows=16"),
    (r"tokenizer_oat", f"STEPS {OAT}"),
    (r"policy_(oat|diffusion)", "STEPS --config.model.layers=1"),
    ("", "STEPS"),
  ],
  "launch/evaluate.py": [("--select", "--select_episodes=1 EPISODES"), ("", "EPISODES")],
  "oat-jax-evaluate": [("", "--episodes=1 --max-steps=16 --processes=1")],
  "launch/compare.py": [
    (r"--print_commands", ""),
    (r"configs/paper_", "--print_commands"),  # tests/test_paper_configs.py compiles their steps
    (r"--observations=rgb", "--print_commands"),
    (r"^policies", "--config=configs/compare_policies.py:mini --methods=oat,regression"),
    (r"--methods", "--config=configs/compare.py:mini"),
    ("", "--config=configs/compare.py:mini --methods=oat,bin"),
  ],
  "launch/benchmark.py": [("", "--scale=0.02")],
  "launch/quickstart.py": [("", "--config=configs/quickstart.py:mini")],
  "launch/sweep.py": [("", "--config=configs/sweeps/tokenizer.py:mini")],
  "launch/plan.py": [("", "--nocompile")],  # tests/scaling/test_plan.py compiles for a TPU
}
WORDS = {
  "STEPS": "--config.steps=2 --config.batch_size=8 --config.log_every=1 --config.save_every=2"
  " --config.evaluate_every=2 --config.evaluate_windows=16",
  "EPISODES": "--episodes=1 --max_steps=16 --processes=1",
}
# Commands that a page takes for granted, before the one that holds the text.
POLICY = [
  "python launch/train.py --config=configs/tokenizer_oat.py:mt4 --config.data.path=DIR"
  " --workdir=W/tokenizer",
  "python launch/train.py --config=configs/policy_oat.py:mt4 --config.data.path=DIR"
  " --config.tokenizer=W/tokenizer --config.keep_best=cross_entropy_8 --workdir=W/policy",
]
BEFORE = {"--workdir=W/policy --suite=metaworld/mt10": POLICY}
FILES = {
  "robomimic_hdf5": "lift/ph/image.hdf5",
  "libero_hdf5": "libero_10",
  "lerobot": "svla_so101_pickplace",
  "array_record": "bridge/1.0.0",
}
# Names that Python blocks take for granted.
NAMES = {
  "state": "np.zeros(39, np.float32)",
  "observation": '{"state": np.zeros((2, 39), np.float32), "task": "box-close"}',
  "actions": "np.zeros((2, 32, 4), np.float32)",
  "actions_BCA": "np.zeros((2, 32, 4), np.float32)",
  "anytime": "anytime_lib",
  "tolerance": "1.0",
  "policy": "trained_policy.model",
  "params": "trained_policy.params",
  "batch": "a_batch()",
  "key": "jax.random.key(0)",
}
PREAMBLE = """
import jax
import numpy as np
from oat_jax import batch as batch_lib
from oat_jax.policies import anytime as anytime_lib
from oat_jax.train import models as models_lib
trained_policy = models_lib.load("W/policy")
def a_batch():
  fake = batch_lib.fake(trained_policy.spec, 1)
  return {k: fake[k] for k in fake if not k.startswith("action")}
"""
# What a machine may lack; the command is skipped, and the table says so.
MISSING = re.compile(
  r"off-screen OpenGL|is not installed|No module named '(?!oat_jax|command)|serving needs more"
)
