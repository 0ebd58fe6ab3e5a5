"""What every self-test decodes: any tokens, because every sequence is a motion."""

from collections.abc import Callable
from typing import Any

import numpy as np

from oat_jax.tokenizers.tokenizer import Tokenizer

ROWS = 8


def some(budgets: tuple[int, ...]) -> list[int]:
  """Returns the shortest, a middle and the longest prefix."""
  return sorted({budgets[0], budgets[len(budgets) // 2], budgets[-1]})


def decoded(
  tokenizer: Tokenizer, decode: Callable[[np.ndarray, int], Any]
) -> tuple[np.ndarray, dict[int, Any]]:
  """Returns (tokens_BN, {K: `decode(tokens_BN, K)`}) of `ROWS` rows, the same each time."""
  rng = np.random.default_rng(0)
  tokens_BN = rng.integers(0, tokenizer.vocab_size, (ROWS, tokenizer.max_tokens), np.int32)
  return tokens_BN, {K: decode(tokens_BN, K) for K in some(tokenizer.budgets)}
