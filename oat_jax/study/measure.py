"""What the comparison of tokenizers measures, on held-out windows."""

from collections.abc import Callable, Mapping
import functools
import hashlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oat_jax import tokenizers
from oat_jax.data import normalization
from oat_jax.data import pipeline
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers import analysis
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.train import config as train_config
from oat_jax.train import inputs
from oat_jax.train import models
from oat_jax.train import prepared

# Of the actions, as `normalization.parameters` gives them: the same for all tokenizers, whatever
# they normalise by themselves.
Units = Mapping[str, Any]

_SEQUENCES = 1024  # that are replaced or corrupted, to be decoded
_REPEATS = {1: 100, 256: 8}  # timed calls, by chunks a call


def plan(run: train_config.Config) -> dict[str, Any]:
  """What two runs must have in common so that what they made compares."""
  values = train_config.to_json(run)
  return {name: values[name] for name in ("model", "optimizer", "steps", "batch_size")}


class HeldOut(NamedTuple):
  """What all methods are measured on, and how."""

  windows: inputs.Subset
  units: Units  # [min, max] of the training actions is [-1, 1]
  executed: int  # steps of each chunk
  of: dict[str, Any]  # what tells these measurements from others


def held_out(split: inputs.Split, limit: int, executed: int) -> HeldOut:
  """Returns at most `limit` of the held-out windows; `executed` is cut to the chunk."""
  windows = inputs.evenly(split.validation, limit)
  units = normalization.parameters(split.statistics["actions"], "min_max", "actions")
  executed = min(executed, split.train.spec.action_horizon)
  sha = hashlib.sha256()
  batch = windows(np.arange(len(windows)))
  for leaf in jax.tree.leaves((batch, units["offset"], units["scale"])):
    sha.update(np.ascontiguousarray(leaf).tobytes())
  of = {"data": split.fingerprint, "windows": len(windows), "chunks": sha.hexdigest()[:16]}
  return HeldOut(windows, jax.device_put(units), executed, of | {"executed": executed})


def machine() -> dict[str, Any]:
  """Returns what measurements are taken on."""
  return {
    "devices": ", ".join(sorted({device.device_kind for device in jax.devices()})),
    "cores": os.cpu_count(),
    "cpu_only": jax.default_backend() == "cpu",
  }


def tokenizer(
  trained: models.Trained, windows: inputs.Subset, units: Units, executed: int
) -> dict[str, Any]:
  """Returns what can be said of a tokenizer without a policy and without a simulator.

  Of `figures`, means over windows on valid steps, `prefixes` holds lists over
  K = 1 .. N, and `cpu_us` {what: {chunks a call: CPU microseconds per chunk}}. `by_episode` holds
  {K: [mean squared error of each held-out episode]} for `analysis.powers_of_two`, in their order.
  """
  tokenizer = trained.tokenizer
  assert tokenizer is not None
  params, N, pad = jax.device_put(trained.params), tokenizer.max_tokens, tokenizer.pad_id
  # Host code reads the parameters where they are.
  encode = functools.partial(tokenizer.encode, trained.params if tokenizer.host_encode else params)
  errors = analysis.prefix_errors(tokenizer, executed)
  rows: dict[str, list[np.ndarray]] = {}
  for batch, valid_B in pipeline.epoch(windows, min(512, len(windows))):
    tokens_BN = encode(batch["actions"], batch["action_mask"], batch["dataset"])
    found = errors(params, units, batch, tokens_BN)
    found |= {"tokens_BN": tokens_BN, "dataset_B": batch["dataset"]}
    for name, values in found.items():
      rows.setdefault(name, []).append(np.asarray(values)[valid_B])
  whole = {name: np.concatenate(parts) for name, parts in rows.items()}
  tokens_BN, dataset_B = whole.pop("tokens_BN"), whole.pop("dataset_B")
  summary = analysis.summarise(**whole)
  episode_B = windows.windows.episode_W[windows.indices]
  by_episode_EN = np.stack(
    [summary["mse_BN"][episode_B == episode].mean(0) for episode in np.unique(episode_B)]
  )
  bits_N = analysis.bits_by_prefix(tokens_BN, tokenizer.vocab_size, pad, tokenizer.budgets)
  some = np.unique(np.linspace(0, len(tokens_BN) - 1, _SEQUENCES).round().astype(int))
  rng = np.random.default_rng(0)
  share = lambda make: analysis.decodable_share(
    tokenizer, params, make(tokens_BN[some], tokenizer.vocab_size, pad, rng), dataset_B[some]
  )
  learned = {name: trained.params.get(name, {}) for name in ("network", "codebook")}
  return {
    "facts": plan(trained.config)
    | {
      "learned": tokenizer.fit is None,
      "ordered": tokenizer.prefix_decodable,
      "parameters": sum(x.size for x in jax.tree.leaves(learned)),
      "max_tokens": N,
      "budgets": list(tokenizer.budgets),
      "vocab_size": tokenizer.vocab_size,
      "executed": executed,
    },
    "figures": {
      "tokens_per_chunk": float(analysis.lengths(tokens_BN, pad).mean()),
      "bits_per_chunk": float(bits_N[-1]),
      "mse": float(summary["mse_N"][-1]),
      "worst_dimension_mse": float(summary["worst_N"][-1]),
      "drift": float(summary["drift_N"][-1]),
      "codes": analysis.code_usage(tokens_BN, tokenizer.vocab_size, pad),
      "prefixes": {
        "bits": bits_N.tolist(),
        "mse": summary["mse_N"].tolist(),
        "worst_dimension_mse": summary["worst_N"].tolist(),
        "drift": summary["drift_N"].tolist(),
      },
      "decodable": {
        "random": share(analysis.random_tokens),
        "corrupted": share(analysis.corrupted_tokens),
      },
      "cpu_us": _costs(tokenizer, params, encode, windows, tokens_BN),
    },
    "by_episode": {str(K): by_episode_EN[:, K - 1].tolist() for K in analysis.powers_of_two(N)},
  }


def _costs(
  tokenizer: tokenizers.Tokenizer,
  params: Any,
  encode: Callable[..., Any],
  windows: inputs.Subset,
  tokens_WN: np.ndarray,
) -> dict[str, dict[str, float]]:
  """Returns {"encode" or "decode": {chunks a call: CPU microseconds per chunk}}."""
  costs: dict[str, dict[str, float]] = {"encode": {}, "decode": {}}
  for size, repeats in _REPEATS.items():
    rows = np.arange(size) % len(windows)
    batch, tokens_BN = windows(rows), jnp.asarray(tokens_WN[rows])
    chunks = (batch["actions"], batch["action_mask"], batch["dataset"])
    calls = {
      "encode": lambda chunks=chunks: encode(*chunks),
      "decode": lambda tokens_BN=tokens_BN, dataset_B=batch["dataset"]: tokenizer.decode(
        params, tokens_BN, None, dataset_B
      ),
    }
    for name, call in calls.items():
      costs[name][str(size)] = analysis.cpu_microseconds(call, repeats) / size
  return costs


def model(trained: models.Trained, windows: inputs.Subset, units: Units) -> dict[str, Any]:
  """Returns how well a policy's tokens can be told from the observation, on held-out windows.

  Of `figures`, means over windows, `bits` is the cross-entropy of a chunk's tokens (of padding only
  the first counts, which says where the chunk ends), and `sampled_mse` the error of the
  chunk that tokens drawn at temperature 1 decode to: bits over different vocabularies do not
  compare, this does.
  """
  policy, tokenizer = trained.model, trained.tokenizer
  assert tokenizer is not None and not isinstance(policy, tokenizers.Tokenizer)
  params = jax.device_put(trained.params)

  def score(params, batch, key):
    cross_entropy_BN = policy.evaluate(params, batch)["cross_entropy"]
    actions_BCA, _ = policy.act(params, batch, key, None, Sampling(temperature=1.0))
    return {
      "bits": cross_entropy_BN.sum(1) / np.log(2),
      "sampled_mse": tokenizer_lib.chunk_mse(units, batch, actions_BCA),
    }

  assert policy.prepare is not None
  size = min(512, len(windows))
  with_tokens = prepared.prepared(jax.jit(policy.prepare), lambda: params, windows, batch_size=size)
  compiled, rows = jax.jit(score), {}
  for number, (batch, valid_B) in enumerate(pipeline.epoch(with_tokens, size)):
    key = jax.random.fold_in(jax.random.key(0), number)
    for name, values in compiled(params, batch, key).items():
      rows.setdefault(name, []).append(np.asarray(values)[valid_B])
  return {"figures": {name: float(np.concatenate(x).mean()) for name, x in rows.items()}}
