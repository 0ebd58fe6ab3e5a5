r"""The OAT paper's comparison on LIBERO-10: Diffusion Policy, Bin, FAST, QueST, OAT.

  python launch/convert.py --from=libero_hdf5 --in=libero_10 --out=DIR
  python launch/compare.py policies --config=configs/paper_libero.py:published --data=DIR \
      --out=OUT

Variants (the part behind the colon):
  published  10 tasks, one policy; 50 demonstrations a task, those of LIBERO's own files
  mini       a few steps and episodes of shallow networks, to see every stage run; learns nothing

Observed: agentview and wrist camera of 128x128 pixels, the end effector's position and orientation,
both fingers, and the task. Orientation is a rotation vector, as in LIBERO's files, there made a
quaternion: 8 numbers, not 9. Episodes have 550 steps. Bin has 224 tokens a chunk.

Published success in %: Diffusion Policy 36.6, Bin 14.4, FAST 23.0, QueST 48.2, OAT 11.7 with 1
token, 46.4 with 4, 56.3 with 8. What else differs is in configs/paper.py. Not run to its end.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "published") -> ConfigDict:
  if variant not in ("published", "mini"):
    raise ValueError(f"unknown variant '{variant}'; there are published and mini")
  paper = runpy.run_path(str(pathlib.Path(__file__).with_name("paper.py")))
  return paper["get_config"](
    suite="libero/10",
    max_steps=550,
    task_width=32,
    mini=variant == "mini",
    data={
      "state": ("observation/state",),
      "cameras": (
        "agentview=observation/image",
        "robot0_eye_in_hand=observation/wrist_image",
      ),
      "task": "language_instruction",
    },
    plan={"state_dim": 8, "action_dim": 7, "tasks": 10},
  )
