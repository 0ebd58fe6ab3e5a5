"""Small vision towers as the public files hold them, and what they compute, in plain numpy.

Written from the descriptions of the models, in the files' names and layouts, not from oat_jax.
"""

import math

import numpy as np
from safetensors.numpy import save_file

D, F, HEADS, LAYERS, PATCH = 16, 24, 2, 2, 4


def config(family, **changes):
  from oat_jax.perception import vit

  sizes = {"patch": PATCH, "width": D, "layers": LAYERS, "heads": HEADS, "mlp_width": F}
  return vit.Config(**({"family": family} | sizes | changes))


def tensors(family, side=3, seed=0):
  """{name: array} of a tower for side x side patches."""
  rng = np.random.default_rng(seed)
  out = {}

  def add(name, *shape, around=0.0):
    out[name] = (around + 0.3 * rng.normal(size=shape)).astype(np.float32)

  def linear(name, inner, outer):
    add(f"{name}.weight", outer, inner)
    add(f"{name}.bias", outer)

  def norm(name):
    add(f"{name}.weight", D, around=1.0)
    add(f"{name}.bias", D)

  def mlp(name):
    linear(f"{name}.fc1", D, F)
    linear(f"{name}.fc2", F, D)

  if family == "siglip":
    top = "vision_model"
    add(f"{top}.embeddings.patch_embedding.weight", D, 3, PATCH, PATCH)
    add(f"{top}.embeddings.patch_embedding.bias", D)
    add(f"{top}.embeddings.position_embedding.weight", side**2, D)
    for i in range(LAYERS):
      layer = f"{top}.encoder.layers.{i}"
      norm(f"{layer}.layer_norm1")
      norm(f"{layer}.layer_norm2")
      for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        linear(f"{layer}.self_attn.{name}", D, D)
      mlp(f"{layer}.mlp")
    norm(f"{top}.post_layernorm")
    add(f"{top}.head.probe", 1, 1, D)
    add(f"{top}.head.attention.in_proj_weight", 3 * D, D)
    add(f"{top}.head.attention.in_proj_bias", 3 * D)
    linear(f"{top}.head.attention.out_proj", D, D)
    norm(f"{top}.head.layernorm")
    mlp(f"{top}.head.mlp")
    # Of the other tower, and of the loss.
    add("text_model.final_layer_norm.weight", D)
    add("logit_scale", 1)
    return out
  add("embeddings.cls_token", 1, 1, D)
  add("embeddings.mask_token", 1, D)
  add("embeddings.position_embeddings", 1, 1 + side**2, D)
  add("embeddings.patch_embeddings.projection.weight", D, 3, PATCH, PATCH)
  add("embeddings.patch_embeddings.projection.bias", D)
  for i in range(LAYERS):
    layer = f"encoder.layer.{i}"
    norm(f"{layer}.norm1")
    norm(f"{layer}.norm2")
    for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
      linear(f"{layer}.attention.{name}", D, D)
    mlp(f"{layer}.mlp")
    add(f"{layer}.layer_scale1.lambda1", D)
    add(f"{layer}.layer_scale2.lambda1", D)
  norm("layernorm")
  return out


def write(path, family, side=3, seed=0, change=lambda tensors: tensors):
  """Writes a tower's file and returns its path."""
  save_file(change(tensors(family, side, seed)), path)
  return path


def parts(t, tanh_gelu=True):
  """Returns the tensors in double precision, and functions (name, x) of the layers of a file."""
  t = {name: x.astype(np.float64) for name, x in t.items()}
  linear = lambda name, x: x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

  def norm(name, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * t[f"{name}.weight"] + t[f"{name}.bias"]

  def gelu(x):
    if tanh_gelu:
      return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

  mlp = lambda name, x: linear(f"{name}.fc2", gelu(linear(f"{name}.fc1", x)))

  def attend(q, k, v):
    out = np.zeros_like(q)
    for b in range(len(q)):
      for h in range(HEADS):
        part = slice(h * D // HEADS, (h + 1) * D // HEADS)
        scores = q[b, :, part] @ k[b, :, part].T / math.sqrt(D / HEADS)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[b, :, part] = weights / weights.sum(-1, keepdims=True) @ v[b, :, part]
    return out

  return t, linear, norm, mlp, attend


def layers(top, t, x):
  """What SigLIP's transformer, the same for images and texts, makes of x (B, N, D)."""
  t, linear, norm, mlp, attend = parts(t)
  for i in range(LAYERS):
    layer = f"{top}.encoder.layers.{i}"
    h = norm(f"{layer}.layer_norm1", x)
    h = attend(*(linear(f"{layer}.self_attn.{name}_proj", h) for name in "qkv"))
    x = x + linear(f"{layer}.self_attn.out_proj", h)
    x = x + mlp(f"{layer}.mlp", norm(f"{layer}.layer_norm2", x))
  return x


def forward(family, t, images):
  """Returns (feature (B, D), patches (B, P, D)) of images (B, height, width, 3) in 0..1."""
  t, linear, norm, mlp, attend = parts(t, tanh_gelu=family == "siglip")
  mean, std = (0.5, 0.5) if family == "siglip" else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
  x = (images.astype(np.float64) - mean) / std
  patches = {"siglip": "vision_model.embeddings.patch_embedding"}
  patches = patches.get(family, "embeddings.patch_embeddings.projection")
  B, rows, columns = len(x), x.shape[1] // PATCH, x.shape[2] // PATCH
  tokens = np.zeros((B, rows * columns, D))
  for r in range(rows):
    for c in range(columns):
      window = x[:, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]
      tokens[:, r * columns + c] = np.einsum("byxi,oiyx->bo", window, t[f"{patches}.weight"])
  tokens += t[f"{patches}.bias"]
  if family == "siglip":
    top = "vision_model"
    tokens += t[f"{top}.embeddings.position_embedding.weight"]
    tokens = norm(f"{top}.post_layernorm", layers(top, t, tokens))
    weights = np.split(t[f"{top}.head.attention.in_proj_weight"], 3)
    biases = np.split(t[f"{top}.head.attention.in_proj_bias"], 3)
    probe = np.repeat(t[f"{top}.head.probe"], B, 0)
    seen = [y @ w.T + b for y, w, b in zip((probe, tokens, tokens), weights, biases)]
    h = linear(f"{top}.head.attention.out_proj", attend(*seen))
    return (h + mlp(f"{top}.head.mlp", norm(f"{top}.head.layernorm", h)))[:, 0], tokens
  tokens = np.concatenate([np.repeat(t["embeddings.cls_token"], B, 0), tokens], 1)
  tokens += t["embeddings.position_embeddings"]
  for i in range(LAYERS):
    layer = f"encoder.layer.{i}"
    h, name = norm(f"{layer}.norm1", tokens), f"{layer}.attention.attention"
    h = attend(*(linear(f"{name}.{part}", h) for part in ("query", "key", "value")))
    h = linear(f"{layer}.attention.output.dense", h)
    tokens = tokens + h * t[f"{layer}.layer_scale1.lambda1"]
    h = mlp(f"{layer}.mlp", norm(f"{layer}.norm2", tokens))
    tokens = tokens + h * t[f"{layer}.layer_scale2.lambda1"]
  tokens = norm("layernorm", tokens)
  return tokens[:, 0], tokens[:, 1:]
