"""A small text tower in SigLIP's files, and what it computes, in plain numpy.

Its layers, and their numbers, are those of the vision tower of `towers`.
"""

import json

import numpy as np
from safetensors.numpy import save_file
import tokenizers
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
import towers

WORDS = ("<pad>", "</s>", "<unk>", "lift", "push", "the", "mug", "slowly")
POSITIONS, EMBEDDING = 5, 6
CONFIG = {
  "hidden_size": towers.D,
  "intermediate_size": towers.F,
  "num_attention_heads": towers.HEADS,
  "num_hidden_layers": towers.LAYERS,
}


def tensors(seed=0):
  """{name: array} of the text tower, beside tensors of the other tower and of the loss."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: (0.3 * rng.normal(size=shape)).astype(np.float32)
  other = towers.tensors("siglip", seed=seed)
  layers = {
    name.replace("vision_model", "text_model"): x + draw(*x.shape)
    for name, x in other.items()
    if ".encoder." in name
  }
  own = {
    "embeddings.token_embedding.weight": draw(len(WORDS), towers.D),
    "embeddings.position_embedding.weight": draw(POSITIONS, towers.D),
    "final_layer_norm.weight": 1 + draw(towers.D),
    "final_layer_norm.bias": draw(towers.D),
    "head.weight": draw(EMBEDDING, towers.D),
    "head.bias": draw(EMBEDDING),
  }
  return other | layers | {f"text_model.{name}": x for name, x in own.items()}


def tokenizer():
  """Words in small letters, and an end token."""
  made = tokenizers.Tokenizer(models.WordLevel(dict(zip(WORDS, range(99))), unk_token="<unk>"))
  made.normalizer = normalizers.Lowercase()
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
  return made


def write(folder, seed=0, change=lambda tensors: tensors):
  """Writes the directory and returns it."""
  folder.mkdir(parents=True, exist_ok=True)
  save_file(change(tensors(seed)), folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps({"text_config": CONFIG}))
  tokenizer().save(str(folder / "tokenizer.json"))
  return folder


def forward(t, tokens):
  """Returns embeddings (N, EMBEDDING) of tokens (N, POSITIONS)."""
  top = "text_model"
  x = t[f"{top}.embeddings.token_embedding.weight"][np.array(tokens)].astype(np.float64)
  x = x + t[f"{top}.embeddings.position_embedding.weight"]
  _, linear, norm, *_ = towers.parts(t)
  x = norm(f"{top}.final_layer_norm", towers.layers(top, t, x))
  return linear(f"{top}.head", x[:, -1])
