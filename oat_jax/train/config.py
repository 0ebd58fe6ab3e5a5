"""The run's configuration as frozen dataclasses, and its validation."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from oat_jax import config as config_lib

KINDS = ("tokenizer", "policy")
SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One RLDS dataset: what to read of it, what it means, and which of its steps begin a window."""

  path: str = ""  # a TFDS directory; with a scheme, e.g. gs://, it is copied to the cache first
  split: str = "train"  # or a part, e.g. train[:10%]
  standard: str = ""  # a dataset that oat_jax knows; it says action, state, task and cameras
  action: tuple[str, ...] = ("action",)  # names of features below `steps/`
  state: tuple[str, ...] = ("observation/state",)
  task: str = ""  # a text feature below `steps/` or `episode_metadata/`; "" means a single task
  language: str = ""  # a numeric feature, found likewise, that embeds the instruction; "" is none
  cameras: tuple[str, ...] = ()  # "name=feature", black if no feature; with a standard its "name"
  absolute: tuple[str, ...] = ()  # dimensions of actions that are targets, not displacements
  unscaled: tuple[str, ...] = ()  # dimensions of actions that normalisation leaves as they are
  statistics: str = ""  # a norm_stats.json or dataset_statistics.json instead of the data's own
  on_error: str = "raise"  # or skip: leave out, and list, episodes that cannot be read
  stride: int = 1  # every so many steps of an episode begin a window
  execute_horizon: int = 1  # steps executed of each chunk, all of them real
  idle_below: float | None = None  # leave out windows whose executed steps move no more than this
  weight: float | None = None  # share in a mixture; None for all: as many windows as each has

  def __post_init__(self):
    for name in ("stride", "execute_horizon"):
      config_lib.at_least(getattr(self, name), 1, f"config.data.{name}")
    for name in ("idle_below", "weight"):
      if getattr(self, name) is not None:
        config_lib.at_least(getattr(self, name), 0, f"config.data.{name}")
    config_lib.choose(self.on_error, ("raise", "skip"), "config.data.on_error")
    if not self.standard:
      bare = [camera for camera in self.cameras if "=" not in camera]
      if bare:
        raise ValueError(f"config.data.cameras holds '{bare[0]}'; write {bare[0]}=FEATURE")


@dataclasses.dataclass(frozen=True)
class Data(Dataset):
  """Where demonstrations lie and how windows are cut from them."""

  # Name -> the keys of Dataset that differ from those above; {} means the one dataset above.
  mixture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  text_encoder: str = ""  # a directory with SigLIP's weights: embeds the tasks' texts instead
  actions: tuple[str, ...] = ()  # the mixture's dimensions, in order; () means all there are
  states: tuple[str, ...] = ()
  observation_steps: int = 2  # T
  action_horizon: int = 32  # C
  action_dim: int | None = None  # A, filled up by unused dimensions; None takes the data's
  image_size: tuple[int, ...] = ()  # height, width of all frames; () leaves them as they are
  validation_fraction: float = 0.1  # of the episodes of each task
  split_seed: int = 0
  # Of the other episodes of each task, those to train on. What is held out, and the statistics, are
  # those of all: runs on more and on less data are measured on the same chunks in the same units.
  train_fraction: float = 1.0
  threads: int = 1
  workers: int = 0  # processes that decode; 0 decodes in this one's threads
  cache: str = ""  # of indices and fetched shards; "" is $OAT_JAX_CACHE or ~/.cache/oat_jax
  fetch_gb: float = 100.0  # the most to copy of a remote dataset, 10**9 bytes

  def __post_init__(self):
    super().__post_init__()
    for name in ("split_seed", "threads", "workers", "fetch_gb"):
      config_lib.at_least(getattr(self, name), 0, f"config.data.{name}")
    for name in ("observation_steps", "action_horizon"):
      config_lib.at_least(getattr(self, name), 1, f"config.data.{name}")
    config_lib.above(self.train_fraction, 0, "config.data.train_fraction")
    config_lib.between(self.train_fraction, 0, 1, "config.data.train_fraction")
    if self.image_size and (len(self.image_size) != 2 or min(self.image_size) < 1):
      raise ValueError(f"config.data.image_size is {self.image_size}; write (height, width)")
    embedded = [each.language for each in self.datasets().values() if each.language]
    if embedded and self.text_encoder:
      raise ValueError(
        f"config.data.language is '{embedded[0]}' and config.data.text_encoder is "
        f"'{self.text_encoder}'; instructions are embedded by one of the two"
      )

  def datasets(self) -> dict[str, Dataset]:
    """Returns the datasets to train on by name; those of weight 0 are left out.

    Raises:
      ValueError: none is left, or only some of them have a weight.
    """
    names = [field.name for field in dataclasses.fields(Dataset)]
    own = {name: getattr(self, name) for name in names}
    if not self.mixture:
      return {"": Dataset(**own)}
    found = {}
    for name, changes in self.mixture.items():
      where = f"config.data.mixture.{name}"
      if not hasattr(changes, "items"):
        raise ValueError(f"{where} is {changes!r}; it holds the keys that differ, e.g. path")
      try:
        found[name] = config_lib.freeze(Dataset, own | dict(changes), where)
      except ValueError as error:
        text = str(error)  # of Dataset, which does not know its name
        raise ValueError(
          text if where in text else text.replace("config.data", where, 1)
        ) from error
    without = [name for name, dataset in found.items() if dataset.weight is None]
    if without and len(without) < len(found):
      raise ValueError(f"config.data.mixture.{without[0]} has no weight, others have; give it one")
    found = {name: dataset for name, dataset in found.items() if dataset.weight != 0}
    if not found:
      raise ValueError("every dataset of config.data.mixture has weight 0")
    return found


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW with warm-up; betas and clipping as in the OAT paper."""

  learning_rate: float = 5e-5
  image_rate: float = 1.0  # times the learning rate: that of encoders of images
  schedule: str = "constant"  # or cosine, to zero at the last step
  warmup_steps: int = 100
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.95
  clip: float = 1.0  # global norm
  # So many steps whose loss or gradient is not finite are passed over; the next one ends the run.
  max_failures: int = 0
  # The parameters' average decays by min(ema_max, 1 - (1 + step) ** -ema_power).
  ema_power: float = 0.75
  ema_max: float = 0.9999

  def __post_init__(self):
    config_lib.choose(self.schedule, SCHEDULES, "config.optimizer.schedule")
    for name in ("learning_rate", "image_rate", "clip"):
      config_lib.above(getattr(self, name), 0, f"config.optimizer.{name}")
    for name in ("b1", "b2", "ema_max"):
      config_lib.between(getattr(self, name), 0, 1, f"config.optimizer.{name}")
    for name in ("warmup_steps", "weight_decay", "max_failures"):
      config_lib.at_least(getattr(self, name), 0, f"config.optimizer.{name}")


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the data will be like, for launch/plan.py, which has none; training ignores it."""

  state_dim: int = 1
  action_dim: int = 1
  tasks: int = 1
  language_dim: int = 0

  def __post_init__(self):
    for name in ("state_dim", "action_dim", "tasks"):
      config_lib.at_least(getattr(self, name), 1, f"config.plan.{name}")
    config_lib.at_least(self.language_dim, 0, "config.plan.language_dim")


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that defines a run, but for its working directory."""

  kind: str  # tokenizer, or policy
  model: Mapping[str, Any]  # `name`, and the values of that tokenizer's or policy's own Config
  data: Data
  optimizer: Optimizer
  steps: int
  batch_size: int  # of all processes together
  accumulate: int = 1  # parts of a batch whose gradients are added up, one behind the other
  tokenizer: str = ""  # working directory of the trained tokenizer, for a policy over tokens
  # What a policy derives from a window alone, its tokens: once, kept in the cache, or in each step.
  precompute: bool = True
  init_from: str = ""  # working directory whose parameters this run starts from, where they fit
  seed: int = 0
  mesh: tuple[int, ...] = (-1, 1, 1)  # sizes of (data, fsdp, tensor)
  log_every: int = 50
  evaluate_every: int = 500
  evaluate_windows: int = 4096  # at most so many held-out windows, evenly spaced
  fit_windows: int = 50_000  # as many of those to train on, for a tokenizer that is fitted
  save_every: int = 500
  keep: int = 2  # newest checkpoints kept
  keep_every: int = 0  # and those whose step is a multiple of this; 0: none
  keep_best: str = ""  # and the one where this metric of the held-out data is least, e.g. mse_8
  wandb: str = ""  # a project of Weights & Biases that metrics go to as well; "" is none
  plan: Plan = Plan()

  def __post_init__(self):
    config_lib.choose(self.kind, KINDS, "config.kind")
    counts = (
      "steps",
      "batch_size",
      "accumulate",
      "log_every",
      "evaluate_every",
      "evaluate_windows",
      "fit_windows",
      "save_every",
    )
    for name in (*counts, "keep"):
      config_lib.at_least(getattr(self, name), 1, f"config.{name}")
    config_lib.at_least(self.seed, 0, "config.seed")
    if self.keep_best and self.save_every % self.evaluate_every:
      raise ValueError(
        f"config.keep_best is '{self.keep_best}', so what is saved must have been evaluated; "
        f"save_every {self.save_every} is no multiple of evaluate_every {self.evaluate_every}"
      )
    if self.kind == "tokenizer" and self.tokenizer:
      raise ValueError("config.tokenizer is set, but this run trains a tokenizer itself")


def freeze(values: Mapping[str, Any]) -> Config:
  """Returns the checked configuration; ValueError names the key that does not exist or fit."""
  config = config_lib.freeze(Config, values)
  data = dataclasses.replace(config.data, mixture=plain(config.data.mixture))
  return dataclasses.replace(config, model=plain(config.model), data=data)


def to_json(config: Config) -> dict[str, Any]:
  """Returns plain values that `freeze` turns back."""
  values = dataclasses.asdict(dataclasses.replace(config, model={}))
  return plain(values | {"model": config.model})


def data_values(data: Data) -> dict[str, Any]:
  """Returns plain values of `config.data`, whatever kind of mapping its mixture is."""
  return plain(dataclasses.asdict(dataclasses.replace(data, mixture=plain(data.mixture))))


def plain(value: Any) -> Any:
  """ConfigDicts and tuples as dicts and lists, all the way down."""
  if hasattr(value, "items"):
    return {key: plain(item) for key, item in value.items()}
  return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value
