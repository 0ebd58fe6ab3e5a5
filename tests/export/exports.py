"""What tests of exports do with them."""

import json
import subprocess
import sys

import numpy as np
import tiny

from oat_jax.export import directory

WITHOUT_TRAINING = ("flax", "optax", "orbax", "grain", "tensorflow_datasets", "ml_collections")


def change(path, **changes):
  """Changes fields of spec.json."""
  content = json.loads((path / "spec.json").read_text())
  (path / "spec.json").write_text(json.dumps(content | changes))


def observation(B=None, T=2, seed=0):
  rng = np.random.default_rng(seed)
  shape = (T, 5) if B is None else (B, T, 5)
  return {"state": rng.uniform(-1, 1, shape).astype(np.float32), "task": "push"}


def foreign_functions(path):
  """Makes the functions ones that no jax reads, as far as checksums go all is well."""
  spec = json.loads((path / "spec.json").read_text())
  for about in spec["functions"].values():
    data = b"of another calling convention"
    (path / about["file"]).write_bytes(data)
    spec["sha256"][about["file"]] = directory.parameters.sha256(data)
  change(path, sha256=spec["sha256"])


def alone(code, *arguments):
  """Runs Python code where no package that training needs can be imported."""
  prelude = f"""
import sys
class Without:
  def find_spec(self, name, *_):
    if name.partition(".")[0] in {WITHOUT_TRAINING}:
      raise ImportError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Without())
"""
  command = [sys.executable, "-c", prelude + code, *map(str, arguments)]
  return subprocess.run(command, env=tiny.environment(), capture_output=True, text=True)
