"""Not a test: trains a model on meshes of 8 fake devices, prints losses and initial parameters."""

import hashlib
import json
import re
import sys

import jax
import numpy as np
import tiny

from oat_jax import batch as batch_lib
from oat_jax import policies
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.train import step

# Of activations: those of parameters stand in the program's signature.
PINNED = re.compile(r"sdy.sharding_constraint \S+ <@mesh, (.*?)>")
ACTING = ([1, 1, 1], [8, 1, 1], [2, 2, 2])  # meshes whose parameters act, too
SEEING = tiny.spec(cameras=(("top", 8, 8),))
SCAN = {"scan": True, "remat": "full"}
LAST_LAYER = {
  "tokenizer": lambda network: network["decoder"]["to_actions"],
  "policy": lambda network: network["to_logits"],
  "seeing": lambda network: network["to_logits"],
  "diffusion": lambda network: network["to_noise"],
}


def digest(params):
  return hashlib.sha256(repr(sorted(tiny.to_bits(params).items())).encode()).hexdigest()


def acts(model, params, mesh, spec):
  """Tokens, and chunks rounded, of sharded parameters and observations."""
  made = batch_lib.fake(spec, 16, 99)
  seen = {name: made[name] for name in batch_lib.ACTING}
  seen = jax.device_put(seen, mesh_lib.batch_sharding(mesh))
  sampling = policies.Sampling(1.0, 10)
  act = jax.jit(model.act, static_argnames="sampling")
  chunk_BCA, info = act(params, seen, jax.random.key(0), sampling=sampling)
  tokens = np.asarray(info["tokens_BN"]).tolist() if info else None
  return {"tokens": tokens, "chunks": np.asarray(chunk_BCA).tolist()}


def evaluated(model, params, mesh, batch):
  """Means of what the model says of a batch, as a run evaluates it."""
  shardings = jax.tree.map(lambda x: x.sharding, params)
  compiled = step.compile_evaluate(model.evaluate, mesh, shardings)
  batch = mesh_lib.global_batch(batch, np.arange(16), mesh, 16)
  found = compiled(params, batch)
  return {k: float(v.mean()) for k, v in found.items() if v.dtype.kind == "f"}


def make(name):
  """Returns a model with 8 heads, and what its init takes behind the key."""
  tokenizer = tiny.tokenizer(shortcut=16, prefixes=2, head_width=4)
  if name == "tokenizer":
    return tokenizer, ()
  if name == "diffusion":
    return tiny.policy(name=name, head_width=4), ()
  fixed = jax.jit(tokenizer.init)(jax.random.key(0))
  fixed = jax.tree.map(np.asarray, fixed)  # belongs to no device
  if name == "policy":
    shown = {"geometry": True, "blur": 0.8, "shortcut": 16, "head_width": 4}
    return tiny.policy(tokenizer=tokenizer, **shown), (fixed,)
  # Frames as patches; layers as one scan, computed again in the backward pass.
  tower = {"patch": 4, "width": 16, "layers": 2, "heads": 8, "mlp_width": 16} | SCAN
  images = {"encoder": "vit", "vit": tower, "tokens": "patches"}
  observation = tiny.OBSERVATION | {"images": images}
  policy = tiny.policy(SEEING, tokenizer, head_width=4, observation=observation, **SCAN)
  return policy, (fixed,)


def main(name, meshes):
  model, args = make(name)
  spec = SEEING if name == "seeing" else tiny.spec()
  batches = [batch_lib.fake(spec, 16, seed) for seed in range(5)]
  tokens_BN = np.random.default_rng(0).integers(0, 1000, (16, 8), np.int32)
  prepared = {"tokens": tokens_BN, "prefix": np.arange(16) % 7 + 1, "refinement": tokens_BN[:, 0]}
  batches = [batch | prepared for batch in batches]
  out = {}
  for shape in meshes:
    mesh = mesh_lib.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    run = tiny.trainer(model, args, on=mesh)
    initial, _ = run([])
    weights = LAST_LAYER[name](initial.params["network"])["w"]
    state, rows = run(batches)
    out[str(shape)] = {
      "initial": digest(initial.params),
      "acts": acts(model, state.params, mesh, spec)
      if name != "tokenizer" and shape in ACTING
      else None,
      "losses": [row["loss"] for row in rows],
      "evaluated": evaluated(model, state.params, mesh, batches[0]),
      "grad_norms": [row["grad_norm"] for row in rows],
      "parts": len({str(s.index) for s in weights.addressable_shards}),
      "pinned": sorted(set(PINNED.findall(run.lowered(batches[0])))),
      "devices": len(weights.sharding.device_set),
    }
  print(json.dumps(out))


if __name__ == "__main__":
  main(sys.argv[1], json.loads(sys.argv[2]))
