"""From an export's configurations to its model, and functions, built anew."""

from collections.abc import Mapping, Sequence
from typing import Any

from oat_jax import batch as batch_lib
from oat_jax import policies
from oat_jax import tokenizers
from oat_jax.export import directory
from oat_jax.export import functions as functions_lib
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers.tokenizer import Tokenizer


def models(
  source: Mapping[str, Any], spec: batch_lib.BatchSpec
) -> tuple[Policy | Tokenizer, Tokenizer | None]:
  """Returns (the model, its tokenizer, if any) of `Spec.source`."""
  tokenizer = None
  if source["tokenizer"] is not None:
    inner = source["tokenizer"]
    tokenizer = tokenizers.make(inner["model"], batch_lib.BatchSpec(**inner["spec"]))
  if source["policy"] is None:
    assert tokenizer is not None, "a model is a policy or a tokenizer"
    return tokenizer, tokenizer
  return policies.make(source["policy"], spec, None, tokenizer), tokenizer


def functions(
  spec: directory.Spec, params: Mapping[str, Any], platforms: Sequence[str]
) -> dict[str, Any]:
  """Returns what `functions.build` returns, for parameters as the export holds them."""
  model, tokenizer = models(spec.source, spec.batch)
  sampling = Sampling(**spec.sampling)
  return functions_lib.build(model, tokenizer, params, sampling, platforms)
