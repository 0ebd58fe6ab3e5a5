"""Public weights of transformers: from a local safetensors file to parameters of vit.ViT and text.

A map says of every parameter which tensor it is; a file that lacks one, or holds one that has no
place, is refused. Names and layouts are those of Hugging Face's SiglipModel and Dinov2Model.
"""

from collections.abc import Callable, Iterator
import os
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors import SafetensorError

from oat_jax.perception import vit

WHERE = "config.model.observation.images"


class Tensor(NamedTuple):
  """A tensor of the file: its shape there (None: any), and how it becomes the parameter."""

  name: str
  shape: tuple[int | None, ...]
  convert: Callable[[np.ndarray], np.ndarray] = lambda x: x


def read(
  path: str | os.PathLike, config: vit.Config, grid: tuple[int, int], pooled: bool
) -> dict[str, np.ndarray]:
  """Returns {path of a parameter of `vit.ViT(config, pooled)`: float32 array}.

  Args:
    path: of the safetensors file.
    config: sizes of the tower in it.
    grid: rows and columns of patches to see; the file's positions are interpolated to it.
    pooled: whether the feature of the whole image is wanted.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no safetensors file, or a tensor is missing, unexpected, of another shape or
      no floating-point number; names the tensor and the file.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f"{WHERE}.weights is {path}; there is no such file")
  ours = lambda name: _of_the_tower(name, config, pooled)
  hint = f"{WHERE}.vit must be the file's: it is {config}"
  arrays = _load(path, names(config, grid, pooled), ours, f"{WHERE}.vit", hint)
  if not config.scan:
    return arrays
  layers = [name.removeprefix("blocks_0/") for name in arrays if name.startswith("blocks_0/")]
  for name in layers:
    rows = [arrays.pop(f"blocks_{i}/{name}") for i in range(config.layers)]
    arrays[f"layers/{name}"] = np.stack(rows)
  return arrays


def read_text(path: str | os.PathLike, config: vit.Config) -> dict[str, np.ndarray]:
  """Returns {path of a parameter of `text.tower`: float32 array}; errors as those of `read`."""
  ours = lambda name: name.startswith("text_model.") and not name.endswith(".position_ids")
  hint = f"config.json beside it must be the file's: the text tower's sizes are {config}"
  return _load(path, dict(_siglip_text(config)), ours, "config.json", hint)


def _load(
  path: str | os.PathLike,
  tensors: dict[str, Tensor],
  ours: Callable[[str], bool],
  sizes: str,
  hint: str,
) -> dict[str, np.ndarray]:
  """Reads tensors; those of the file that are `ours` must be just these.

  `sizes` names what says their shapes, `hint` what to do about others, for the messages.
  """
  try:
    opened = safe_open(path, framework="numpy")
  except SafetensorError as error:
    raise ValueError(f"{path} is no safetensors file: {error}") from error
  with opened as file:
    there = {name for name in file.keys() if ours(name)}
    wanted = {tensor.name for tensor in tensors.values()}
    for what, rest in (
      ("lacks the tensor '{}'", wanted - there),
      ("holds the tensor '{}', which has no place here", there - wanted),
    ):
      if rest:
        others = f" and {len(rest) - 1} more so" if len(rest) > 1 else ""
        raise ValueError(f"{path} {what.format(min(rest))}{others}; {hint}")
    return {name: _take(file, tensor, path, sizes) for name, tensor in tensors.items()}


def _take(file: Any, tensor: Tensor, path: str | os.PathLike, sizes: str) -> np.ndarray:
  found = file.get_slice(tensor.name)
  shape = tuple(found.get_shape())
  fits = len(shape) == len(tensor.shape) and all(
    want in (None, size) for size, want in zip(shape, tensor.shape)
  )
  if not fits:
    expected = [size or "any" for size in tensor.shape]
    raise ValueError(
      f"{path}: tensor '{tensor.name}' is {list(shape)}; {sizes} makes it {expected}"
    )
  if found.get_dtype() not in ("F16", "F32", "F64"):
    raise ValueError(
      f"{path}: tensor '{tensor.name}' is of type {found.get_dtype()}; save it as F32"
    )
  try:
    return np.ascontiguousarray(tensor.convert(file.get_tensor(tensor.name)), np.float32)
  except ValueError as error:
    raise ValueError(f"{path}: tensor '{tensor.name}' of {list(shape)}: {error}") from error


def _of_the_tower(name: str, config: vit.Config, pooled: bool) -> bool:
  """Whether a tensor belongs to what is read: not the text tower, nor what only training used."""
  if config.family == "dinov2":
    return name != "embeddings.mask_token"
  return name.startswith("vision_model.") and (pooled or not name.startswith("vision_model.head."))


def names(config: vit.Config, grid: tuple[int, int], pooled: bool) -> dict[str, Tensor]:
  """Returns which tensor of the file each parameter is."""
  return dict((_siglip if config.family == "siglip" else _dinov2)(config, grid, pooled))


Named = Iterator[tuple[str, Tensor]]


def _siglip(c: vit.Config, grid: tuple[int, int], pooled: bool) -> Named:
  D, top = c.width, "vision_model"
  yield from _patches(c, f"{top}.embeddings.patch_embedding")
  positions = lambda x: interpolated(x, grid)
  yield "positions", Tensor(f"{top}.embeddings.position_embedding.weight", (None, D), positions)
  yield from _siglip_layers(c, top)
  yield from _norm(D, "norm_out", f"{top}.post_layernorm")
  if not pooled:
    return
  yield "head/queries", Tensor(f"{top}.head.probe", (1, 1, D), lambda x: x[0])
  for i, name in enumerate(("q", "k", "v")):  # one tensor there
    part = slice(i * D, (i + 1) * D)
    weight = Tensor(
      f"{top}.head.attention.in_proj_weight", (3 * D, D), lambda x, part=part: x[part].T
    )
    bias = Tensor(f"{top}.head.attention.in_proj_bias", (3 * D,), lambda x, part=part: x[part])
    yield f"head/attention/{name}/w", weight
    yield f"head/attention/{name}/b", bias
  yield from _linear(D, D, "head/attention/out", f"{top}.head.attention.out_proj")
  yield from _norm(D, "head/norm", f"{top}.head.layernorm")
  yield from _mlp(c, "head/mlp", f"{top}.head.mlp")


def _siglip_text(c: vit.Config) -> Named:
  D, top = c.width, "text_model"
  yield "table", Tensor(f"{top}.embeddings.token_embedding.weight", (None, D))
  yield "positions", Tensor(f"{top}.embeddings.position_embedding.weight", (None, D))
  yield from _siglip_layers(c, top)
  yield from _norm(D, "norm_out", f"{top}.final_layer_norm")
  yield from _linear(D, None, "head", f"{top}.head")


def _siglip_layers(c: vit.Config, top: str) -> Named:
  D = c.width
  for i in range(c.layers):
    ours, theirs = f"blocks_{i}", f"{top}.encoder.layers.{i}"
    yield from _norm(D, f"{ours}/norm_attention", f"{theirs}.layer_norm1")
    for name in ("q", "k", "v"):
      yield from _linear(D, D, f"{ours}/attention/{name}", f"{theirs}.self_attn.{name}_proj")
    yield from _linear(D, D, f"{ours}/attention/out", f"{theirs}.self_attn.out_proj")
    yield from _norm(D, f"{ours}/norm_mlp", f"{theirs}.layer_norm2")
    yield from _mlp(c, f"{ours}/mlp", f"{theirs}.mlp")


def _dinov2(c: vit.Config, grid: tuple[int, int], pooled: bool) -> Named:
  del pooled  # the summary takes part in every layer
  D = c.width
  yield from _patches(c, "embeddings.patch_embeddings.projection")
  yield "summary", Tensor("embeddings.cls_token", (1, 1, D), lambda x: x[0])
  positions = lambda x: np.concatenate([x[0, :1], interpolated(x[0, 1:], grid)])
  yield "positions", Tensor("embeddings.position_embeddings", (1, None, D), positions)
  for i in range(c.layers):
    ours, theirs = f"blocks_{i}", f"encoder.layer.{i}"
    yield from _norm(D, f"{ours}/norm_attention", f"{theirs}.norm1")
    for name, long in (("q", "query"), ("k", "key"), ("v", "value")):
      yield from _linear(D, D, f"{ours}/attention/{name}", f"{theirs}.attention.attention.{long}")
    yield from _linear(D, D, f"{ours}/attention/out", f"{theirs}.attention.output.dense")
    yield f"{ours}/attention_scale", Tensor(f"{theirs}.layer_scale1.lambda1", (D,))
    yield from _norm(D, f"{ours}/norm_mlp", f"{theirs}.norm2")
    yield from _mlp(c, f"{ours}/mlp", f"{theirs}.mlp")
    yield f"{ours}/mlp_scale", Tensor(f"{theirs}.layer_scale2.lambda1", (D,))
  yield from _norm(D, "norm_out", "layernorm")


def _patches(c: vit.Config, theirs: str) -> Named:
  """A convolution as large as its stride is a linear map of a patch's pixels."""
  flat = lambda x: x.transpose(2, 3, 1, 0).reshape(-1, c.width)
  yield "embed/w", Tensor(f"{theirs}.weight", (c.width, 3, c.patch, c.patch), flat)
  yield "embed/b", Tensor(f"{theirs}.bias", (c.width,))


def _linear(inner: int, outer: int | None, ours: str, theirs: str) -> Named:
  yield f"{ours}/w", Tensor(f"{theirs}.weight", (outer, inner), np.transpose)
  yield f"{ours}/b", Tensor(f"{theirs}.bias", (outer,))


def _mlp(c: vit.Config, ours: str, theirs: str) -> Named:
  yield from _linear(c.width, c.mlp_width, f"{ours}/up", f"{theirs}.fc1")
  yield from _linear(c.mlp_width, c.width, f"{ours}/down", f"{theirs}.fc2")


def _norm(width: int, ours: str, theirs: str) -> Named:
  yield f"{ours}/scale", Tensor(f"{theirs}.weight", (width,))
  yield f"{ours}/b", Tensor(f"{theirs}.bias", (width,))


def interpolated(positions_PD: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """Returns positions of a square of patches, row by row, as those of another grid: bicubic.

  Raises ValueError where they are no square's.
  """
  side = round(len(positions_PD) ** 0.5)
  if side**2 != len(positions_PD):
    raise ValueError(f"{len(positions_PD)} positions are not those of a square of patches")
  square = positions_PD.astype(np.float64).reshape(side, side, -1)
  rows, columns = (_bicubic(side, size) for size in grid)
  return np.einsum("ry,cx,yxD->rcD", rows, columns, square).reshape(-1, square.shape[-1])


def _bicubic(old: int, new: int) -> np.ndarray:
  """Returns (new, old) weights of interpolation, by the kernel that PyTorch uses (a = -0.75).

  Places are pixels' centres; what lies outside repeats the edge.
  """
  a = -0.75
  centre_N = (np.arange(new) + 0.5) * old / new - 0.5
  weights = np.zeros((new, old))
  for offset in range(-1, 3):
    at_N = np.floor(centre_N).astype(int) + offset
    x_N = np.abs(centre_N - at_N)
    near_N = (a + 2) * x_N**3 - (a + 3) * x_N**2 + 1
    far_N = a * (x_N**3 - 5 * x_N**2 + 8 * x_N - 4)
    np.add.at(
      weights, (np.arange(new), np.clip(at_N, 0, old - 1)), np.where(x_N <= 1, near_N, far_N)
    )
  return weights
