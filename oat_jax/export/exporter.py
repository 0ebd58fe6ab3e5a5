"""From a run's working directory to an export directory: what launch/export.py calls."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax import config as config_lib
from oat_jax import files
from oat_jax import parameters
from oat_jax.data import normalization
from oat_jax.envs import goals
from oat_jax.export import card
from oat_jax.export import directory
from oat_jax.export import functions as functions_lib
from oat_jax.export import samples
from oat_jax.export import steps
from oat_jax.export import versions
from oat_jax.perception import observation
from oat_jax.policies import anytime
from oat_jax.policies import decoding
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.train import config as train_config
from oat_jax.train import inputs
from oat_jax.train import models

DTYPES = ("float32", "bfloat16")
WINDOWS = 1024  # held-out ones that tolerances are measured on
RATE_WINDOWS = (
  200_000  # training ones that rates are measured on, evenly spaced where there are more
)


class Seen(NamedTuple):
  """What the run's data say of a model, where they are there.

  Attributes:
    windows: a batch of held-out windows.
    rate_A: the largest change of each action between two steps of a demonstration, or its range,
      where it never changed.
    tolerances: {K: with which K tokens are spent on average}, of a policy that refines.
  """

  windows: Mapping[str, Any]
  rate_A: np.ndarray
  tolerances: dict[str, float]


def export(
  workdir: str | os.PathLike,
  out: str | os.PathLike,
  *,
  step: int | str | None = None,
  dtype: str = "float32",
  temperature: float = 0.0,
  top_k: int = 0,
) -> directory.Spec:
  """Writes the export directory of a run's tokenizer or policy; returns its spec.

  What the run's held-out windows tell (the largest change from step to step, tolerances of early
  ends, inputs of the self-test) is in it where the data still are at their path; else the self-test
  has inputs drawn by the statistics, and there is neither rate nor tolerance.

  Args:
    workdir: of the run.
    out: a new directory.
    step: of the checkpoint; "best": that of `config.keep_best`; the newest if None.
    dtype: how the network's parameters are stored.
    temperature, top_k: how the policy's tokens are drawn.

  Raises:
    ValueError, FileNotFoundError: there is nothing to export, `out` holds something, or an argument
      does not fit the model.
  """
  config_lib.choose(dtype, DTYPES, "dtype")
  files.check_new(out)
  trained = models.load(workdir, steps.chosen(workdir, step))
  sampling = Sampling(temperature, top_k)
  decoding.check(sampling)
  draws = isinstance(trained.model, Policy) and trained.tokenizer is not None
  if sampling != Sampling() and not draws:
    raise ValueError(f"{sampling} is given, but {workdir} holds no policy that draws tokens")
  description = models.read_description(workdir)
  seen = look(trained, description["dataset_fingerprint"], sampling)
  params = jax.device_get(functions_lib.stored(trained.params, dtype))
  print(f"lowering for {', '.join(functions_lib.PLATFORMS)}", flush=True)
  built = functions_lib.build(trained.model, trained.tokenizer, params, sampling)
  selftest = _selftest(trained, built, params, seen)
  spec = _spec(trained, built, sampling, seen, dtype, description, workdir)
  arrays = parameters.to_arrays(params)
  serialised = {name: bytes(each.serialize()) for name, each in built.items()}
  size = sum(x.size for x in arrays.values())
  text = card.text(spec, trained.config, steps.held_out(workdir, trained.step), size)
  directory.write(out, spec, arrays, serialised, parameters.to_arrays(selftest), text)
  return directory.read(out).spec


def look(trained: models.Trained, fingerprint: str, sampling: Sampling) -> Seen | None:
  """Returns what the run's data say; None, and says why, where they are not at their path.

  Data that would have to be copied here, and those of another `fingerprint`, are not there.
  """
  data = trained.config.data
  try:
    if remote := [each.path for each in data.datasets().values() if "://" in each.path]:
      raise ValueError(f"{remote[0]} is not on this machine")
    split = inputs.load(data, trained.config.kind == "policy")
    if split.fingerprint != fingerprint:
      raise ValueError("they are others by now")
  except (OSError, ValueError, ImportError) as error:
    print(f"note: without the run's data there is no rate and no tolerance ({error})", flush=True)
    return None
  held_out = inputs.evenly(split.validation, samples.ROWS)
  tolerances = {}
  if isinstance(trained.model, Policy) and trained.model.refines:
    tolerances = _tolerances(trained, sampling, inputs.evenly(split.validation, WINDOWS))
  windows = held_out(np.resize(np.arange(len(held_out)), samples.ROWS))
  return Seen(windows, _rate(split), tolerances)


def _rate(split: inputs.Split) -> np.ndarray:
  windows, size = inputs.evenly(split.train.without_images(), RATE_WINDOWS), 4096
  rate_A = 0.0
  for first in range(0, len(windows), size):
    chunks = windows(np.arange(first, min(first + size, len(windows))))
    both_BC = chunks["action_mask"][:, 1:] & chunks["action_mask"][:, :-1]
    change_BCA = np.abs(np.diff(chunks["actions"], axis=1)) * both_BC[..., None]
    rate_A = np.maximum(rate_A, change_BCA.max((0, 1)))
  known = split.statistics["actions"]
  span_A = np.maximum((known["max"] - known["min"]).max(0), 1e-6)
  return np.where(rate_A > 0, rate_A, span_A)


def _tolerances(
  trained: models.Trained, sampling: Sampling, windows: inputs.Subset
) -> dict[str, float]:
  policy: Any = trained.model
  key, zero = jax.random.key(0), np.float32(0)
  look = jax.jit(lambda params, batch: policy.act(params, batch, key, None, sampling, zero))
  found = []
  size = min(128, len(windows))
  for first in range(0, len(windows), size):
    ids_B = np.minimum(np.arange(first, first + size), len(windows) - 1)  # all of one shape
    batch = windows(ids_B)
    seen = {name: batch[name] for name in batch_lib.ACTING}
    _, info = look(trained.params, seen)
    found.append(np.asarray(info["refinement_BX"])[: len(windows) - first])
  expected_WX = np.concatenate(found)
  calibrate = lambda K: anytime.calibrate(expected_WX, policy.budgets, K)
  return {str(K): calibrate(K) for K in policy.budgets[:-1]}


def _selftest(
  trained: models.Trained, built: Mapping[str, Any], params: Any, seen: Seen | None
) -> dict[str, Any]:
  """Returns inputs and outputs of every function, nested by its name."""
  windows = _drawn(trained) if seen is None else seen.windows
  call = {name: jax.jit(each.call) for name, each in built.items()}
  policy = isinstance(trained.model, Policy)
  inner = params.get("tokenizer") if policy else params
  found: dict[str, Any] = {}
  if trained.tokenizer is not None:
    tokenizer, dataset_B = trained.tokenizer, windows["dataset"]
    decode = lambda tokens_BN, K: call["decode"](inner, tokens_BN, np.int32(K), dataset_B)
    tokens_BN, actions = samples.decoded(tokenizer, decode)
    found["decode"] = {"tokens": tokens_BN, "dataset": dataset_B}
    found["decode"]["actions"] = {str(K): x for K, x in actions.items()}
    if "encode" in call:
      chunk = windows["actions"], windows["action_mask"], dataset_B
      found["encode"] = {"actions": chunk[0], "mask": chunk[1], "dataset": chunk[2]}
      found["encode"]["tokens"] = call["encode"](inner, *chunk)
  if policy:
    batch = {name: windows[name] for name in batch_lib.ACTING}
    key = np.array([0, 1], np.uint32)
    some = samples.some(trained.model.budgets)
    acted = {str(K): call["act"](params, batch, key, np.int32(K)) for K in some}
    found["act"] = {"batch": batch, "key": key, "actions": {K: x for K, (x, _) in acted.items()}}
    if trained.tokenizer is not None:
      found["act"]["tokens"] = {K: info["tokens_BN"] for K, (_, info) in acted.items()}
    if "act_until" in call:
      tolerance = np.float32(0.01 if seen is None else np.median(list(seen.tolerances.values())))
      K = np.int32(trained.model.max_tokens)
      _, info = call["act_until"](params, batch, key, K, tolerance)
      found["act_until"] = {"tolerance": tolerance, "tokens": info["tokens_BN"]}
  return jax.device_get(found)


def _drawn(trained: models.Trained) -> dict[str, Any]:
  """Returns windows drawn by the statistics, where there are no data."""
  batch = batch_lib.fake(trained.spec, samples.ROWS)
  known = _action_statistics(trained.params)
  low_BA, high_BA = (np.asarray(known[end])[batch["dataset"]][:, None] for end in ("min", "max"))
  batch["actions"] = (low_BA + (batch["actions"] + 1) / 2 * (high_BA - low_BA)).astype(np.float32)
  return batch


def _action_statistics(params: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the statistics (datasets, A) of the actions that a model carries."""
  if "tokenizer" in params:
    return params["tokenizer"]["statistics"]
  return params.get("action_statistics", params["statistics"])


def _spec(
  trained: models.Trained,
  built: Mapping[str, Any],
  sampling: Sampling,
  seen: Seen | None,
  dtype: str,
  description: Mapping[str, Any],
  workdir: str | os.PathLike,
) -> directory.Spec:
  spec, tokenizer, config = trained.spec, trained.tokenizer, trained.config
  policy = config.kind == "policy"
  known = _action_statistics(trained.params)
  statistics = {"actions": _lists(known)}
  if policy:
    statistics["state"] = _lists(trained.params["statistics"])
  low_GA, high_GA = np.asarray(known["min"]), np.asarray(known["max"])
  inner = description["tokenizer"]
  if not policy:
    inner = {"model": description["config"]["model"], "spec": description["spec"]}
  about = {
    name: {"file": f"{name}.jax_exported"} | functions_lib.describe(each)
    for name, each in built.items()
  }
  return directory.Spec(
    kind=config.kind,
    name=config.model["name"],
    batch=spec,
    dtype=dtype,
    state=_features(config.data) if policy else (),
    observation=_observation(trained) if policy else {},
    actions={"low": low_GA.tolist(), "high": high_GA.tolist(), "units": _units(config.data)},
    limits={
      "low": low_GA.min(0).tolist(),
      "high": high_GA.max(0).tolist(),
      "rate": None if seen is None else seen.rate_A.tolist(),
    },
    statistics=statistics,
    tokens=None
    if tokenizer is None
    else {
      "vocab_size": tokenizer.vocab_size,
      "max_tokens": tokenizer.max_tokens,
      "budgets": list(tokenizer.budgets),
      "prefix_decodable": tokenizer.prefix_decodable,
      "pad_id": tokenizer.pad_id,
    },
    sampling=sampling._asdict(),
    tolerances={} if seen is None else seen.tolerances,
    functions=about,
    arrays={},
    sha256={},
    checkpoint={
      "step": trained.step,
      "digest": models.digest(trained),
      "workdir": pathlib.Path(workdir).name,
      "dataset_fingerprint": description["dataset_fingerprint"],
    },
    versions=versions.of("jax", "jaxlib", "flax", "numpy"),
    source={
      "policy": description["config"]["model"] if policy else None,
      "tokenizer": None if inner is None else {"model": inner["model"], "spec": inner["spec"]},
    },
    demonstrated=None if config.data.mixture else goals.demonstrated(config.data.path),
  )


def _lists(statistics: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what JSON holds of a model's statistics."""
  names = [name for name in normalization.Statistics._fields if name in statistics]
  return {name: np.asarray(statistics[name]).tolist() for name in names}


def _units(data: train_config.Data) -> str:
  """Returns what actions and states mean: the dataset's own, or a known dataset's standard."""
  standards = sorted({each.standard for each in data.datasets().values() if each.standard})
  if standards:
    return f"standardised from {', '.join(standards)}"
  return "rearranged" if data.actions or data.states else batch_lib.OWN_UNITS


def _features(data: train_config.Data) -> tuple[str, ...]:
  """Returns what `state` is made of: features of the dataset, or dimensions of a known one."""
  return data.states or (f"standard:{data.standard}",) if data.standard else data.state


def _observation(trained: models.Trained) -> dict[str, Any]:
  """Returns {name: {dtype, shape, range}} of what a policy observes."""
  spec = trained.spec
  like = batch_lib.shapes(spec, 1)["observation"]
  ranges = {"task": [0, spec.num_tasks - 1]}
  found = {}
  for name, (shape, dtype) in like.items():
    found[name] = {"dtype": str(dtype), "shape": ["B", *shape[1:]]}
    if name in ranges or name.startswith("image_"):
      found[name]["range"] = ranges.get(name, [0, 255])
  if spec.language_dim:
    names = [
      name for name, _ in parameters.flat(trained.params) if name.endswith(observation.LANGUAGE)
    ]
    found["language"]["of_tasks"] = names[0]
  return found
