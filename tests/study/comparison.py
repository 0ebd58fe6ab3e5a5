"""A comparison in miniature, for the tests of this folder."""

import tiny

VQ = {"width": 8, "latent": 4, "codes": 16}
A = 4  # as many dimensions as the suite of the ceiling


def values(**changes):
  some = {"validation_fraction": 0.4}  # several episodes
  oat = tiny.run_values("tokenizer", "", steps=4, evaluate_every=4, save_every=4, data=some)
  policy = tiny.run_values("policy", "", steps=2)
  return {
    "data": oat["data"],
    "methods": {
      "oat": oat,
      "bin": oat | {"model": {"name": "bin"}, "steps": 1},
      "vq": oat | {"model": {"name": "vq", "num_tokens": 8} | VQ},
    },
    "modelability": policy,
    "same_tokens": {},
    "ceiling": {"num_tokens": (1, 8), "replan": 4, "episodes": 1, "max_steps": 8},
    "seeds": (0, 1),
    "modelability_seeds": (0,),
    "ceiling_seeds": (0,),
    "windows": 20,
    "pairs": (("oat@8", "oat@4"), ("oat", "bin|vq"), ("vq@1", "oat@1")),
    "pictured": ("oat", "vq"),
  } | changes
