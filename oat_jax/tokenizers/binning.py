"""One token per step and dimension: its value's bin, as in OpenVLA (arXiv 2406.09246).

Tokens are step-major: all dimensions of the first step, then of the second, ...
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.data import normalization
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

SPACINGS = ("uniform", "quantile")


@dataclasses.dataclass(frozen=True)
class Config:
  """What configs/tokenizer_bin.py sets."""

  bins: int = 256  # V
  # uniform: bins of one width over [-1, 1] of normalised actions, values outside in the first and
  # the last one. quantile: bins that hold equally many of the training values.
  spacing: str = "uniform"
  normalization: str = "q01_q99"

  def __post_init__(self):
    config_lib.at_least(self.bins, 2, "config.model.bins")
    config_lib.choose(self.spacing, SPACINGS, "config.model.spacing")
    config_lib.choose(self.normalization, ("q01_q99", "min_max"), "config.model.normalization")


def make(config: Config, spec: BatchSpec, statistics: tokenizer_lib.Statistics | None) -> Tokenizer:
  """Returns Bin: N = C * A tokens; see `tokenizer.Tokenizer`.

  Steps that the mask hides are encoded, and values that no token of the prefix says are decoded, as
  their dimension's training mean. `fitted` holds, for every dataset and dimension in normalised
  units, the inner `edges` (datasets, A, V - 1), each the lower end of a bin, and the `values`
  (datasets, A, V) that the bins decode to.
  """
  C, A, V = spec.action_horizon, spec.action_dim, config.bins

  def fit(actions_WCA, action_mask_WC, dataset_W):
    known: Any = normalization.parameters(statistics, config.normalization, "actions")
    # A dimension that is not scaled may lie anywhere.
    low, high = np.where(known["mask"], [[[-1.0]], [[1.0]]], [known["min"], known["max"]])
    edges = np.linspace(low, high, V + 1, axis=-1)
    edges, values = edges[..., 1:-1], (edges[..., 1:] + edges[..., :-1]) / 2
    if config.spacing == "quantile":
      x_WCA: Any = np.asarray(actions_WCA, np.float32)
      x_WCA = tokenizer_lib.normalize(known, x_WCA, dataset_W)
      for d in range(spec.num_datasets):
        x_XA = x_WCA[action_mask_WC & (dataset_W == d)[:, None]]
        if not len(x_XA):
          raise ValueError(f"quantile bins need chunks of every dataset; {d} has none")
        for a in range(A):
          edges[d, a], values[d, a] = _quantile_bins(x_XA[:, a], V)
    fitted = {"edges": edges.astype(np.float32), "values": values.astype(np.float32)}
    return {"statistics": known, "fitted": fitted}

  def table(params, name, width):
    x, wanted = params["fitted"][name], (spec.num_datasets, A, width)
    if x.shape != wanted:
      raise ValueError(f"fitted '{name}' has shape {list(x.shape)}; {list(wanted)} is needed")
    return x

  def encode(params, actions_BCA, action_mask_BC, dataset_B=None):
    known = params["statistics"]
    x_BCA = jnp.where(action_mask_BC[..., None], actions_BCA, _rows(known["mean"], dataset_B))
    x_BCA = tokenizer_lib.normalize(known, x_BCA, dataset_B)
    edges_BAX = _rows(table(params, "edges", V - 1), dataset_B)[:, 0]
    edges_BAX = jnp.broadcast_to(edges_BAX, (x_BCA.shape[0], *edges_BAX.shape[1:]))
    find = jax.vmap(lambda edges_X, x_C: jnp.searchsorted(edges_X, x_C, side="right"), (0, 1), 1)
    return jax.vmap(find)(edges_BAX, x_BCA).reshape(-1, C * A)

  def decode(params, tokens_BN, num_tokens, dataset_B=None):
    known = params["statistics"]
    datasets = 0 if dataset_B is None else dataset_B[:, None, None]
    x_BCA = table(params, "values", V)[datasets, np.arange(A), tokens_BN.reshape(-1, C, A)]
    x_BCA = tokenizer_lib.denormalize(known, x_BCA, dataset_B)
    said_CA = (jnp.arange(C * A) < num_tokens).reshape(C, A)
    return jnp.where(said_CA, x_BCA, _rows(known["mean"], dataset_B))

  return Tokenizer(
    encode=encode,
    decode=decode,
    spec=spec,
    vocab_size=V,
    max_tokens=C * A,
    coordinates=np.linspace(-1, 1, V, dtype=np.float32)[:, None],
    fit=fit,
  )


def _rows(x: jax.Array, dataset_B: jax.Array | None) -> jax.Array:
  """(datasets, A, ...) -> (B or 1, 1, A, ...)."""
  return (x[:1] if dataset_B is None else x[dataset_B])[:, None]


def _quantile_bins(x_X: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns inner edges (bins - 1) and the mean of each bin's values (bins).

  Values that occur often make edges coincide, and bins between these stay empty: they stand for the
  middle of their edges.
  """
  # Edges as encode compares with them.
  edges_X = np.quantile(x_X, np.linspace(0, 1, bins + 1)).astype(np.float32)
  inner_X = edges_X[1:-1]
  bins_X = np.searchsorted(inner_X, x_X, side="right")
  counts_V = np.bincount(bins_X, minlength=bins)
  sums_V = np.bincount(bins_X, weights=x_X, minlength=bins)
  middles_V = (edges_X[1:] + edges_X[:-1]) / 2
  return inner_X, np.where(counts_V, sums_V / np.maximum(counts_V, 1), middles_V)
