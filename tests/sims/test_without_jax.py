"""A simulator's environment has no jax: what evaluates there imports nothing of it."""

import importlib.util
import pkgutil
import subprocess
import sys

import pytest

from oat_jax import envs
from oat_jax import evaluate

if importlib.util.find_spec("jax"):
  pytest.skip("jax is installed here", allow_module_level=True)

# Other simulators, what writes datasets, and what acts in the process that evaluates.
ELSEWHERE = {f"oat_jax.envs.{name}" for name in ("metaworld", "robosuite", "libero", "robocasa")}
ELSEWHERE |= {"oat_jax.envs.collect", "oat_jax.evaluate.exported"}


def test_environments_and_evaluation_import():
  modules = [
    module.name
    for package in (envs, evaluate)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    if module.name not in ELSEWHERE
  ]
  assert {"oat_jax.envs.vector", "oat_jax.evaluate.run"} <= set(modules)
  for name in ("jax", "flax", "tensorflow_datasets", "torch"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed"
  for name in modules:
    run = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
