"""A model's functions, serialised by jax.export: parameters go in, nothing of the code comes along.

One program of each serves every batch size, prefix length, and the platforms it was lowered for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers.tokenizer import Tokenizer

PLATFORMS = ("cpu", "cuda", "tpu")
KEY_SHAPE = (2,)  # of the words of a threefry key


def build(
  model: Policy | Tokenizer,
  tokenizer: Tokenizer | None,
  params: Mapping[str, Any],
  sampling: Sampling = Sampling(),
  platforms: Sequence[str] = PLATFORMS,
) -> dict[str, export.Exported]:
  """Returns what a model does, by name.

  act: (params, batch, key (2,) uint32, num_tokens int32) -> (actions_BCA, info), of a policy.
  act_until: the same with a tolerance, float32, behind; of a policy that refines.
  encode: (params, actions_BCA, action_mask_BC, dataset_B) -> tokens_BN. `params` are those of the
    tokenizer alone. Not there where encoding is host code (FAST).
  decode: (params, tokens_BN, num_tokens int32, dataset_B) -> actions_BCA.

  Args:
    model: a policy, or a tokenizer.
    tokenizer: the model itself, the policy's, or None.
    params: of the model, or shapes of them; those of the network may be bfloat16, and count as
      float32.
    sampling: of the tokens of `act`.
    platforms: to lower for.
  """
  (B,) = export.symbolic_shape("B")
  row = lambda leaf: jax.ShapeDtypeStruct((B, *leaf[0][1:]), leaf[1])
  is_leaf = lambda x: isinstance(x, tuple)
  batch = jax.tree.map(row, batch_lib.shapes(model.spec, 1), is_leaf=is_leaf)
  like = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)
  scalar = lambda dtype: jax.ShapeDtypeStruct((), np.dtype(dtype))
  found: dict[str, export.Exported] = {}

  def add(name, function, params, *inputs):
    whole = jax.jit(lambda params, *inputs: function(_as_trained(params), *inputs))
    found[name] = export.export(whole, platforms=platforms)(like(params), *inputs)

  if isinstance(model, Policy):
    seen = {name: batch[name] for name in batch_lib.ACTING}

    def act(params, batch, words, num_tokens, tolerance=None):
      key = jax.random.wrap_key_data(words, impl="threefry2x32")
      return model.act(params, batch, key, num_tokens, sampling, tolerance)

    inputs = seen, jax.ShapeDtypeStruct(KEY_SHAPE, np.uint32), scalar(np.int32)
    add("act", act, params, *inputs)
    if model.refines:
      add("act_until", act, params, *inputs, scalar(np.float32))
    params = params.get("tokenizer", {})
  if tokenizer is not None:
    tokens_BN = jax.ShapeDtypeStruct((B, tokenizer.max_tokens), np.int32)
    if not tokenizer.host_encode:
      chunk = batch["actions"], batch["action_mask"], batch["dataset"]
      add("encode", tokenizer.encode, params, *chunk)
    add("decode", tokenizer.decode, params, tokens_BN, scalar(np.int32), batch["dataset"])
  return found


def stored(params: Any, dtype: str) -> Any:
  """Returns parameters with float32 arrays of the network as `dtype`; statistics stay as they are.

  What `build` makes takes them so.
  """
  convert = lambda x: jnp.asarray(x, dtype) if x.dtype == np.float32 else x
  return _map_networks(params, lambda network: jax.tree.map(convert, network))


def _as_trained(params: Any) -> Any:
  convert = lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
  return jax.tree.map(convert, params)


def _map_networks(params: Mapping[str, Any], change: Any) -> dict[str, Any]:
  """Changes `network` of a model, and of the tokenizer inside it."""
  changed = {
    "network": change,
    "tokenizer": lambda inner: _map_networks(inner, change),
  }
  return {name: changed.get(name, lambda x: x)(tree) for name, tree in params.items()}


def describe(exported: export.Exported) -> dict[str, Any]:
  """Returns inputs but for the parameters, outputs, platforms and calling convention, for JSON."""
  args, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
  of = lambda aval: [str(aval.dtype), [n if isinstance(n, int) else str(n) for n in aval.shape]]
  return {
    "inputs": jax.tree.map(of, list(args[1:])),
    "outputs": jax.tree.map(of, outputs),
    "platforms": list(exported.platforms),
    "calling_convention": exported.calling_convention_version,
  }
