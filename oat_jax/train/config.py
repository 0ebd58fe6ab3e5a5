"""The run's configuration as frozen dataclasses, and its validation."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from oat_jax import config as config_lib

KINDS = ("tokenizer", "policy")
SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class Data:
  """Where demonstrations lie and how windows are cut from them."""

  path: str = ""  # an RLDS directory in TFDS layout
  split: str = "train"
  action: str = "action"  # names of features below `steps/`
  state: tuple[str, ...] = ("observation/state",)
  task: str = ""  # a text feature below `steps/` or `episode_metadata/`; "" means a single task
  observation_steps: int = 2  # T
  action_horizon: int = 32  # C
  action_dim: int | None = None  # A; None takes the dataset's
  validation_fraction: float = 0.1  # of the episodes of each task
  split_seed: int = 0
  threads: int = 1

  def __post_init__(self):
    for name in ("split_seed", "threads"):
      config_lib.at_least(getattr(self, name), 0, f"config.data.{name}")
    for name in ("observation_steps", "action_horizon"):
      config_lib.at_least(getattr(self, name), 1, f"config.data.{name}")


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW with warm-up; betas and clipping as in the OAT paper."""

  learning_rate: float = 5e-5
  schedule: str = "constant"  # or cosine, to zero at the last step
  warmup_steps: int = 100
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.95
  clip: float = 1.0  # global norm
  # The parameters' average decays by min(ema_max, 1 - (1 + step) ** -ema_power).
  ema_power: float = 0.75
  ema_max: float = 0.9999

  def __post_init__(self):
    config_lib.choose(self.schedule, SCHEDULES, "config.optimizer.schedule")
    for name in ("learning_rate", "clip"):
      config_lib.above(getattr(self, name), 0, f"config.optimizer.{name}")
    for name in ("b1", "b2", "ema_max"):
      config_lib.between(getattr(self, name), 0, 1, f"config.optimizer.{name}")
    for name in ("warmup_steps", "weight_decay"):
      config_lib.at_least(getattr(self, name), 0, f"config.optimizer.{name}")


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that defines a run, but for its working directory."""

  kind: str  # tokenizer, or policy
  model: Mapping[str, Any]  # `name`, and the values of that tokenizer's or policy's own Config
  data: Data
  optimizer: Optimizer
  steps: int
  batch_size: int  # of all processes together
  tokenizer: str = ""  # working directory of the trained tokenizer, for a policy over tokens
  init_from: str = ""  # working directory whose parameters this run starts from, where they fit
  seed: int = 0
  mesh: tuple[int, ...] = (-1, 1, 1)  # sizes of (data, fsdp, tensor)
  log_every: int = 50
  evaluate_every: int = 500
  evaluate_windows: int = 4096  # at most so many held-out windows, evenly spaced
  save_every: int = 500
  keep: int = 2  # newest checkpoints kept

  def __post_init__(self):
    config_lib.choose(self.kind, KINDS, "config.kind")
    counts = (
      "steps",
      "batch_size",
      "log_every",
      "evaluate_every",
      "evaluate_windows",
      "save_every",
    )
    for name in (*counts, "keep"):
      config_lib.at_least(getattr(self, name), 1, f"config.{name}")
    config_lib.at_least(self.seed, 0, "config.seed")
    if self.kind == "tokenizer" and self.tokenizer:
      raise ValueError("config.tokenizer is set, but this run trains a tokenizer itself")


def freeze(values: Mapping[str, Any]) -> Config:
  """Returns the checked configuration; ValueError names the key that does not exist or fit."""
  config = config_lib.freeze(Config, values)
  return dataclasses.replace(config, model=plain(config.model))


def to_json(config: Config) -> dict[str, Any]:
  """Returns plain values that `freeze` turns back."""
  values = dataclasses.asdict(dataclasses.replace(config, model={}))
  return plain(values | {"model": config.model})


def plain(value: Any) -> Any:
  """ConfigDicts and tuples as dicts and lists, all the way down."""
  if hasattr(value, "items"):
    return {key: plain(item) for key, item in value.items()}
  return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value
