"""Not a test: serves small policies to clients that live in environments of their own.

python tests/clients/against.py openpi CLIENTS/bin/python       (make test-clients)
python tests/clients/against.py praxis PRAXIS/bin/python
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tiny

os.environ.update(tiny.quick(), JAX_PLATFORMS="cpu")  # most of the time is compilation

TOKEN = "0123456789abcdef"
REPLAN, STEPS = 5, 23  # of chunks of 8, and of an episode


@contextlib.contextmanager
def serving(export, *flags):
  """Yields {"ws" or "gRPC": port}; the server must end well."""
  flags = [f"--export={export}", "--port=0", "--max-batch=2", *flags]
  server = tiny.start("launch/serve.py", *flags)
  try:
    ports = {}
    for line in server.stdout:
      if found := re.search(r"(gRPC|ws).*127.0.0.1:(\d+)", line):
        ports[found[1]] = found[2]
      if "ws" in ports:
        break
    if "ws" not in ports:
      raise RuntimeError(f"the server did not start: {server.stderr.read()}")
    yield ports
    server.send_signal(signal.SIGTERM)
    if server.wait(60):
      raise RuntimeError(f"the server ended with {server.returncode}")
  finally:
    server.kill()


def drive(python, client, *arguments):
  script = pathlib.Path(__file__).with_name(f"drive_{client}.py")
  subprocess.run([python, str(script), *map(str, arguments)], check=True)


def export(dataset, root, data=None, model=None):
  """Trains a tokenizer and a policy for two steps, and exports the policy."""
  from oat_jax.export import exporter
  from oat_jax.train import loop

  parts = {"steps": 2, "data": data or {}}
  loop.train(tiny.run_config("tokenizer", dataset, **parts), root / "tokenizer")
  parts |= {"tokenizer": str(root / "tokenizer"), "model": model or {}}
  exporter.export(loop.train(tiny.run_config("policy", dataset, **parts), root / "run"), root / "E")
  return root / "E"


def openpi(python, root):
  (root / "token").write_text(TOKEN)
  exported = export(tiny.write_dataset(root / "data"), root)
  with serving(exported, f"--token-file={root / 'token'}") as ports:
    drive(python, "openpi", ports["ws"], TOKEN)


def praxis(python, root):
  """A policy that sees what praxis-eval's MetaWorld shows: one camera, and four numbers."""
  from oat_jax.envs import collect
  from oat_jax.envs import env
  import oat_jax.export

  env.choose_renderer()
  collect.collect("metaworld/mt4", 1, root / "data", cameras=("corner",), image_size=64)
  images = {"channels": (16, 16, 16, 16), "keypoints": 8}
  exported = export(
    root / "data",
    root,
    data={
      "state": ("observation/proprioception",),
      "cameras": ("corner=observation/image_corner",),
    },
    model={"observation": tiny.OBSERVATION | {"images": images}},
  )
  flags = ("--grpc-port=0", "--grpc-keymap=praxis_metaworld", f"--replan={REPLAN}")
  with serving(exported, *flags) as ports:
    drive(python, "praxis", ports["gRPC"], STEPS, root / "report", root / "seen.npz")
  rows = np.load(root / "seen.npz")
  seen = {"state": rows["state"], "image_corner": np.rint(255 * rows["image"]).astype(np.uint8)}
  policy = oat_jax.export.load(exported)
  for begin in range(0, len(seen["state"]), STEPS):
    last = {}
    for step in range(begin, begin + STEPS, REPLAN):
      moments = {name: x[max(begin, step - 1) : step + 1] for name, x in seen.items()}
      chunk_CA, _ = policy.act(moments | {"task": "box-close"}, **last)
      found_CA = rows["actions"][step : min(step + REPLAN, begin + STEPS)]
      np.testing.assert_allclose(found_CA, chunk_CA[: len(found_CA)], atol=1e-4)
      last = {"last_action": found_CA[-1]}
  print(f"the export alone says the same {len(rows['actions'])} actions of what was seen")


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as folder:
    {"openpi": openpi, "praxis": praxis}[sys.argv[1]](sys.argv[2], pathlib.Path(folder))
