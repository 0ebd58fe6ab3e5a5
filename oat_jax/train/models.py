"""From a run's configuration, or its working directory, to its tokenizer or policy."""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax import policies
from oat_jax import tokenizers
from oat_jax.batch import BatchSpec
from oat_jax.policies.policy import Policy
from oat_jax.tokenizers.tokenizer import Tokenizer
from oat_jax.train import checkpoint
from oat_jax.train import config as config_lib

FORMAT_VERSION = 6


class Trained(NamedTuple):
  """What a working directory holds.

  Attributes:
    config: of the run.
    spec: shapes of its batches.
    model: the tokenizer or policy.
    tokenizer: the policy's tokenizer, whose parameters are params["tokenizer"]; or the model
      itself; or None.
    params: numpy arrays, the averaged parameters.
    step: the checkpoint's step.
  """

  config: config_lib.Config
  spec: BatchSpec
  model: Tokenizer | Policy
  tokenizer: Tokenizer | None
  params: Any
  step: int


def digest(trained: Trained) -> str:
  """Returns 16 hex digits for what a model computes: its configuration and every bit of parameters.

  Paths, and how it was trained, do not count: a run that was moved is the same model.
  """
  spec = config_lib.plain(dataclasses.asdict(trained.spec))
  data = trained.config.data
  reads = [[name, each.standard, each.state] for name, each in data.datasets().items()]
  reads = config_lib.plain([reads, data.states])
  known = {"model": _without_paths(trained.config.model), "spec": spec, "reads": reads}
  sha = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(trained.params):
    sha.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
  return sha.hexdigest()[:16]


def _without_paths(model: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a model's values but for the file that an encoder of images began with."""
  values = config_lib.plain(model)
  values.get("observation", {}).get("images", {}).pop("weights", None)
  return values


def freeze_model(config: config_lib.Config) -> Any:
  """Returns `config.model` as the model's own `Config`; ValueError where it does not fit."""
  return (tokenizers if config.kind == "tokenizer" else policies).freeze(config.model)[1]


def describe(
  config: config_lib.Config, spec: BatchSpec, tokenizer: Trained | None, fingerprint: str
) -> dict[str, Any]:
  """Returns the content of `config.json`, from which `load` rebuilds the model.

  Args:
    config: of the run.
    spec: of its batches.
    tokenizer: of a policy over tokens.
    fingerprint: of the dataset.
  """
  return {
      "format_version": FORMAT_VERSION,
      "config": config_lib.to_json(config),
      "spec": config_lib.plain(dataclasses.asdict(spec)),
      "dataset_fingerprint": fingerprint,
      "tokenizer": None if tokenizer is None else {
          "model": config_lib.plain(tokenizer.config.model),
          "spec": config_lib.plain(dataclasses.asdict(tokenizer.spec)),
          "digest": digest(tokenizer),
      },
  }  # fmt: skip


def read_description(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns `config.json` of a working directory; ValueError for a broken or another version's."""
  path = pathlib.Path(workdir) / "config.json"
  if not path.exists():
    raise FileNotFoundError(f"{workdir} is no working directory of a run: it has no config.json")
  try:
    content = json.loads(path.read_text())
    version = content["format_version"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is not a run's description: {error}") from error
  if version != FORMAT_VERSION:
    raise ValueError(
      f"{path} has format version {version}; this oat_jax reads version {FORMAT_VERSION}"
    )
  return content


def build(
  config: config_lib.Config,
  spec: BatchSpec,
  statistics: Mapping[str, Mapping[str, np.ndarray]] | None,
  tokenizer: Tokenizer | None,
) -> Tokenizer | Policy:
  """Returns the model of a run; only initialising it needs `statistics` {"actions", "state"}."""
  if config.kind == "tokenizer":
    actions = None if statistics is None else statistics["actions"]
    return tokenizers.make(config.model, spec, actions)
  return policies.make(config.model, spec, statistics, tokenizer)


def load(workdir: str | os.PathLike, step: int | None = None) -> Trained:
  """Returns what a working directory holds, at its newest checkpoint or at `step`."""
  content = read_description(workdir)
  config = config_lib.freeze(content["config"])
  spec = _spec(content["spec"])
  inner = content["tokenizer"]
  tokenizer = None if inner is None else tokenizers.make(inner["model"], _spec(inner["spec"]))
  step, params = checkpoint.load_params(workdir, step)
  model = build(config, spec, None, tokenizer)
  return Trained(
    config, spec, model, model if isinstance(model, Tokenizer) else tokenizer, params, step
  )


def load_tokenizer(workdir: str | os.PathLike) -> Trained:
  """As `load`, for a run that trained a tokenizer; ValueError for another kind."""
  trained = load(workdir)
  if trained.config.kind != "tokenizer":
    raise ValueError(
      f"{workdir} holds a {trained.config.kind}; a tokenizer's working directory is needed"
    )
  return trained


def check_tokenizer(
  trained: Trained, spec: BatchSpec, actions: Mapping[str, np.ndarray], where: str
) -> None:
  """Raises ValueError where a trained tokenizer does not fit a policy's training data.

  Args:
    trained: the tokenizer.
    spec: of the policy's batches.
    actions: statistics (datasets, A) of the policy's training actions.
    where: the tokenizer's working directory, for the message.
  """
  names = ("action_horizon", "action_dim", "action_names", "num_datasets", "dataset_names")
  for name in names:
    theirs, ours = getattr(trained.spec, name), getattr(spec, name)
    if theirs != ours:
      raise ValueError(f"tokenizer {where} has {name} {theirs}; the policy's data has {ours}")
  known = trained.params["statistics"]
  span = np.maximum(known["max"] - known["min"], 1e-6)
  for name in ("q01", "q99"):
    off = np.abs(known[name] - actions[name]) / span
    if off.max() > 0.1:
      row, dim = np.unravel_index(np.argmax(off), off.shape)
      raise ValueError(
        f"tokenizer {where} was trained on actions of other statistics: {name} of dimension {dim} "
        f"is {known[name][row, dim]:.4g} there, {actions[name][row, dim]:.4g} in the policy's data"
      )


def _spec(values: Mapping[str, Any]) -> BatchSpec:
  return BatchSpec(**values)
