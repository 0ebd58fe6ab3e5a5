"""Sections of the benchmark: what they name, and that they measure."""

import importlib
import json
import os

import pytest
import tiny

from oat_jax.bench import clock

SIZES = {"width": 32, "head_width": 16, "mlp_ratio": 2}
LAYERS = {"tokenizer": {"encoder_layers": 1, "decoder_layers": 1}, "policy": {"layers": 1}}


@pytest.fixture(scope="module")
def configs():
  """The shipped ones, smaller."""
  made = {}
  for kind, layers in LAYERS.items():
    for size in ("mt4", "published"):
      config = tiny.get_config(f"{kind}_oat.py", size)
      config.batch_size = 8
      config.model.update(SIZES | layers)
      made[f"{kind}_{size}"] = config
  return made


def test_act_is_measured_for_every_prefix(configs):
  figures = importlib.import_module("oat_jax.bench.act").run(configs)
  for rows in (1, 64):
    for K in (1, 2, 4, 8):
      for clock_name in ("wall", "cpu"):
        assert figures.pop(f"act_k{K}_batch{rows}_{clock_name}_ms") > 0
    assert figures.pop(f"act_k1_over_k8_batch{rows}_cpu_ratio") > 0
  assert not figures


def test_a_train_step_is_measured_at_both_sizes(configs):
  figures = importlib.import_module("oat_jax.bench.train").run(configs)
  for kind in ("tokenizer", "policy"):
    for size in ("mt4", "published"):
      assert figures.pop(f"train_{kind}_{size}_batch_rows") == 8
      assert figures.pop(f"train_{kind}_{size}_steps_per_wall_s") > 0
      assert figures.pop(f"train_{kind}_{size}_cpu_s_per_step") > 0
  assert not figures


def test_the_command_writes_flat_json_with_machine_and_versions(tmp_path):
  out = tmp_path / "bench" / "data.json"
  flags = [f"--out={out}", "--cores=1", "--scale=0.02"]
  code, printed, err = tiny.command("launch/benchmark.py", "data", *flags)
  assert code == 0, err
  content = json.loads(out.read_text())
  assert all(isinstance(value, str | int | float) for value in content.values())
  assert content["section"] == "data" and content["cores"] == "1"
  assert content["data_batch64_threads0_windows_per_wall_s"] > 100
  assert content["data_index_images_steps"] == 400
  assert 0 < content["data_images_share_of_decoder"] < 2
  assert content["calibration_matmul1024_cpu_ms"] > 0 and content["version_jax"]
  assert "data_gather_batch256_windows_per_cpu_s" in printed


def test_cores_that_are_not_there():
  count = len(os.sched_getaffinity(0))
  with pytest.raises(ValueError, match=f"--cores={count + 1}: this process may use 1..{count}"):
    clock.pin(count + 1)
  assert len(os.sched_getaffinity(0)) == count


def test_a_cost_is_the_mean_over_its_repeats():
  calls = []
  measured = clock.cost(lambda: calls.append(sum(range(10**5))), repeats=4, warm_up=3)
  assert len(calls) == 7
  assert 0 < measured.cpu_s < 1 and 0 < measured.wall_s < 1
