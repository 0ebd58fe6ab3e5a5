"""The shipped Bridge config trains on real BridgeData V2 episodes, through the real command."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny

from oat_jax.train import models

BRIDGE = tiny.ROOT.parent / "shared" / "data" / "bridge_dataset"


@pytest.mark.skipif(not BRIDGE.exists(), reason=f"the real episodes are not there: {BRIDGE}")
def test_the_bridge_config_trains_on_real_episodes(tmp_path):
  workdir = tmp_path / "run"
  command = [
    sys.executable,
    str(tiny.ROOT / "launch" / "train.py"),
    f"--config={tiny.ROOT / 'configs' / 'tokenizer_oat.py'}:bridge",
    f"--config.data.path={BRIDGE}",
    f"--workdir={workdir}",
    "--config.steps=30",
    "--config.evaluate_every=15",
    "--config.log_every=1",
  ]
  run = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  losses = [row["train/loss"] for row in rows if "train/loss" in row]
  assert len(losses) == 30 and np.mean(losses[-5:]) < np.mean(losses[:5])
  held_out = [row for row in rows if "validation/mse_1" in row]
  assert [row["step"] for row in held_out] == [15, 30]
  assert all(np.isfinite(held_out[-1][f"validation/mse_{K}"]) for K in range(1, 9))

  trained = models.load(workdir)
  assert (trained.spec.action_horizon, trained.spec.action_dim) == (8, 7)
  statistics = trained.params["statistics"]
  chunk_BCA = np.broadcast_to(statistics["mean"][:, None], (1, 8, 7))
  tokens_BN = trained.model.encode(trained.params, chunk_BCA)
  for K in (1, 8):
    decoded_BCA = np.asarray(trained.model.decode(trained.params, tokens_BN, K))
    assert (decoded_BCA >= statistics["min"] - 1e-6).all()
    assert (decoded_BCA <= statistics["max"] + 1e-6).all()
