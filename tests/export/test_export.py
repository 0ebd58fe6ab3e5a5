"""An export acts, encodes and decodes as the run did, alone, and in numpy."""

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys

from exports import alone
from exports import change
from exports import observation
from exports import WITHOUT_TRAINING
import numpy as np
import pytest
import safetensors.numpy
import tiny

from oat_jax import batch as batch_lib
import oat_jax.export
from oat_jax.export import directory
from oat_jax.export import exporter
from oat_jax.export import loader
from oat_jax.policies import anytime
from oat_jax.policies import policy as policy_lib
from oat_jax.train import loop
from oat_jax.train import models


def test_an_export_acts_as_the_run_does(policy_workdir, loaded):
  trained = models.load(policy_workdir)
  sampling = policy_lib.Sampling(1.0, 10)
  own = anytime.Anytime(trained.model, trained.params, sampling=sampling)
  for B in (1, 3):
    seen = batch_lib.fake(trained.spec, B, seed=B)
    seen["observation_mask"][:] = True
    given = {"state": seen["observation"]["state"], "task": seen["observation"]["task"]}
    for K in (1, 3, 8):
      for seed in (0, 7):
        wanted_BCA, info = own.act(seen, num_tokens=K, call=seed)
        found_BCA, got = loaded.act(given, num_tokens=K, seed=seed)
        np.testing.assert_array_equal(got["tokens_BN"], info["tokens_BN"])
        np.testing.assert_array_equal(found_BCA[:, 0], wanted_BCA[:, 0])  # the rate limits others
        np.testing.assert_array_equal(got["num_tokens"], np.full(B, K))


def test_draws_follow_the_seed(loaded):
  draw = lambda **seed: loaded.act(observation(), **seed)[1]["tokens_BN"].tolist()
  assert draw(seed=3) == draw(seed=3) != draw(seed=4)
  assert draw() != draw()


def test_tokens_are_encoded_and_decoded_as_by_the_tokenizer(tokenizer_workdir, loaded, tmp_path):
  trained = models.load(tokenizer_workdir)
  exporter.export(tokenizer_workdir, tmp_path / "tokenizer")
  alone = oat_jax.export.load(tmp_path / "tokenizer")
  assert not isinstance(alone, loader.ExportedPolicy) and alone.spec.kind == "tokenizer"
  assert all(row.passed for row in alone.check())
  chunks_BCA = batch_lib.fake(trained.spec, 3)["actions"]
  wanted_BN = np.asarray(trained.tokenizer.encode(trained.params, chunks_BCA))
  for each in (alone, loaded):
    np.testing.assert_array_equal(each.encode(chunks_BCA), wanted_BN)
    for K in (1, 8):
      wanted_BCA = trained.tokenizer.decode(trained.params, wanted_BN, K)
      np.testing.assert_array_equal(each.decode(wanted_BN, K), wanted_BCA)
  with pytest.raises(ValueError, match="num_tokens is 9; it must be in 1..8"):
    alone.decode(wanted_BN, 9)
  with pytest.raises(ValueError, match=r"token 1000 at \[row, position\] \[1, 0\] is outside"):
    alone.decode(np.where(np.eye(3, 8, -1, dtype=bool), 1000, wanted_BN))
  with pytest.raises(ValueError, match=r"expected \[B, 8, 3\]"):
    alone.encode(chunks_BCA[:, :4])


def test_the_directory_says_what_is_in_it(export, loaded, policy_workdir):
  spec, batch = loaded.spec, loaded.spec.batch
  assert (spec.kind, spec.name, batch.action_horizon, batch.task_names) == (
    *("policy", "autoregressive", 8),
    ("lift", "push"),
  )
  assert spec.observation["state"] == {"dtype": "float32", "shape": ["B", 2, 5]}
  assert spec.observation["task"]["range"] == [0, 1] and spec.state == ("observation/state",)
  assert spec.tokens["max_tokens"] == 8 and spec.tokens["budgets"] == list(range(1, 9))
  assert spec.sampling == {"temperature": 1.0, "top_k": 10}
  assert set(spec.functions) == {"act", "act_until", "encode", "decode"}
  for about in spec.functions.values():
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert (export / about["file"]).stat().st_size < 1e6
  trained = models.load(policy_workdir)
  assert spec.checkpoint["digest"] == models.digest(trained) and spec.checkpoint["step"] == 2
  known = trained.params["tokenizer"]["statistics"]
  np.testing.assert_array_equal(np.float32(spec.statistics["actions"]["q99"]), known["q99"])
  np.testing.assert_array_equal(np.float32(spec.limits["high"]), known["max"].max(0))
  actions_LA = trained_actions(trained)
  np.testing.assert_allclose(spec.limits["rate"], actions_LA.max(0), rtol=1e-5)
  assert np.shape(spec.statistics["state"]["mean"]) == (1, 5)
  assert set(spec.tolerances) == {str(K) for K in range(1, 8)}
  arrays = safetensors.numpy.load_file(export / "params.safetensors")
  assert {name: [str(x.dtype), list(x.shape)] for name, x in arrays.items()} == spec.arrays
  card = (export / "README.md").read_text()
  held_out = tiny.metrics(policy_workdir)[-1]["validation/chunk_mse_8"]
  for part in ("step 2 of 2", "lift, push", f"| chunk_mse_8 | {held_out:.4g} |", "float32 (5,)"):
    assert part.lower() in card.lower(), part


def trained_actions(trained):
  """Returns the changes of actions from step to step of all training episodes."""
  from oat_jax.train import inputs

  windows = inputs.load(trained.config.data).train
  chunks = windows(np.arange(len(windows)))
  changes_BCA = np.abs(np.diff(chunks["actions"], axis=1))
  return changes_BCA[chunks["action_mask"][:, 1:]]


def test_the_self_test_passes_bit_for_bit_and_finds_other_parameters(export, copy, capsys):
  assert loader.main([str(export), "--check"]) == 0
  printed = capsys.readouterr().out
  assert printed.count("bit for bit") == printed.count("ok  ") == 3 + 1 + 6 + 1
  arrays = dict(safetensors.numpy.load_file(copy / "params.safetensors"))
  name = next(name for name in arrays if name.endswith("decoder/to_actions/w"))
  arrays[name] = arrays[name] + 0.1
  data = safetensors.numpy.save(arrays)
  (copy / "params.safetensors").write_bytes(data)
  sha256 = json.loads((copy / "spec.json").read_text())["sha256"]
  change(copy, sha256=sha256 | {"params.safetensors": directory.parameters.sha256(data)})
  assert loader.main([str(copy), "--check"]) == 1
  out, err = capsys.readouterr()
  assert "FAILED  decode, K=8: off by" in out and "self-test failed: decode, K=1" in err


def test_the_best_step_is_exported(policy_workdir, tmp_path):
  """Where the first of two steps is the better one."""
  copied = tmp_path / "run"
  shutil.copytree(policy_workdir, copied)
  rows = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
  for row in rows:
    if "validation/chunk_mse_8" in row:
      row["validation/chunk_mse_8"] = float(row["step"])
  (copied / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  spec = exporter.export(copied, tmp_path / "best", step="best")
  assert spec.checkpoint["step"] == 1
  assert exporter.export(copied, tmp_path / "newest").checkpoint["step"] == 2


def test_bfloat16_halves_the_network_and_leaves_statistics(policy_workdir, export, tmp_path):
  spec = exporter.export(policy_workdir, tmp_path / "small", dtype="bfloat16")
  whole = directory.read(export).spec.arrays
  assert whole.keys() == spec.arrays.keys()
  for name, (dtype, shape) in spec.arrays.items():
    expected = "bfloat16" if "network/" in name and whole[name][0] == "float32" else whole[name][0]
    assert (dtype, shape) == (expected, whole[name][1]), name
  small = oat_jax.export.load(tmp_path / "small")
  assert all(row.passed for row in small.check())
  chunk_CA, _ = small.act(observation(), num_tokens=8)
  assert chunk_CA.shape == (8, 3) and np.isfinite(chunk_CA).all()


@pytest.mark.parametrize("where", ["gone", "others", "remote"])
def test_without_the_data_there_is_neither_rate_nor_tolerance(
  where, policy_workdir, tmp_path, capsys
):
  moved = tmp_path / "moved"
  shutil.copytree(policy_workdir, moved)
  content = json.loads((moved / "config.json").read_text())
  paths = {"gone": tmp_path / "gone", "others": tmp_path / "others", "remote": "gs://none/data"}
  content["config"]["data"]["path"] = str(paths[where])
  (moved / "config.json").write_text(json.dumps(content))
  tiny.write_dataset(tmp_path / "others", seed=7)
  spec = exporter.export(moved, tmp_path / "out")
  assert spec.limits["rate"] is None and spec.tolerances == {}
  printed = capsys.readouterr().out
  why = {"gone": "gone", "others": "they are others by now", "remote": "is not on this machine"}
  assert "without the run's data there is no rate" in printed and why[where] in printed
  assert all(row.passed for row in oat_jax.export.load(tmp_path / "out").check())
  assert "not known" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["regression", "diffusion"])
def test_policies_without_tokens_are_exported(name, dataset, tmp_path):
  loop.train(tiny.run_config(name, dataset, steps=1), tmp_path / "run")
  exporter.export(tmp_path / "run", tmp_path / "out")
  policy = oat_jax.export.load(tmp_path / "out")
  assert set(policy.spec.functions) == {"act"} and policy.spec.tokens is None
  assert all(row.passed for row in policy.check()) and policy.max_tokens == 1
  assert policy.act(observation())[0].shape == (8, 3)
  with pytest.raises(ValueError, match=f"'{name}' has no tokens to decode"):
    policy.decode(np.zeros((1, 1), np.int32))
  with pytest.raises(ValueError, match="has no exported encode: it has no tokens"):
    policy.encode(np.zeros((1, 8, 3)))


def test_deadlines_and_early_ends(loaded):
  _, info = loaded.act(observation(), deadline_ms=1e4)
  assert info["num_tokens"] == 8 and info["deadline_met"]
  _, info = loaded.act(observation(), deadline_ms=1e-6)
  assert info["num_tokens"] == 1 and not info["deadline_met"]
  many = observation(B=64)
  spent = {K: loaded.act(many, mean_tokens=K)[1]["num_tokens"].mean() for K in (1, 7)}
  assert 1 <= spent[1] <= spent[7] <= 8
  with pytest.raises(ValueError, match="mean_tokens is 8; the export knows tolerances for"):
    loaded.act(observation(), mean_tokens=8)
  measured = loaded.measure(batch_size=2, repeats=2)
  assert set(measured) == set(range(1, 9)) and all(ms > 0 for ms in measured.values())


def test_any_layout_of_an_observation_will_do(loaded):
  """Fewer moments, another byte order, a strided view: the same chunk."""
  seen = observation()
  chunk_CA, _ = loaded.act(seen, seed=0)
  wide = np.zeros((2, 10), np.float32)
  wide[:, ::2] = seen["state"]
  for state in (seen["state"].astype(">f4"), wide[:, ::2], seen["state"].astype(float)):
    np.testing.assert_array_equal(loaded.act(seen | {"state": state}, seed=0)[0], chunk_CA)
  batched_BCA, _ = loaded.act(seen | {"state": seen["state"][None], "task": [1]}, seed=0)
  np.testing.assert_array_equal(batched_BCA, chunk_CA[None])
  last = {"state": seen["state"][-1], "task": 1}
  masked = seen | {"state": seen["state"][[1, 1]], "observation_mask": np.array([False, True])}
  np.testing.assert_array_equal(loaded.act(last, seed=0)[0], loaded.act(masked, seed=0)[0])
  both, one = (
    [loaded.act(each, seed=s)[1]["tokens_BN"].tolist() for s in range(20)] for each in (seen, last)
  )
  assert both != one  # the moment before counts where it is given


def test_the_limits_of_the_spec_hold(copy, loaded):
  wide = loaded.act(observation(), seed=0)[0]
  change(copy, limits={"low": [-0.01] * 3, "high": [0.02] * 3, "rate": [0.001] * 3})
  narrow = oat_jax.export.load(copy).act(observation(), seed=0, last_action=np.zeros(3))[0]
  assert np.abs(wide).max() > 0.02
  assert narrow.min() >= np.float32(-0.01) and narrow.max() <= np.float32(0.02)
  steps = np.diff(np.concatenate([np.zeros((1, 3)), narrow]), axis=0)
  assert np.abs(steps).max() <= 0.001 + 1e-6


def test_evaluating_an_export_needs_none_of_the_training_packages(export, loaded):
  code = """
from oat_jax.evaluate import exported, run
who = exported.Exported(sys.argv[1])
window, *_ = who.windows(1, stop=False)
print(who.act(window, num_tokens=4).actions_BCA.tolist())
assert not {"matplotlib", "cv2", "tokenizers"} & set(sys.modules)
"""
  run = alone(code, export)
  assert run.returncode == 0, run.stderr
  batch = loaded.samples()
  seen = {"state": batch["observation"]["state"][0], "task": int(batch["observation"]["task"][0])}
  mask_T = batch["observation_mask"][0]
  wanted_CA, _ = loaded.act(seen | {"observation_mask": mask_T}, num_tokens=4, seed=0)
  np.testing.assert_allclose(ast.literal_eval(run.stdout)[0], wanted_CA, rtol=0, atol=1e-6)


def test_an_export_needs_none_of_the_training_packages(export, loaded):
  code = """
import json, numpy as np, oat_jax.export
policy = oat_jax.export.load(sys.argv[1])
assert all(row.passed for row in policy.check())
seen = {"state": np.arange(5.0), "task": "lift"}
chunk_CA, info = policy.act(seen, num_tokens=4, seed=1)
tokens_BN = policy.encode(chunk_CA[None])
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps([chunk_CA.tolist(), tokens_BN.tolist(), loaded]))
"""
  run = alone(code, export)
  assert run.returncode == 0, run.stderr
  chunk_CA, tokens_BN, names = json.loads(run.stdout)
  seen = {"state": np.arange(5.0), "task": "lift"}
  wanted_CA, _ = loaded.act(seen, num_tokens=4, seed=1)
  np.testing.assert_array_equal(np.float32(chunk_CA), wanted_CA)
  np.testing.assert_array_equal(tokens_BN, loaded.encode(wanted_CA[None]))
  assert not set(names) & {*WITHOUT_TRAINING, "matplotlib", "cv2", "tokenizers", "tqdm"}


def test_a_decoder_in_plain_numpy(policy_workdir, loaded, tmp_path):
  out = tmp_path / "numpy"
  arguments = [f"--workdir={policy_workdir}", f"--out={out}", "--format=numpy"]
  code, _, err = tiny.command("launch/export.py", *arguments)
  assert code == 0, err
  tokens_BN = np.random.default_rng(1).integers(0, 1000, (3, 8), np.int32)
  np.save(tmp_path / "tokens.npy", tokens_BN)
  code = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import decode
decoder = decode.Decoder(sys.argv[1])
chunks_BCA = decoder(np.load(sys.argv[2]), num_tokens=3)
assert not {"jax", "flax", "oat_jax", "safetensors"} & set(sys.modules)
for wrong in (np.zeros((1, 7), int), np.full((1, 8), 1000), np.zeros((1, 8))):
  try:
    decoder(wrong)
  except ValueError as error:
    continue
  raise AssertionError(wrong)
print(json.dumps([chunks_BCA.tolist(), decode.check(sys.argv[1])]))
"""
  arguments = [sys.executable, "-c", code, str(out), str(tmp_path / "tokens.npy")]
  run = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=bare())
  assert run.returncode == 0, run.stderr
  chunks_BCA, worst = json.loads(run.stdout)
  np.testing.assert_allclose(chunks_BCA, loaded.decode(tokens_BN, 3), rtol=0, atol=1e-5)
  assert worst < 1e-5


def bare():
  """A process's variables without this checkout."""
  return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_every_field_of_a_spec_is_read_back(export):
  content = directory.read(export)
  fields = {field.name for field in dataclasses.fields(directory.Spec)}
  assert set(json.loads((export / "spec.json").read_text())) == fields | {"format_version"}
  assert content.spec.batch.task_names == ("lift", "push")
