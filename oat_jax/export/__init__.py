"""Out of the training machine: a directory that holds all that acting needs, and who reads it."""

from typing import Any


def load(path: Any) -> Any:
  """Returns the policy or tokenizer of an export directory; see `loader.load`."""
  from oat_jax.export import loader

  return loader.load(path)
