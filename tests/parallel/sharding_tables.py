"""Not a test: prints how every parameter of every shipped config is cut.

PYTHONPATH=. python tests/parallel/sharding_tables.py > tests/parallel/sharding_tables.txt
"""

import math

import tiny

from oat_jax.parallel import mesh as mesh_lib
from oat_jax.scaling import plan
from oat_jax.train import config as config_lib

# One size of each kind of program: layers one by one, and as one scan.
CONFIGS = (
  *(("tokenizer_oat", argument) for argument in ("mt4", "bridge", "published", "25m", "100m")),
  *((f"tokenizer_{name}", "mt4") for name in ("quest", "vq")),
  *(("policy_oat", argument) for argument in ("mt4", "published", "mt4,20m", "mt4,80m", "1b")),
  *(("policy_diffusion", argument) for argument in ("mt4", "published")),
  ("policy_regression", "mt4"),
)
SIZES = {"state_dim": 39, "action_dim": 4, "tasks": 4, "language_dim": 0}
MESH = (2, 2, 2)


def table(name: str, argument: str) -> str:
  values = tiny.get_config(f"{name}.py", argument)
  values.plan = values.get("plan") or SIZES
  if values.data.cameras and not values.data.image_size:
    values.data.image_size = (224, 224)
  tokenizer = tiny.get_config("tokenizer_oat.py", "mt4").model
  run = plan.run_of(config_lib.freeze(values), tokenizer)
  rows = [f"{name}.py:{argument}"]
  for leaf in plan.parameters(run, mesh_lib.abstract(MESH)):
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    axes = ",".join(axis or "-" for axis in leaf.axes)
    parts = math.prod(leaf.shape) * 4 // leaf.bytes if leaf.bytes else 1
    rows.append(f"  {leaf.name} {shape} {axes} {leaf.spec} {parts} parts")
  return "\n".join(rows)


if __name__ == "__main__":
  print("\n\n".join(table(*each) for each in CONFIGS))
