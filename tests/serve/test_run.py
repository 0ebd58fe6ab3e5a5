"""The command that serves: what it refuses to do, and that it begins and ends as it says."""

import re
import signal
import time
import urllib.request

import numpy as np
import pytest
import tiny

from oat_jax.serve import run
from oat_jax.serve import wire

client = pytest.importorskip("websockets.sync.client", reason="the extra `serve` is not installed")


def refused(capsys, *arguments):
  assert run.main(list(map(str, arguments))) == 1
  out, err = capsys.readouterr()
  assert len(err.splitlines()) == 1 and "compiling" not in out
  return err


def test_other_machines_need_a_token(policy_export, tmp_path, capsys):
  export = f"--export={policy_export}"
  for host in ("0.0.0.0", "::", "192.0.2.1", "robot.example"):
    assert "give --token-file=FILE" in refused(capsys, export, f"--host={host}")
  token = tmp_path / "token"
  for text in ("", "short", "with spaces in it, and long", "ü" * 20):
    token.write_text(text)
    assert "holds no token" in refused(capsys, export, f"--token-file={token}")
  assert "No such file" in refused(capsys, export, f"--token-file={tmp_path / 'none'}")


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--max-batch=0", "--max-batch is 0; 1 is the least"),
    ("--max-clients=0", "--max-clients is 0"),
    ("--deadline-ms=0", "--deadline-ms is 0.0; it must be above 0"),
    ("--window-ms=-1", "--window-ms is -1.0; it must not be negative"),
    ("--replan=9", "--replan is 9; it must be in 1..8, a chunk's steps"),
    ("--keymap=nope", "there is no keymap 'nope'; ready ones are aloha, droid, "),
  ],
)
def test_a_setting_that_cannot_be_is_refused(flag, message, policy_export, capsys):
  assert message in refused(capsys, f"--export={policy_export}", flag)


def test_what_is_no_policy_is_not_served(tokenizer_workdir, tmp_path, capsys):
  from oat_jax.export import exporter

  assert "is no export: it has no spec.json" in refused(capsys, f"--export={tmp_path}")
  exporter.export(tokenizer_workdir, tmp_path / "tokenizer")
  assert "holds a tokenizer; only policies act" in refused(
    capsys, f"--export={tmp_path / 'tokenizer'}"
  )


def test_the_command_serves_until_it_is_told_to_stop(policy_export, tmp_path):
  token = tmp_path / "token"
  token.write_text("0123456789abcdef\n")
  flags = [f"--export={policy_export}", "--port=0", "--grpc-port=0", "--max-batch=2"]
  process = tiny.start("launch/serve.py", *flags, f"--token-file={token}")
  try:
    lines = []
    for line in process.stdout:
      lines.append(line)
      if "ready after" in line:
        break
    text = "".join(lines)
    port = int(re.search(r"ws://127.0.0.1:(\d+)", text)[1])
    assert re.search(r"gRPC: 127.0.0.1:(\d+)", text)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as response:
      assert response.read() == b"OK\n"
    headers = {"Authorization": "Api-Key 0123456789abcdef"}
    with client.connect(f"ws://127.0.0.1:{port}", additional_headers=headers) as connection:
      assert wire.unpack(connection.recv(timeout=30))["model"] == "autoregressive"
      connection.send(wire.pack({"state": np.zeros(5), "task": "lift"}))
      assert wire.unpack(connection.recv(timeout=30))["actions"].shape == (8, 3)
      begin = time.monotonic()
      process.send_signal(signal.SIGTERM)
      code, out, err = tiny.finish(process)
    assert code == 0 and "stopping: requests that are here are answered" in out, err
    assert time.monotonic() - begin < 30
  finally:
    process.kill()
