"""SigLIP's text tower (arXiv 2303.15343): instructions -> embeddings, by weights in a directory.

The directory is one of Hugging Face's: `config.json`, `model.safetensors` and `tokenizer.json`. The
tower is that of vit.py without a mask: a text is filled up to all positions, of which the last
one's output is its embedding. Axis letters: N texts, P positions, D width, E embedding.
"""

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from oat_jax.perception import pretrained
from oat_jax.perception import vit

WHERE = "config.data.text_encoder"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_TEXTS = 64  # embedded at once


def embed(path: str | os.PathLike, texts: Sequence[str]) -> np.ndarray:
  """Returns each text's embedding, float32 (N, E), as SigLIP's `get_text_features`.

  Of a text with more tokens than positions the last ones are cut off, and a line says so.

  Raises:
    FileNotFoundError: the directory lacks one of the three files.
    ValueError: a file is not what it should be, or they do not fit each other; names the file and
      the tensor.
  """
  folder = pathlib.Path(path)
  missing = [name for name in _FILES if not (folder / name).is_file()]
  if missing:
    raise FileNotFoundError(
      f"{WHERE} is {folder}; it has no {missing[0]}. A directory with {', '.join(_FILES)} is wanted"
    )
  config = _config(folder / "config.json")
  arrays = pretrained.read_text(folder / "model.safetensors", config)
  table_VD, positions_PD = arrays.pop("table"), arrays.pop("positions")
  tokens_NP = tokenize(folder / "tokenizer.json", texts, len(positions_PD))
  if tokens_NP.max() >= len(table_VD):
    raise ValueError(
      f"{folder}: tokenizer.json gives token {tokens_NP.max()}; model.safetensors embeds "
      f"{len(table_VD)} of them"
    )
  params: Any = jax.device_put(traverse_util.unflatten_dict(arrays, sep="/"))
  compiled = jax.jit(tower, static_argnums=0)
  size = min(_TEXTS, len(texts))
  parts = []
  for start in range(0, len(texts), size):  # the last of them filled up by the first texts
    rows = np.arange(start, start + size) % len(texts)
    parts.append(np.asarray(compiled(config, params, table_VD[tokens_NP[rows]] + positions_PD)))
  return np.concatenate(parts)[: len(texts)]


def tower(config: vit.Config, params: Any, x_NPD: jax.Array) -> jax.Array:
  """Maps tokens, embedded and with positions, to their texts' embeddings (N, E)."""
  for i in range(config.layers):
    block = vit.Block(config, jnp.float32)
    x_NPD = jnp.asarray(block.apply({"params": params[f"blocks_{i}"]}, x_NPD))
  x_NPD = jnp.asarray(vit.LayerNorm().apply({"params": params["norm_out"]}, x_NPD))
  return x_NPD[:, -1] @ params["head"]["w"] + params["head"]["b"]


def tokenize(path: pathlib.Path, texts: Sequence[str], positions: int) -> np.ndarray:
  """Returns each text's tokens, int32 (N, positions), by a `tokenizer.json`.

  Filled up as the file says, or else by its end token, as SigLIP's are.
  """
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # it raises nothing more specific
    raise ValueError(f"{path} is no tokenizer of Hugging Face's: {error}") from error
  padding = tokenizer.padding
  tokenizer.no_padding()
  tokenizer.enable_truncation(positions)
  end = tokenizer.encode("").ids
  if not end:
    raise ValueError(f"{path} puts no end token behind a text; SigLIP's does")
  encoded = [tokenizer.encode(text) for text in texts]
  cut = [text for text, each in zip(texts, encoded) if each.overflowing]
  if cut:
    print(
      f"{path.parent}: {len(cut)} of {len(texts)} instructions are cut to its {positions} tokens, "
      f"the first: {cut[0]!r}",
      flush=True,
    )
  tokens_NP = np.full((len(texts), positions), padding["pad_id"] if padding else end[-1], np.int32)
  for row, each in zip(tokens_NP, encoded):
    row[: len(each.ids)] = each.ids
  return tokens_NP


def _config(path: pathlib.Path) -> vit.Config:
  """Returns the text tower's sizes; those that the file leaves out are SigLIP B's."""
  try:
    content = json.loads(path.read_text())
    sizes = content.get("text_config", content)
    return vit.Config(
      width=sizes.get("hidden_size", 768),
      layers=sizes.get("num_hidden_layers", 12),
      heads=sizes.get("num_attention_heads", 12),
      mlp_width=sizes.get("intermediate_size", 3072),
    )
  except (AttributeError, TypeError, ValueError) as error:
    text = str(error).replace("config.model.observation.images.vit.", "")
    raise ValueError(f"{path} does not say a SigLIP text tower's sizes: {text}") from error
