r"""The OAT paper's comparison on RoboMimic: Diffusion Policy, Bin, FAST, QueST, OAT; a task each.

  python launch/convert.py --from=robomimic_hdf5 --in=lift/image_128.hdf5 --out=DIR
  python launch/compare.py policies --config=configs/paper_robomimic.py:lift --data=DIR \
      --out=OUT

Variants (the part behind the colon):
  lift    Lift; robomimic's own files, see below
  can     PickPlaceCan
  square  NutAssemblySquare
  mini    lift, a few steps and episodes of shallow networks, to see every stage run

Observed: agentview and wrist camera, and of the robot the end effector's position (3), quaternion
(4) and both fingers (2). Episodes have 400 steps. Bin has 224 tokens a chunk.

What is published does not settle three things. Policies: results are one a task, and so are these;
the authors' code also has one policy for all three. Pixels: 128x128 in the authors' code, so render
states at that size (robomimic's dataset_states_to_obs.py with --camera_height 128 --camera_width
128); frames of robomimic's own 84x84 files are enlarged, or with
--config.data.image_size='(84,84)' left as they are. Demonstrations: 200 a task, of the proficient
human by the authors' instructions, of the 300 of several humans by others who reproduced it;
--config.data.split='train[:200]' takes as many, of which a tenth is held out; robomimic's mask of
validation, where a file has one, leaves 180 of 200.

Published success in %, mean over the tasks: Diffusion Policy 67.1, Bin 39.5, FAST 24.0, QueST 66.9,
OAT 50.8 with 1 token, 65.3 with 4, 73.1 with 8 (Lift 99.2, Can 80.8, Square 39.2). What else
differs is in configs/paper.py. Not run to its end.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "lift") -> ConfigDict:
  if variant not in ("lift", "can", "square", "mini"):
    raise ValueError(f"unknown variant '{variant}'; there are lift, can, square and mini")
  task = "lift" if variant == "mini" else variant
  paper = runpy.run_path(str(pathlib.Path(__file__).with_name("paper.py")))
  cameras = ("agentview", "robot0_eye_in_hand")
  return paper["get_config"](
    suite=f"robosuite/{task}",
    max_steps=400,
    task_width=0,
    mini=variant == "mini",
    data={
      "state": ("observation/proprioception",),
      "cameras": tuple(f"{name}=observation/{name}_image" for name in cameras),
      "task": "",  # a single one
    },
    plan={"state_dim": 9, "action_dim": 7, "tasks": 1},
  )
