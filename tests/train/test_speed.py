"""What is said of a run's speed: rates, FLOPs against the devices' peak, memory, traces."""

import json

import jax
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.cost import chips
from oat_jax.cost import flops
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.train import loop
from oat_jax.train import optimizer
from oat_jax.train import speed
from oat_jax.train import state as state_lib
from oat_jax.train import step as step_lib


def of(**changes):
  step = speed.Step(
    run=lambda state, batch: (state, {}), windows=64, tokens=8, model_flops=3e9,
    compiled_flops=4e9, peak_flops=1e12,
  )  # fmt: skip
  return step._replace(**changes).values(50.0)


def test_rates_and_shares_of_the_peak_are_of_steps_a_second():
  found = of()
  assert found["steps_per_s"] == 50 and found["windows_per_s"] == 3200
  assert found["tokens_per_s"] == 25_600
  assert found["tflops_per_s"] == pytest.approx(0.15) and found["mfu"] == pytest.approx(0.15)
  assert found["mfu_compiled"] == pytest.approx(0.2)
  assert 0.05 < found["host_memory_gb"] < 100


def test_what_is_not_known_is_not_said():
  assert "tokens_per_s" not in of(tokens=1)
  assert not [name for name in of(peak_flops=None) if name.startswith("mfu")]
  assert "tflops_per_s_compiled" not in of(compiled_flops=None)


def test_peaks_are_known_by_what_jax_calls_a_device():
  assert chips.peak_flops("TPU v5 lite") == 197e12 and chips.peak_flops("TPU v5p") == 459e12
  assert chips.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
  assert chips.peak_flops("cpu") is None


def test_a_step_costs_three_forward_passes_and_its_program_about_as_much():
  model, mesh = tiny.tokenizer(), tiny.mesh(1, 1, 1)
  config = tiny.optimizer_config()
  tx = optimizer.make(config, 10)
  state, shardings = state_lib.create(lambda: model.init(jax.random.key(0)), model.axes(), tx, mesh)
  jitted = step_lib.compile_train_step(model.loss, tx, config, 0, mesh, shardings)
  batch = jax.device_put(batch_lib.fake(tiny.spec(), 16), mesh_lib.batch_sharding(mesh))
  one = speed.compile_step(jitted, model, state, batch, 1, 16)
  two = speed.compile_step(jitted, model, state, batch, 2, 16)
  forward = flops.forward(lambda p, b: model.loss(p, b, jax.random.key(0))[0], state.params, batch)
  assert one.model_flops == pytest.approx(3 * forward) and two.model_flops == one.model_flops / 2
  assert one.compiled_flops == pytest.approx(one.model_flops, rel=0.2)
  assert one.tokens == model.max_tokens and one.peak_flops is None  # a CPU
  _, metrics = one.run(state, batch)
  assert metrics["loss"].shape == ()


def test_a_run_logs_its_speed_and_traces_steps_on_request(dataset, tmp_path, capsys):
  config = tiny.run_config("tokenizer", dataset, steps=14, log_every=7, save_every=14)
  loop.train(config, tmp_path / "run", profile=2)
  rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  row = next(row for row in rows if row["step"] == 14 and "train/loss" in row)
  for name in ("steps_per_s", "windows_per_s", "tokens_per_s", "tflops_per_s", "input_wait",
               "save_seconds", "grad_norm", "update_norm", "host_memory_gb"):  # fmt: skip
    assert row[f"train/{name}"] >= 0
  assert row["train/windows_per_s"] == pytest.approx(16 * row["train/steps_per_s"])
  assert "trace of steps 10 to 11" in capsys.readouterr().out
  assert [path for path in (tmp_path / "run/profile").rglob("*.xplane.pb")]
