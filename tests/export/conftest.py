"""One run and its export, for all of these tests."""

import shutil

import pytest
import tiny

import oat_jax.export


@pytest.fixture(scope="session")
def policy_workdir(dataset, tokenizer_workdir, tmp_path_factory):
  """A policy of two steps, written by two devices; the data stay where they are."""
  out = tmp_path_factory.mktemp("policy") / "run"
  values = tiny.run_values("policy", dataset, tokenizer_workdir, steps=2, mesh=(1, 2, 1))
  values |= {"evaluate_every": 1, "save_every": 1, "keep_best": "chunk_mse_8"}
  flags = tiny.quick("--xla_force_host_platform_device_count=2")
  code, _, err = tiny.command("launch/train.py", *tiny.arguments(values, out), **flags)
  assert code == 0, err
  return out


@pytest.fixture(scope="session")
def export(policy_workdir, tmp_path_factory):
  out = tmp_path_factory.mktemp("export") / "deep" / "policy"
  arguments = [f"--workdir={policy_workdir}", f"--out={out}", "--temperature=1", "--top_k=10"]
  code, _, err = tiny.command("launch/export.py", *arguments)
  assert code == 0, err
  return out


@pytest.fixture(scope="session")
def loaded(export):
  return oat_jax.export.load(export)


@pytest.fixture
def copy(export, tmp_path):
  shutil.copytree(export, tmp_path / "copy")
  return tmp_path / "copy"
