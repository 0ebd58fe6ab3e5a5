r"""What every run says of its data: `config.data` of the other configs.

  --config.data.path=gs://gresearch/robotics/droid/1.0.1 --config.data.split='train[:1%]'
  --config.data.standard=droid

One dataset is said by these keys alone. A mixture names several, each with the keys in which it
differs, in a config file of one's own:

  config.data.mixture = ConfigDict({
      "bridge": {"path": "...", "standard": "bridge_v2", "weight": 2.0},
      "droid": {"path": "...", "standard": "droid", "weight": 1.0, "idle_below": 1e-3},
  })
"""

from ml_collections import config_dict
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  data = ConfigDict()
  # The dataset.
  data.path = ""
  data.split = "train"
  data.standard = ""  # of oat_jax/data/standardize.py; it replaces action, state and task
  data.action = ("action",)
  data.state = ("observation/state",)
  data.task = "episode_metadata/task"
  data.cameras = ()  # "name=observation/FEATURE", or the name of a standard's camera
  data.language = ""  # a numeric feature that embeds the instruction, (E,)
  data.text_encoder = ""  # a directory with SigLIP's text tower, instead: embeds the tasks' texts
  data.statistics = ""  # openpi's norm_stats.json or Octo's dataset_statistics.json
  data.on_error = "raise"  # or skip
  # Its actions' dimensions, by name: those of the standard, or action_0, action_1, ...
  data.absolute = ()  # targets, not displacements; only `idle_below` asks
  data.unscaled = ()  # left as they are by normalisation, e.g. a gripper of 0 or 1
  # Which steps begin a window.
  data.stride = 1
  data.execute_horizon = 1
  data.idle_below = config_dict.placeholder(float)
  # Several datasets.
  data.mixture = ConfigDict()
  data.weight = config_dict.placeholder(float)
  data.actions = ()  # the dimensions of the batches, by name and in order; all there are, if empty
  data.states = ()
  # Windows.
  data.observation_steps = 2
  data.action_horizon = 32
  data.action_dim = config_dict.placeholder(int)  # the data's, where None
  data.image_size = ()  # height, width
  data.validation_fraction = 0.1
  data.split_seed = 0
  data.train_fraction = 1.0  # of the episodes that are not held out
  # How they are read.
  data.threads = 1
  data.workers = 0
  data.cache = ""  # $OAT_JAX_CACHE, or ~/.cache/oat_jax
  data.fetch_gb = 100.0
  return data
