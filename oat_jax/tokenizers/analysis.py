"""What can be said about any tokenizer: errors by prefix, use of its codes, what decodes, its cost.

Axis letters as in oat_jax/batch.py; K is a prefix length in 1 .. N.
"""

from collections.abc import Callable, Sequence
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer


def lengths(tokens_BN: np.ndarray, pad_id: int | None = None) -> np.ndarray:
  """Returns int (B,): the tokens of each sequence, padding not counted."""
  if pad_id is None:
    return np.full(len(tokens_BN), tokens_BN.shape[1])
  return np.sum(tokens_BN != pad_id, axis=1)


def powers_of_two(max_tokens: int) -> list[int]:
  """Returns the prefix lengths that stand for all: powers of two up to N, and N."""
  return [K for K in range(1, max_tokens + 1) if K & (K - 1) == 0 or K == max_tokens]


def bits_by_prefix(
  tokens_BN: np.ndarray, vocab_size: int, pad_id: int | None = None, budgets: Sequence[int] = ()
) -> np.ndarray:
  """Returns (N,): mean tokens among the first 1 .. N, times log2 of the vocabulary.

  Of a K between two of the tokenizer's `budgets`, if it has any, the tokens of the lower one count:
  no more are decoded.
  """
  budgets_N = np.arange(1, tokens_BN.shape[1] + 1)
  if len(budgets):
    budgets_N = np.asarray(budgets)[np.searchsorted(budgets, budgets_N, side="right") - 1]
  lengths_B1 = lengths(tokens_BN, pad_id)[:, None]
  return np.minimum(lengths_B1, budgets_N).mean(0) * np.log2(vocab_size)


def code_usage(tokens_BN: np.ndarray, vocab_size: int, pad_id: int | None = None) -> dict[str, Any]:
  """Returns how many codes are used, overall and at each position.

  `used` counts distinct codes, `share` is that of all but padding, `perplexity` the exponential of
  the entropy of their frequencies: as many codes, equally used, would say as much. Where no
  sequence has a token both are 0. An id may mean another thing at each position: `used_a_position`
  and `perplexity_a_position` are means over the positions that any sequence reaches.
  """
  tokens_BN = np.asarray(tokens_BN)
  counts_NV = np.stack([np.bincount(tokens_B, minlength=vocab_size) for tokens_B in tokens_BN.T])
  if pad_id is not None:
    counts_NV[:, pad_id] = 0
  used, used_N = int(np.sum(counts_NV.sum(0) > 0)), np.sum(counts_NV > 0, axis=1)
  perplexity_N = np.array([_perplexity(counts_V) for counts_V in counts_NV])
  reached = max(1, int(np.sum(used_N > 0)))
  return {
    "used": used,
    "share": used / (vocab_size - (pad_id is not None)),
    "perplexity": _perplexity(counts_NV.sum(0)),
    "used_by_position": used_N.tolist(),
    "perplexity_by_position": perplexity_N.tolist(),
    "used_a_position": float(used_N.sum() / reached),
    "perplexity_a_position": float(perplexity_N.sum() / reached),
  }


def _perplexity(counts_V: np.ndarray) -> float:
  if not counts_V.sum():
    return 0.0
  p = counts_V[counts_V > 0] / counts_V.sum()
  return float(np.exp(-np.sum(p * np.log(p))))


def prefix_errors(tokenizer: Tokenizer, executed: int) -> Callable[..., dict[str, jax.Array]]:
  """Returns a compiled (params, units, batch, tokens_BN) -> errors of the prefixes 1 .. N.

  They are of normalised actions, on valid steps and dimensions; `units` holds the `offset` and
  `scale` of `normalization.parameters`, which need not be the tokenizer's own. `squared_BNA` is
  summed over the steps, `count_BA` is how many there are, and `cumulative_BNA` the error that has
  added up behind the first `executed` steps: of displacements, a position error.
  """

  def errors(params, units, batch, tokens_BN):
    of = lambda x_BCA: tokenizer_lib.normalize(units, x_BCA, batch["dataset"])
    mask_BCA = tokenizer_lib.valid(batch)

    def error(num_tokens):
      decoded_BCA = tokenizer.decode(params, tokens_BN, num_tokens, batch["dataset"])
      error_BCA = jnp.where(mask_BCA, of(decoded_BCA) - of(batch["actions"]), 0)
      return jnp.sum(jnp.square(error_BCA), 1), jnp.sum(error_BCA[:, :executed], 1)

    squared_NBA, cumulative_NBA = jax.lax.map(error, jnp.arange(1, tokenizer.max_tokens + 1))
    return {
      "squared_BNA": squared_NBA.swapaxes(0, 1),
      "cumulative_BNA": cumulative_NBA.swapaxes(0, 1),
      "count_BA": jnp.sum(mask_BCA, 1),
    }

  return jax.jit(errors)


def summarise(
  squared_BNA: np.ndarray, cumulative_BNA: np.ndarray, count_BA: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns, of what `prefix_errors` gives for all windows, figures by prefix length.

  Returns:
    mse_BN: of each window; mse_N: its mean over windows; worst_N: the mean squared error of the
    dimension that has the largest one; drift_N: root mean square of the cumulative error.
  """
  mse_BN = squared_BNA.sum(-1) / count_BA.sum(-1)[:, None]
  there_A = count_BA.sum(0) > 0
  by_dimension_NA = squared_BNA.sum(0)[:, there_A] / count_BA.sum(0)[there_A]
  drift_N = np.sqrt(np.square(cumulative_BNA).sum((0, 2)) / np.sum(count_BA > 0))
  return {
    "mse_BN": mse_BN,
    "mse_N": mse_BN.mean(0),
    "worst_N": by_dimension_NA.max(-1),
    "drift_N": drift_N,
  }


def random_tokens(
  tokens_BN: np.ndarray, vocab_size: int, pad_id: int | None, rng: np.random.Generator
) -> np.ndarray:
  """Returns sequences of the same lengths, every token drawn anew from all but padding."""
  drawn_BN = _codes(vocab_size, pad_id)[rng.integers(0, _size(vocab_size, pad_id), tokens_BN.shape)]
  return np.where(tokens_BN == pad_id, tokens_BN, drawn_BN).astype(np.int32)


def corrupted_tokens(
  tokens_BN: np.ndarray, vocab_size: int, pad_id: int | None, rng: np.random.Generator
) -> np.ndarray:
  """Returns the sequences with one token of each, padding apart, replaced by another code."""
  out_BN = np.array(tokens_BN, np.int32)
  lengths_B = lengths(out_BN, pad_id)
  rows = np.flatnonzero(lengths_B)  # an empty sequence has no token to replace
  places = np.floor(rng.uniform(size=len(rows)) * lengths_B[rows]).astype(int)
  codes, old = _codes(vocab_size, pad_id), out_BN[rows, places]
  ranks = np.searchsorted(codes, old) + rng.integers(1, max(2, len(codes)), len(rows))
  out_BN[rows, places] = codes[ranks % len(codes)]
  return out_BN


def _codes(vocab_size: int, pad_id: int | None) -> np.ndarray:
  return np.delete(np.arange(vocab_size), [] if pad_id is None else pad_id)


def _size(vocab_size: int, pad_id: int | None) -> int:
  return vocab_size - (pad_id is not None)


def decodable_share(
  tokenizer: Tokenizer, params: Any, tokens_BN: np.ndarray, dataset_B: np.ndarray
) -> dict[str, float]:
  """Returns shares of the sequences: understood by decode, and of chunks finite and in range.

  The range is that of the training actions. A sequence that is not understood decodes to a chunk
  too, but to one that its tokens do not say.
  """
  decodable_B = np.ones(len(tokens_BN), bool)
  if tokenizer.decodable is not None:
    decodable_B = np.asarray(tokenizer.decodable(params, tokens_BN))
  chunks_BCA = np.asarray(tokenizer.decode(params, tokens_BN, None, dataset_B))
  low_B1A, high_B1A = (
    np.asarray(params["statistics"][name])[dataset_B][:, None] for name in ("min", "max")
  )
  finite_B = np.isfinite(chunks_BCA).all((1, 2))
  inside_B = ((chunks_BCA >= low_B1A) & (chunks_BCA <= high_B1A)).all((1, 2))
  shares = {"decodable": decodable_B, "finite": finite_B, "in_range": inside_B}
  return {name: float(np.mean(each_B)) for name, each_B in shares.items()}


def cpu_microseconds(call: Callable[[], Any], repeats: int) -> float:
  """Returns the mean CPU time, of all threads, of `call()`, warm; its result is waited for."""
  for _ in range(2):
    jax.block_until_ready(call())
  begin = time.process_time()
  for _ in range(repeats):
    jax.block_until_ready(call())
  return 1e6 * (time.process_time() - begin) / repeats
