"""SIGTERM through the real command: it says so, and the same command ends as if never stopped."""

import signal

import jax
import tiny

from oat_jax.train import checkpoint


def test_a_terminated_run_goes_on_bit_for_bit(dataset, tmp_path):
  values = tiny.run_values(
    "tokenizer",
    dataset,
    steps=120,
    log_every=5,
    evaluate_every=60,
    save_every=40,
    model={"dropout": 0.3},
    optimizer={"schedule": "cosine"},
  )
  whole, parts = (tiny.arguments(values, tmp_path / name) for name in ("whole", "parts"))
  uninterrupted = tiny.start("launch/train.py", *whole)
  stopped = tiny.start("launch/train.py", *parts)
  for line in stopped.stdout:
    if line.startswith("["):
      break
  stopped.send_signal(signal.SIGTERM)
  code, _, err = tiny.finish(stopped)
  assert code == 130, err
  assert len(err.splitlines()) == 1 and "stopped by a signal at step" in err and "saved" in err
  step = tiny.metrics(tmp_path / "parts")[-1]["step"]
  assert f"at step {step};" in err and 5 <= step < 120
  assert (tmp_path / "parts" / "checkpoints" / str(step)).is_dir()

  code, out, err = tiny.command("launch/train.py", *parts)
  assert code == 0, err
  assert f"resuming {tmp_path / 'parts'} at step {step}" in out
  code, _, err = tiny.finish(uninterrupted)
  assert code == 0, err

  ends = [checkpoint.load_params(tmp_path / name) for name in ("whole", "parts")]
  assert ends[0][0] == ends[1][0] == 120
  assert tiny.to_bits(ends[0][1]) == tiny.to_bits(ends[1][1])
  assert len(jax.tree.leaves(ends[0][1])) > 20
  rows = tiny.metrics(tmp_path / "whole")
  # The stopped run logged the step that it was stopped at, wherever that was.
  also = [row for row in tiny.metrics(tmp_path / "parts") if row["step"] % 5 == 0]
  assert rows == also
