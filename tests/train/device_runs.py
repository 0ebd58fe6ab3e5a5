"""Not a test: trains on meshes of 8 fake devices and prints losses and initial parameters."""

import hashlib
import json
import re
import sys

import jax
import numpy as np
import tiny

from oat_jax import batch as batch_lib
from oat_jax.parallel import mesh as mesh_lib

# Of activations: those of parameters stand in the program's signature.
PINNED = re.compile(r"sdy.sharding_constraint \S+ <@mesh, (.*?)>")
LAST_LAYER = {
  "tokenizer": lambda network: network["decoder"]["to_actions"],
  "policy": lambda network: network["to_logits"],
  "diffusion": lambda network: network["to_noise"],
}


def digest(params):
  return hashlib.sha256(repr(sorted(tiny.to_bits(params).items())).encode()).hexdigest()


def main(meshes):
  tokenizer = tiny.tokenizer(shortcut=16, prefixes=2)
  fixed = jax.jit(tokenizer.init)(jax.random.key(0))
  fixed = jax.tree.map(np.asarray, fixed)  # belongs to no device
  models = {
    "tokenizer": (tokenizer, ()),
    "policy": (tiny.policy(tokenizer=tokenizer, refinement=False), (fixed,)),
    "diffusion": (tiny.policy(name="diffusion"), ()),
  }
  batches = [batch_lib.fake(tiny.spec(), 16, seed) for seed in range(5)]
  tokens_BN = np.random.default_rng(0).integers(0, 1000, (16, 8), np.int32)
  batches = [batch | {"tokens": tokens_BN} for batch in batches]
  out = {}
  for shape in meshes:
    mesh = mesh_lib.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    for name, (model, args) in models.items():
      run = tiny.trainer(model, args, on=mesh)
      initial, _ = run([])
      weights = LAST_LAYER[name](initial.params["network"])["w"]
      _, rows = run(batches)
      out[f"{name} {shape}"] = {
        "initial": digest(initial.params),
        "losses": [row["loss"] for row in rows],
        "grad_norms": [row["grad_norm"] for row in rows],
        "parts": len({str(s.index) for s in weights.addressable_shards}),
        "pinned": sorted(set(PINNED.findall(run.lowered(batches[0])))),
        "devices": len(weights.sharding.device_set),
      }
  print(json.dumps(out))


if __name__ == "__main__":
  main(json.loads(sys.argv[1]))
