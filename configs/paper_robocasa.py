r"""The OAT paper's comparison on RoboCasa: Diffusion Policy, Bin, FAST, QueST, OAT.

  python launch/convert.py --from=robomimic_hdf5 --in=DIRECTORY --out=DIR
  python launch/compare.py policies --config=configs/paper_robocasa.py:published --data=DIR \
      --out=OUT

Variants (the part behind the colon):
  published  CloseDrawer, TurnOffSinkFaucet, CoffeePressButton and TurnOffMicrowave, one policy
  mini       a few steps and episodes of shallow networks, to see every stage run; learns nothing

Observed: the left, right and wrist camera of 128x128 pixels, and of the robot where its base is
(7), where the hand is from there (7), and both fingers (2), but no instruction. Theirs are 9, the
hand's pose in the world and the fingers; ours are what RoboCasa's environments and datasets have.
Actions have 12 dimensions: end effector, gripper, base and mode, in the files' order. Episodes have
500 steps. Bin has 384 tokens a chunk.

Demonstrations: 50 of humans and 150 generated a task, by others who read the paper; they are files
of RoboCasa 0.2 with images (human_im, mg_im), robomimic's format, all in one DIRECTORY. The suite's
simulator may be a later version, where CoffeePressButton is StartCoffeeMachine.

Published success in %, mean over the tasks: Diffusion Policy 54.0, Bin 27.7, FAST 13.2, QueST 52.3,
OAT 47.7 with 1 token, 51.7 with 4, 54.6 with 8. What else differs is in configs/paper.py. Not run
to its end, and RoboCasa's files were not read here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "published") -> ConfigDict:
  if variant not in ("published", "mini"):
    raise ValueError(f"unknown variant '{variant}'; there are published and mini")
  paper = runpy.run_path(str(pathlib.Path(__file__).with_name("paper.py")))
  cameras = ("robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand")
  return paper["get_config"](
    suite="robocasa/four",
    max_steps=500,
    task_width=0,
    mini=variant == "mini",
    data={
      "state": ("observation/proprioception",),
      "cameras": tuple(f"{name}=observation/{name}_image" for name in cameras),
      "task": "",  # it is not told, and its name differs between versions
    },
    plan={"state_dim": 16, "action_dim": 12, "tasks": 1},
  )
