"""Sizes of tokenizers and policies, behind the comma of an argument: `policy_oat.py:mt4,20m`.

A size alone, `policy_oat.py:1b`, takes a robot with three cameras, see `generic`.

Learning rates fall with the width, 1e-3 at 128: with AdamW the right step of a matrix is inversely
proportional to its inputs (arXiv 2203.03466); embeddings, which are few, take the same. From 80m on
layers are one scan, whose activations are computed again in the backward pass, in bfloat16; so are,
at any size, the layers that see the robot's three cameras.

Policies count without the encoder of images, which has a column of its own. From 20m on widths
divide over 16 parts of fsdp and heads over 8 of tensor.
"""

from typing import Any

from ml_collections import ConfigDict

# name: width, head_width, layers, width of the observation's MLP, and of the ViT that sees cameras:
# width, heads, layers. Published sizes: policy 5m, tokenizer 6m.
POLICIES = {
  "60k": (16, 8, 3, 64, (64, 4, 2)),
  "250k": (48, 16, 3, 128, (96, 4, 3)),
  "2m": (128, 32, 4, 512, (192, 6, 4)),
  "5m": (256, 64, 4, 512, (192, 3, 12)),
  "20m": (512, 64, 4, 1024, (384, 8, 12)),
  "80m": (768, 96, 8, 1536, (384, 8, 12)),
  "300m": (1024, 64, 18, 2048, (768, 16, 12)),
  "1b": (2048, 128, 18, 4096, (1024, 16, 24)),
}
# name: width, head_width, layers of the encoder, of the decoder.
TOKENIZERS = {
  "60k": (32, 16, 2, 2),
  "250k": (64, 32, 2, 2),
  "1m": (128, 32, 2, 2),
  "2m": (192, 32, 2, 2),
  "6m": (256, 64, 2, 4),
  "25m": (512, 64, 2, 4),
  "100m": (1024, 128, 3, 4),
}
SCANNED = ("80m", "300m", "1b", "100m")


def split(argument: str, variants: tuple[str, ...], sizes: dict[str, Any]) -> tuple[str, str]:
  """Returns (variant, size) of a config's argument, either of which may be ""."""
  first, _, second = argument.partition(",")
  variant, size = ("", first) if not second and first in sizes else (first, second)
  if variant and variant not in variants:
    known = f"{', '.join(variants[:-1])} and {variants[-1]}"
    raise ValueError(
      f"unknown variant '{variant}'; there are {known}; a size may stand behind a comma, or alone: "
      f"{', '.join(sizes)}"
    )
  if size and size not in sizes:
    raise ValueError(f"unknown size '{size}'; there are {', '.join(sizes)}")
  return variant, size


def policy(config: Any, size: str) -> None:
  """Sets a policy's sizes."""
  width, head_width, layers, hidden, tower = POLICIES[size]
  config.model.width, config.model.head_width, config.model.layers = width, head_width, layers
  config.model.observation.hidden = hidden
  vit = config.model.observation.images.vit
  vit.width, vit.heads, vit.layers = tower
  vit.mlp_width = 4 * tower[0]
  _common(config, size, width)
  if size in SCANNED:
    vit.scan, vit.remat = True, "full"


def tokenizer(config: Any, size: str) -> None:
  """Sets a tokenizer's sizes."""
  width, head_width, encoder_layers, decoder_layers = TOKENIZERS[size]
  config.model.width, config.model.head_width = width, head_width
  config.model.encoder_layers, config.model.decoder_layers = encoder_layers, decoder_layers
  config.model.shortcut = 0
  _common(config, size, width)


def _common(config: Any, size: str, width: int) -> None:
  config.optimizer.learning_rate = 1e-3 * 128 / width
  if size in SCANNED:
    config.model.scan, config.model.remat, config.model.dtype = True, "full", "bfloat16"


def generic(config: Any) -> None:
  """Sets the data of a robot with three cameras: patches of 224x224 pixels, two steps."""
  config.data.cameras = tuple(f"{name}=observation/{name}" for name in ("front", "side", "wrist"))
  config.data.image_size = (224, 224)
  config.data.observation_steps = 2
  config.plan = ConfigDict({"state_dim": 16, "action_dim": 8, "tasks": 8})
  config.model.dtype = "bfloat16"
  if config.kind == "policy":
    images = config.model.observation.images
    images.encoder, images.tokens, images.shared = "vit", "patches", True
    images.vit.patch, images.vit.scan, images.vit.remat = 16, True, "full"
