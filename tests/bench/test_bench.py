"""Sections of the benchmark: what they name, and that they measure."""

import functools
import importlib
import json
import os
import sys

import pytest
import tiny

from oat_jax.bench import clock
from oat_jax.bench import models
from oat_jax.train.config import freeze

SIZES = {"width": 32, "head_width": 16, "mlp_ratio": 2, "observation": tiny.OBSERVATION}
OAT = {"encoder_layers": 1, "decoder_layers": 1, "shortcut": 0, "patch": 1}
LAYERS = {"tokenizer_oat": OAT, "policy_oat": {"layers": 1}, "policy_diffusion": {"layers": 1}}


@pytest.fixture(scope="module")
def configs():
  """The shipped ones, smaller. Only dropout tells sizes apart: what they share compiles once."""
  made = {}
  for name, layers in LAYERS.items():
    for size in ("mt4", "published"):
      config = tiny.get_config(f"{name}.py", "mt4")
      config.batch_size = 8
      dropout = tiny.get_config(f"{name}.py", size).model.dropout
      sizes = SIZES | layers | {"dropout": dropout}
      config.model.update({key: value for key, value in sizes.items() if key in config.model})
      made[f"{name.removesuffix('_oat')}_{size}"] = config
  return made


@pytest.fixture
def one_round(monkeypatch):
  monkeypatch.setattr(clock, "typical_costs", functools.partial(clock.typical_costs, rounds=1))


def test_act_is_measured_for_every_prefix_and_for_diffusion(configs, monkeypatch, one_round):
  act = importlib.import_module("oat_jax.bench.act")
  assert set(act.CALLS) == {"mt4", "published"}
  monkeypatch.setattr(act, "CALLS", {"mt4": {1: 2, 3: 1}, "published": {1: 2}})
  figures = act.run(configs)
  for size, rows, tokenizers in (
    ("mt4", 1, ("",)),
    ("mt4", 3, ("",)),
    ("published", 1, ("", "patch4_")),
  ):
    acts = [f"{name}k{K}" for name in tokenizers for K in (1, 2, 4, 8)]
    for call in (*acts, "diffusion"):
      for clock_name in ("wall", "cpu"):
        assert figures.pop(f"act_{size}_{call}_batch{rows}_{clock_name}_ms") > 0
    for name in tokenizers:
      assert figures.pop(f"act_{size}_{name}k1_over_k8_batch{rows}_cpu_ratio") > 0
  assert not figures


def test_a_train_step_is_measured_at_both_sizes(configs, monkeypatch):
  train = importlib.import_module("oat_jax.bench.train")
  monkeypatch.setattr(train, "REPEATS", dict.fromkeys(train.REPEATS, 1))
  figures = train.run(configs)
  for kind in ("tokenizer", "policy"):
    for size in ("mt4", "published"):
      assert figures.pop(f"train_{kind}_{size}_batch_rows") == 8
      assert figures.pop(f"train_{kind}_{size}_steps_per_wall_s") > 0
      assert figures.pop(f"train_{kind}_{size}_cpu_s_per_step") > 0
    for name in ("arrays", "dispatch_wall_ms", "dispatch_floor_wall_ms", "save_wall_ms"):
      assert figures.pop(f"train_{kind}_mt4_{name}") > 0
  assert not figures


def test_a_tokenizer_that_updates_more_than_gradients_do_is_measured(configs):
  train = importlib.import_module("oat_jax.bench.train")
  model = {"name": "vq", "codes": 16, "latent": 8, "width": 32, "layers": 1}
  config = freeze(dict(configs["tokenizer_mt4"]) | {"model": model})
  step = train.Step(config, *models.tokenizer(model))
  assert step()["codes_in_batch"] == 1 < step()["codes_in_batch"]  # the codebook moves


def test_encoding_and_decoding_are_measured_by_prefix(configs):
  figures = importlib.import_module("oat_jax.bench.tokenizers").run(configs, 0.01)
  for size in ("mt4", "published"):
    name = f"tokenizer_{size}"
    calls = ("encode", *(f"decode_k{K}" for K in (1, 2, 4, 8)))
    assert all(figures.pop(f"{name}_{call}_wall_ms") > 0 for call in calls)
    costs = {call: figures.pop(f"{name}_{call}_cpu_ms") for call in calls}
    assert min(costs.values()) > 0
    both = figures.pop(f"{name}_encode_and_decode_cpu_ms")
    assert both == pytest.approx(costs["encode"] + costs["decode_k8"])
    per_s = [figures.pop(f"{name}_encode_batch{rows}_chunks_per_cpu_s") for rows in (1, 41)]
    flops = [figures.pop(f"{name}_encode_batch{rows}_gflop_per_cpu_s") for rows in (1, 41)]
    ratio = figures.pop(f"{name}_encode_batch41_over_batch1_rate")
    assert per_s[0] == pytest.approx(1e3 / costs["encode"])
    assert ratio == pytest.approx(per_s[1] / per_s[0]) == flops[1] / flops[0]
  assert not figures


def peer(tmp_path, configs, **settings):
  """Runs the section against a checkout that holds the one file that is looked for."""
  section = importlib.import_module("oat_jax.bench.peer")
  file = tmp_path / "checkout" / section.TOKENIZER
  file.parent.mkdir(parents=True, exist_ok=True)
  file.touch()
  return section.run(configs, **({"checkout": str(tmp_path / "checkout")} | settings))


def script(tmp_path, text):
  """An interpreter of its own kind: it is given a program and its arguments, as python is."""
  file = tmp_path / "python"
  file.write_text(text)
  file.chmod(0o755)
  return str(file)


FAKE_PEER = """#!{python}
import json, sys
settings = json.loads(sys.argv[3])
assert settings["batch"] == 8 and settings["width"] == 32 and settings["dropouts"] == [0.1, 0.0]
assert settings["state_dim"] == 39 and settings["policy_layers"] == 1
facts = {{"version": "0.0", "threads": settings["threads"]}}
print(json.dumps(facts | {{"parameters": {{"tokenizer": 7, "policy": 8}}}}), flush=True)
for line in sys.stdin:
  kind, dropout, steps = line.split()
  seconds = int(steps) * (1000 if dropout == "0.0" else 2000) * (3 if kind == "policy" else 1)
  print(json.dumps({{"cpu_s": 2 * seconds, "wall_s": seconds}}), flush=True)
"""


def test_the_peer_takes_turns_with_our_training_step(tmp_path, configs, monkeypatch):
  monkeypatch.setattr("oat_jax.bench.peer.WARM_UP", 1)
  python = script(tmp_path, FAKE_PEER.format(python=sys.executable))
  figures = peer(tmp_path, configs, python=python, scale=0.2)
  assert figures["peer_batch_rows"] == 8 and figures["peer_torch_version"] == "0.0"
  for kind, count in (("tokenizer", 7), ("policy", 8)):
    assert figures[f"peer_{kind}_theirs_parameters"] == count
    assert figures[f"peer_{kind}_ours_parameters"] > 1000
  for kind, dropout, theirs in (
    ("tokenizer", 0.1, 2000),
    ("tokenizer", 0, 1000),
    ("policy", 0.1, 6000),
    ("policy", 0, 3000),
  ):
    name = f"peer_{kind}_dropout{dropout}"
    for unit, wanted in (("wall", theirs), ("cpu", 2 * theirs)):
      assert figures[f"{name}_theirs_{unit}_s_per_step"] == wanted
      ours = figures[f"{name}_ours_{unit}_s_per_step"]
      assert 0 < ours < 60
      assert figures[f"{name}_speed_up_{unit}"] == pytest.approx(wanted / ours)


@pytest.mark.parametrize(
  ("text", "why"),
  [
    ('#!/bin/sh\nexec {python} -S "$@"\n', "ModuleNotFoundError: No module named 'torch'"),
    ("#!/bin/sh\nexit 3\n", "it ended with code 3"),
    # Between the answer that it has started and the first turn.
    ("#!/bin/sh\necho '{facts}'; exec <&-; sleep 0.2; exit 4\n", "it ended with code 4"),
    ("#!/no/such/interpreter\n", "No such file or directory"),
  ],
)
def test_an_interpreter_that_cannot_run_the_peer_is_passed_over(tmp_path, configs, text, why):
  parameters = {"tokenizer": 7, "policy": 8}
  facts = json.dumps({"version": "0.0", "threads": 1, "parameters": parameters})
  python = script(tmp_path, text.format(python=sys.executable, facts=facts))
  assert why in peer(tmp_path, configs, python=python)["peer_passed_over"]


def test_the_peer_is_passed_over_where_there_is_none(tmp_path, configs):
  passed_over = lambda **given: peer(tmp_path, configs, **given)["peer_passed_over"]
  for given in ({"checkout": None, "python": sys.executable}, {}):
    assert "--peer names no checkout" in passed_over(**given)
  wanted = f"--peer={tmp_path} has no oat/tokenizer/oat/tokenizer.py"
  assert passed_over(checkout=str(tmp_path), python=sys.executable) == wanted


def test_the_command_without_a_peer_says_so_and_is_content(tmp_path):
  out = tmp_path / "peer.json"
  code, printed, err = tiny.command("launch/benchmark.py", "peer", f"--out={out}")
  assert code == 0, err
  why = json.loads(out.read_text())["peer_passed_over"]
  assert why in printed and "--peer_python" in why


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


def test_a_served_export_is_measured(policy_export, monkeypatch):
  pytest.importorskip("websockets", reason="the extra `serve` is not installed")
  serve = importlib.import_module("oat_jax.bench.serve")
  for name, value in (("REQUESTS", 20), ("MANY", 2), ("SOAK_S", 4.0), ("SOAK_RATE", 80.0)):
    monkeypatch.setattr(serve, name, value)
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  figures = serve.run({}, 1.0, str(policy_export))
  assert figures.pop("serve_soak_errors") == 0 and figures.pop("serve_soak_died") >= 0
  assert figures.pop("serve_soak_requests") > 20 and figures.pop("serve_soak_memory_growth") > -0.9
  assert {name for name in figures if "client" in name} == {
    *("serve_1_client_p50_ms", "serve_1_client_p95_ms", "serve_1_client_p50_over_act"),
    *("serve_1_client_per_s", "serve_2_clients_per_s", "serve_2_clients_over_1"),
    "serve_2_clients_p95_ms",
  }
  assert all(value > 0 for value in figures.values())
  with pytest.raises(ValueError, match="serve needs --export=DIR"):
    serve.run({})
