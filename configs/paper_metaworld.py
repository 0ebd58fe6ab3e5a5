r"""The OAT paper's comparison on MetaWorld: Diffusion Policy, Bin, FAST, QueST, OAT.

  python launch/compare.py policies --config=configs/paper_metaworld.py:published --out=OUT

Variants (the part behind the colon):
  published  box-close, coffee-pull, disassemble and stick-pull, one policy; 50 demonstrations a
             task, collected here where no --data is given
  mini       a few steps and episodes of shallow networks, to see every stage run; learns nothing

Observed: four cameras of 128x128 pixels, and what the robot knows of its hand: neither goal nor
task. Episodes have 200 steps. Bin has 128 tokens a chunk.

Theirs are 9 numbers, the positions of the hand and of both fingers; ours are 4, the hand's position
and the gripper's opening, of which the 9 are a linear function up to 3 mm (root mean square over
experts' episodes of the four tasks; 8 mm at most, while fingers are pushed). Theirs is MetaWorld's
second version, with corner2 moved to (0.6, 0.295, 0.8) m, ours the third, with corner2 where it is.
Demonstrations end at their first success, there at ten steps of it; neither has noise.

Published success in %, mean over the tasks: Diffusion Policy 19.3, Bin 14.5, FAST 7.1, QueST 17.9,
OAT 11.3 with 1 token, 19.5 with 4, 24.4 with 8 (box-close 44.4, coffee-pull 26.4, disassemble 17.2,
stick-pull 9.6). What else differs is in configs/paper.py. Not run to its end.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "published") -> ConfigDict:
  if variant not in ("published", "mini"):
    raise ValueError(f"unknown variant '{variant}'; there are published and mini")
  mini = variant == "mini"
  paper = runpy.run_path(str(pathlib.Path(__file__).with_name("paper.py")))
  cameras = ("corner", "corner2", "corner3", "behindGripper")
  config = paper["get_config"](
    suite="metaworld/mt4",
    max_steps=200,
    task_width=0,
    mini=mini,
    data={
      "state": ("observation/proprioception",),
      "cameras": tuple(f"{name}=observation/image_{name}" for name in cameras),
      "task": "episode_metadata/task",
    },
    plan={"state_dim": 4, "action_dim": 4, "tasks": 4},
  )
  config.collect = ConfigDict({"episodes": 2 if mini else 50, "noise": 0.0, "seed": 0})
  config.collect.cameras, config.collect.image_size = cameras, 128
  return config
