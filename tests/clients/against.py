"""Not a test: serves a small policy to clients that live in another environment.

python tests/clients/against.py CLIENTS/bin/python       (make test-clients)
"""

import pathlib
import re
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tiny

TOKEN = "0123456789abcdef"


def main(python):
  from oat_jax.export import exporter
  from oat_jax.train import loop

  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    data = tiny.write_dataset(root / "data")
    loop.train(tiny.run_config("tokenizer", data, steps=2), root / "tokenizer")
    config = tiny.run_config("policy", data, tokenizer=str(root / "tokenizer"), steps=2)
    exporter.export(loop.train(config, root / "policy"), root / "export")
    (root / "token").write_text(TOKEN)
    flags = [f"--export={root / 'export'}", "--port=0", "--max-batch=1"]
    server = tiny.start("launch/serve.py", *flags, f"--token-file={root / 'token'}", **tiny.quick())
    try:
      port = None
      for line in server.stdout:
        if found := re.search(r"ws://127.0.0.1:(\d+)", line):
          port = found[1]
          break
      if port is None:
        raise RuntimeError(f"the server did not start: {server.stderr.read()}")
      drive = pathlib.Path(__file__).with_name("drive_openpi.py")
      subprocess.run([python, str(drive), port, TOKEN], check=True)
      server.send_signal(signal.SIGTERM)
      if server.wait(60):
        raise RuntimeError(f"the server ended with {server.returncode}")
    finally:
      server.kill()


if __name__ == "__main__":
  main(sys.argv[1])
