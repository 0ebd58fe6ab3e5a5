"""Which encoder looks at a camera's frames, how it is made, and the weights that it starts from."""

import dataclasses
from typing import Any

from flax import linen as nn
import numpy as np

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.perception import pretrained as pretrained_lib
from oat_jax.perception import resnet
from oat_jax.perception import vit as vit_lib

WHERE = "config.model.observation.images"


@dataclasses.dataclass(frozen=True)
class Config:
  """ResNet-18 with spatial softmax as in the OAT paper, for frames of 128x128 with crop 76."""

  encoder: str = "resnet18"  # or vit
  tokens: str = "pooled"  # a feature in its step's token; or patches: tokens of their own
  shared: bool = False  # one encoder for all cameras, instead of one each
  crop: int = 0  # side of a square, at random in training, the centre in acting; 0: whole frames
  jitter: float = 0.0  # strength of random colours in training, 0..1
  frozen: bool = False  # the encoder stays as it is in `weights`
  weights: str = ""  # a safetensors file of SigLIP or DINOv2, read once, when a run begins
  channels: tuple[int, ...] = (64, 128, 256, 512)  # of the ResNet's stages
  keypoints: int = 32  # of the ResNet's spatial softmax
  vit: vit_lib.Config = vit_lib.Config()

  def __post_init__(self):
    config_lib.choose(self.encoder, ("resnet18", "vit"), f"{WHERE}.encoder")
    config_lib.choose(self.tokens, ("pooled", "patches"), f"{WHERE}.tokens")
    config_lib.at_least(self.crop, 0, f"{WHERE}.crop")
    config_lib.between(self.jitter, 0, 1, f"{WHERE}.jitter")
    config_lib.at_least(self.keypoints, 1, f"{WHERE}.keypoints")
    config_lib.at_least(len(self.channels), 1, f"the number of {WHERE}.channels")
    for count in self.channels:
      if count < 1 or count % resnet.GROUP:
        raise ValueError(
          f"{WHERE}.channels holds {count}; channels are normalised in groups of {resnet.GROUP}"
        )
    if self.weights and self.encoder != "vit":
      raise ValueError(f"{WHERE}.weights is set, but {self.encoder} is trained from scratch")
    if self.frozen and not self.weights:
      raise ValueError(f"{WHERE}.frozen is set without weights: nobody trained that encoder")


def sizes(config: Config, spec: BatchSpec) -> dict[str, tuple[int, int]]:
  """Returns height and width of what an encoder sees of each camera.

  Raises:
    ValueError: frames are smaller than the crop, no multiple of the patch, or differ among the
      cameras of a shared encoder; names the camera and both numbers.
  """
  found = {}
  for camera, height, width in spec.cameras:
    if config.crop > min(height, width):
      raise ValueError(
        f"camera '{camera}' has frames of {height}x{width} pixels; {WHERE}.crop is {config.crop}: "
        f"at most {min(height, width)}"
      )
    size = (config.crop, config.crop) if config.crop else (height, width)
    if config.encoder == "vit" and (size[0] % config.vit.patch or size[1] % config.vit.patch):
      raise ValueError(
        f"camera '{camera}' is seen as {size[0]}x{size[1]} pixels, no multiple of {WHERE}.vit."
        f"patch {config.vit.patch}; set {WHERE}.crop or config.data.image_size"
      )
    found[camera] = size
  if config.shared and len(set(found.values())) > 1:
    raise ValueError(
      f"{WHERE}.shared is set, but cameras are seen in several sizes: {found}; set {WHERE}.crop"
    )
  return found


def names(config: Config, spec: BatchSpec) -> dict[str, str]:
  """Returns the submodule that looks at each camera: the optimiser knows encoders by these names.

  `images...` are trained, at a rate of their own; `frozen_images...` are not.
  """
  prefix = "frozen_images" if config.frozen else "images"
  name = lambda camera: prefix if config.shared else f"{prefix}_{camera}"
  return {camera: name(camera) for camera in sizes(config, spec)}


def make(config: Config, dtype: Any, name: str | None = None) -> nn.Module:
  """Returns the encoder: images (B, height, width, 3) in 0..1 -> (B, F) or (B, patches, F)."""
  pooled = config.tokens == "pooled"
  if config.encoder == "vit":
    return vit_lib.ViT(config.vit, pooled, dtype, name=name)
  return resnet.ResNet(config.channels, config.keypoints, pooled, dtype, name=name)


def pretrained(config: Config, spec: BatchSpec) -> dict[str, np.ndarray]:
  """Returns {submodule/path: array} of what `config.weights` holds, for every encoder; {} if "".

  Raises:
    FileNotFoundError, ValueError: as `pretrained.read`; or there are no cameras.
  """
  if not config.weights:
    return {}
  if not spec.cameras:
    raise ValueError(f"{WHERE}.weights is set, but config.data.cameras is empty")
  seen, found = sizes(config, spec), {}
  for camera, name in names(config, spec).items():
    grid = (seen[camera][0] // config.vit.patch, seen[camera][1] // config.vit.patch)
    arrays = pretrained_lib.read(config.weights, config.vit, grid, config.tokens == "pooled")
    found |= {f"{name}/{path}": array for path, array in arrays.items()}
  return found
