"""Not a test: praxis-eval, in an environment of its own, evaluates a server; see against.py."""

import json
import pathlib
import sys

import numpy as np
import torch

try:
  import torchvision  # noqa: F401
except RuntimeError:
  # The published one is built for CUDA and has no operators beside a torch for CPUs. None is used
  # here, but when it is imported, as lerobot does, it describes these two.
  for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor x, Tensor y, float z) -> Tensor")

import praxis_eval
from praxis_eval.policies import remote

SIZE = 64
TASKS = ("box-close-v3", "coffee-pull-v3")
SEEN = ("observation.state", "observation.images.corner", "task")


class Recorded(remote.RemotePolicy):
  """Remembers what it asked and was told in the first row of each rollout."""

  def __init__(self, *args, **settings):
    super().__init__(*args, **settings)
    self.rollouts = []

  def reset(self, episode_ids=None):
    self.rollouts.append([])
    super().reset(episode_ids)

  def act(self, observations, **settings):
    actions_BA = super().act(observations, **settings)
    self.rollouts[-1].append((*(observations[0][name] for name in SEEN), actions_BA[0]))
    return actions_BA


if __name__ == "__main__":
  port, steps, report, seen = sys.argv[1:]
  policy = Recorded(f"127.0.0.1:{port}", timeout=60)
  sizes = {"observation_height": SIZE, "observation_width": SIZE, "episode_length": int(steps)}
  config = praxis_eval.EvalConfig(
    task=",".join(TASKS),
    num_eval_per_task=2,
    num_parallel_env=2,
    output_dir=report,
    policy_kwargs={"num_tokens": 8},
    env_kwargs={"camera_name": "corner", **sizes},
  )
  result = praxis_eval.evaluate("metaworld", policy=policy, config=config)
  assert result.overall["n_episodes"] == 2 * len(TASKS), result.overall
  written = json.loads(pathlib.Path(result.artifacts["results_path"]).read_text())
  assert written["overall"]["avg_episode_length"] == int(steps), written["overall"]
  state, image, task, action = (np.array(each) for each in zip(*sum(policy.rollouts, [])))
  assert state.shape[1:] + image.shape[1:] == (4, 3, SIZE, SIZE) and len(set(task)) == 1
  np.savez(seen, state=state, image=np.moveaxis(image, 1, -1), actions=action)
  print(
    f"praxis-eval: {result.overall['n_episodes']:g} episodes of {steps} steps, task '{task[0]}'"
  )
