r"""Autoregressive policy over the tokens of a trained tokenizer, from states and images.

  python launch/train.py --config=configs/policy_oat.py:mt4 --config.data.path=DIR \
      --config.tokenizer=W/tokenizer --workdir=W/policy

Variants (the part behind the colon):
  mt4        MetaWorld MT4 demonstrations
  robosuite  robosuite's Lift, Can or Square
  published  size and optimiser of the paper (arXiv 2602.04215), in float32: about 5 M parameters

On 400 demonstrations a task, mt4 takes 21 minutes on one CPU core, less on two, and predicts 0.62
of the first and 0.61 of the last tokens of held-out chunks; it solves 87 of 100 goals
(configs/quickstart.py). robosuite takes 4 CPU minutes; after 100 demonstrations of Lift it solves
46 of 50 goals, two steps of each chunk executed (docs/simulators.md); Can, Square were not tried.
published has not been run to its end.

With cameras, --config.data.cameras=top=observation/top, every camera has a ResNet-18 of its own;
config.model.observation.images says how it looks, and config.optimizer.image_rate how it learns.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(argument: str = "mt4") -> ConfigDict:
  ladder = runpy.run_path(str(pathlib.Path(__file__).with_name("ladder.py")))
  variant, size = ladder["split"](argument, ("mt4", "robosuite", "published"), ladder["POLICIES"])
  config = ConfigDict()
  config.kind = "policy"
  config.tokenizer = ""
  config.seed = 0
  config.mesh = (-1, 1, 1)
  config.init_from = ""
  config.precompute = True
  config.steps = 6000
  config.batch_size = 128
  config.accumulate = 1
  config.log_every = 100
  config.evaluate_every = 1000
  config.save_every = 1000
  config.keep = 2
  config.keep_every = 0
  config.keep_best = ""
  config.wandb = ""
  config.evaluate_windows = 4096
  config.plan = ConfigDict({"state_dim": 39, "action_dim": 4, "tasks": 4})

  data = runpy.run_path(str(pathlib.Path(__file__).with_name("data.py")))
  config.data = data["get_config"]()

  config.model = ConfigDict()
  config.model.name = "autoregressive"
  config.model.width = 128
  config.model.head_width = 64
  config.model.layers = 4
  config.model.mlp_ratio = 4
  config.model.dropout = 0.0
  config.model.by_block = True
  config.model.refinement = True
  # These three help where demonstrations are few: see docs/policies.md.
  config.model.geometry = False
  config.model.blur = 0.0
  config.model.shortcut = 0
  config.model.dtype = "float32"
  config.model.scan = False
  config.model.remat = "none"
  config.model.observation = ConfigDict()
  config.model.observation.hidden = 512
  config.model.observation.task_width = 32  # 0 where config.data.language says enough
  config.model.observation.language_width = 32
  config.model.observation.normalization = "mean_std"
  config.model.observation.clip = 5.0
  config.model.observation.noise = 0.0
  config.model.observation.modality_dropout = 0.0
  # Of cameras, which config.data.cameras names.
  images = config.model.observation.images = ConfigDict()
  images.encoder = "resnet18"  # or vit
  images.tokens = "pooled"  # or patches
  images.shared = False
  images.crop = 0
  images.jitter = 0.0
  images.frozen = False
  images.weights = ""  # of the vit, a safetensors file of SigLIP or DINOv2
  images.channels = (64, 128, 256, 512)
  images.keypoints = 32
  images.vit = ConfigDict()
  images.vit.family = "siglip"  # or dinov2
  images.vit.patch = 16
  images.vit.width = 768
  images.vit.layers = 12
  images.vit.heads = 12
  images.vit.mlp_width = 3072
  images.vit.scan = False
  images.vit.remat = "none"

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 1e-3
  config.optimizer.image_rate = 1.0
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup_steps = 200
  config.optimizer.weight_decay = 0.1
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.clip = 1.0
  config.optimizer.max_failures = 0
  config.optimizer.ema_power = 0.75
  config.optimizer.ema_max = 0.999

  if variant == "robosuite":
    config.data.unscaled = ("action_3", "action_4", "action_5", "action_6")
    config.steps = 1500
    config.batch_size = 64
    config.evaluate_every = config.save_every = 500
  elif variant == "published":
    config.steps = 500_000
    config.batch_size = 256
    config.model.width = 256
    config.model.dropout = 0.1
    images.crop = 76  # of 128x128 pixels
    config.optimizer.learning_rate = 5e-5
    config.optimizer.image_rate = 0.2
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.0
    config.optimizer.ema_max = 0.9999
  elif not variant:
    ladder["generic"](config)
    config.batch_size = 1024
  if size:
    ladder["policy"](config, size)
  return config
