r"""OAT tokenizer: a chunk of actions <-> 8 ordered tokens.

  python launch/train.py --config=configs/tokenizer_oat.py:mt4 \
      --config.data.path=DIR --workdir=W/tokenizer

Variants (the part behind the colon):
  mt4        MetaWorld MT4 demonstrations, chunk 32
  robosuite  robosuite's Lift, Can or Square; chunk 32
  bridge     BridgeData V2's features; chunk 8, for episodes of 10 steps
  published  sizes and optimiser of the paper (arXiv 2602.04215), in float32; chunk 32

On 400 demonstrations a task, mt4 takes 9 minutes on one CPU core; its held-out error falls from
0.045 with 1 token to 0.012 with 8, and 981 of the 1000 codes are used. robosuite takes 4 CPU
minutes; on 100 demonstrations of Lift the error is 0.011 and 0.005. bridge was run on 25 episodes
only, which say nothing about its quality. published has not been run to its end.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(argument: str = "mt4") -> ConfigDict:
  ladder = runpy.run_path(str(pathlib.Path(__file__).with_name("ladder.py")))
  variant, size = ladder["split"](
    argument, ("mt4", "robosuite", "bridge", "published"), ladder["TOKENIZERS"]
  )
  config = ConfigDict()
  config.kind = "tokenizer"
  config.seed = 0
  config.mesh = (-1, 1, 1)
  config.init_from = ""
  config.steps = 3000
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
  config.fit_windows = 50_000  # of a tokenizer that is fitted, not trained
  config.plan = ConfigDict({"state_dim": 39, "action_dim": 4, "tasks": 4})

  data = runpy.run_path(str(pathlib.Path(__file__).with_name("data.py")))
  config.data = data["get_config"]()

  config.model = ConfigDict()
  config.model.name = "oat"
  config.model.num_tokens = 8
  config.model.levels = (8, 5, 5, 5)
  config.model.width = 128
  config.model.head_width = 64
  config.model.encoder_layers = 1
  config.model.decoder_layers = 1
  config.model.mlp_ratio = 4
  config.model.dropout = 0.0
  config.model.patch = 4
  config.model.shortcut = 768
  config.model.normalization = "min_max"
  config.model.blocks = ()
  # Two prefixes of each example: all tokens, and a length drawn with probability ~ 1 / K.
  config.model.nested_dropout = "power_law"
  config.model.prefixes = 2
  config.model.keep_all = 0.5
  config.model.cumulative_weight = 0.0
  config.model.cumulative_dims = ()
  config.model.dtype = "float32"
  config.model.scan = False
  config.model.remat = "none"

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.0
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.clip = 1.0
  config.optimizer.max_failures = 0
  config.optimizer.ema_power = 0.75
  config.optimizer.ema_max = 0.999

  if variant in ("mt4", "robosuite"):
    # xyz are displacements; the gripper is not.
    config.model.cumulative_weight = 0.1
    config.model.cumulative_dims = (0, 1, 2)
    if variant == "robosuite":
      # Turns may be hardly more than noise, which normalisation would make as loud as the rest.
      config.data.unscaled = ("action_3", "action_4", "action_5", "action_6")
      config.steps = 1500
      config.batch_size = 64
      config.evaluate_every = config.save_every = 500
  elif variant == "bridge":
    config.data.task = ""
    config.data.action_horizon = 8
    config.model.patch = 1
    config.steps = 1000
    config.batch_size = 64
    config.evaluate_every = 500
    config.save_every = 500
  elif variant == "published":
    config.steps = 500_000
    config.batch_size = 256
    config.model.patch = 1
    config.model.shortcut = 0
    config.model.width = 256
    config.model.encoder_layers = 2
    config.model.decoder_layers = 4
    config.model.dropout = 0.1
    config.model.nested_dropout = "powers_of_two"
    config.model.prefixes = 1
    config.model.keep_all = 0.0
    config.optimizer.learning_rate = 5e-5
    config.optimizer.schedule = "constant"
    config.optimizer.ema_max = 0.9999
  else:
    ladder["generic"](config)
    config.batch_size = 1024
  if size:
    ladder["tokenizer"](config, size)
  return config
