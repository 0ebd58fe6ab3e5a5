"""A run that is killed ends as one that is not; what would differ is seen."""

import numpy as np
import tiny

from oat_jax.bench import faults
from oat_jax.train import checkpoint


def test_a_run_that_is_killed_twice_ends_as_one_left_alone(monkeypatch):
  monkeypatch.setattr(faults, "KILLS", 2)
  monkeypatch.setattr(faults, "STEPS", 160)
  figures = faults.run({"tokenizer_mt4": tiny.get_config("tokenizer_oat.py", "mt4")})
  assert figures["faults_kills"] == 2 and figures["faults_restarts"] == 3
  assert figures["faults_restarts_at_the_newest_checkpoint"] == 3
  assert 0 <= figures["faults_steps_repeated_mean"] <= 160
  assert figures["faults_final_parameters_equal"] == 1


def test_one_bit_makes_parameters_unequal(monkeypatch):
  zeros = np.zeros(3, np.float32)
  ends = {"whole": (4, {"w": zeros}), "killed": (4, {"w": zeros.copy()})}
  monkeypatch.setattr(checkpoint, "load_params", ends.get)
  assert faults._bits("whole") == faults._bits("killed")
  ends["killed"][1]["w"][1] = -0.0
  assert faults._bits("whole") != faults._bits("killed")
  ends["killed"] = (3, {"w": zeros})
  assert faults._bits("whole") != faults._bits("killed")
