"""Residual vector quantisation, VQ-BeT's tokenizer (arXiv 2403.03181): learned codebooks.

An MLP maps the chunk to one latent, which is written as a sum of N codes: each level's codebook
quantises what the levels before it have left over. An MLP maps the sum back to the chunk. The
tokens are ordered by construction, but the decoder is trained on whole sums only.

Codebooks follow moving averages of what is quantised to them (arXiv 1711.00937, appendix A; for
residual levels arXiv 2107.03312), not gradients. A code that hardly anything is quantised to moves
to a latent of the current batch; this also fills the codebooks, which begin empty.

VQ-BeT's absolute error is a squared one here, as in the other tokenizers: it is what is compared.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.data import normalization
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

SMOOTHING = 1e-5  # Laplace's, of the counts


@dataclasses.dataclass(frozen=True)
class Config:
  """Axis letters: N levels, V codes a level, Z numbers of a latent, F hidden width."""

  num_tokens: int = 8  # N
  codes: int = 1000  # V
  latent: int = 64  # Z
  width: int = 512  # F
  layers: int = 2  # hidden ones of the encoder, and of the decoder
  commitment: float = 0.05  # weight of the latents' squared distance to their codes
  decay: float = 0.99  # of the codebooks' averages, a step
  revive_below: float = 0.4  # a code is moved where it is chosen less than this share of evenly
  normalization: str = "min_max"
  cumulative_weight: float = 0.0  # these two: see `tokenizer.reconstruction_loss`
  cumulative_dims: tuple[int, ...] = ()
  dtype: str = "float32"  # of the MLPs; codebooks are float32

  def __post_init__(self):
    config_lib.choose(self.dtype, ("float32", "bfloat16"), "config.model.dtype")
    for name in ("num_tokens", "latent", "width", "layers"):
      config_lib.at_least(getattr(self, name), 1, f"config.model.{name}")
    config_lib.at_least(self.codes, 2, "config.model.codes")
    config_lib.at_least(self.commitment, 0, "config.model.commitment")
    config_lib.between(self.decay, 0, 0.9999, "config.model.decay")
    # Without it nothing would ever fill the codebooks.
    config_lib.between(self.revive_below, 0.001, 0.99, "config.model.revive_below")


class Network(nn.Module):
  """Encoder to one latent, decoder from a sum of codes; everything in normalised units."""

  config: Config
  spec: BatchSpec

  def setup(self):
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    hidden = lambda: [linear.Linear(c.width, None, "mlp", dtype=dtype) for _ in range(c.layers)]
    self.encoder, self.decoder = hidden(), hidden()
    self.to_latent = linear.Linear(c.latent, "mlp", None)
    self.to_actions = linear.Linear(self.spec.action_horizon * self.spec.action_dim, "mlp", None)

  def encode(self, actions_BCA, action_mask_BC):
    """Returns unquantised latents (B, Z). Steps that the mask hides have no influence."""
    visible_BC1 = action_mask_BC[..., None]
    x_BCX = jnp.concatenate([jnp.where(visible_BC1, actions_BCA, 0), visible_BC1], -1)
    h_BF = x_BCX.reshape(x_BCX.shape[0], -1)
    for layer in self.encoder:
      h_BF = partitioning.constrain(nn.gelu(layer(h_BF)), "batch", "mlp")
    return self.to_latent(h_BF)

  def decode(self, z_BZ):
    """Returns normalised actions (B, C, A)."""
    h_BF = z_BZ
    for layer in self.decoder:
      h_BF = partitioning.constrain(nn.gelu(layer(h_BF)), "batch", "mlp")
    return self.to_actions(h_BF).reshape(-1, self.spec.action_horizon, self.spec.action_dim)

  def __call__(self, actions_BCA, action_mask_BC):
    return self.decode(self.encode(actions_BCA, action_mask_BC))


def quantize(codes_NVZ: jax.Array, z_BZ: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Quantises level by level; the first of equally near codes is taken.

  Returns:
    ids_NB: int32.
    residuals_MBZ: what each level is given, and, last, what remains: M is N + 1.
  """

  def level(r_BZ, codes_VZ):
    # The squared distances, but for what all codes of a row have in common.
    product_BV = jnp.matmul(r_BZ, codes_VZ.T, precision=jax.lax.Precision.HIGHEST)
    ids_B = jnp.argmin(jnp.sum(jnp.square(codes_VZ), -1) - 2 * product_BV, -1)
    return r_BZ - codes_VZ[ids_B], (ids_B.astype(jnp.int32), r_BZ)

  rest_BZ, (ids_NB, residuals_NBZ) = jax.lax.scan(level, z_BZ, codes_NVZ)
  return ids_NB, jnp.concatenate([residuals_NBZ, rest_BZ[None]])


def observe(
  ids_NB: jax.Array, residuals_NBZ: jax.Array, weight_B: jax.Array, num_codes: int, key: jax.Array
) -> dict[str, jax.Array]:
  """Returns what `update_codebook` needs of a batch: sums over its rows of weight 1.

  `drawn_NVZ` holds, for each code, the residual of a row that was drawn for it.
  """
  N, B = ids_NB.shape
  chosen_NBV = jax.nn.one_hot(ids_NB, num_codes) * weight_B[:, None]
  rows_NV = jax.random.choice(key, B, (N, num_codes), p=weight_B / jnp.sum(weight_B))
  return {
    "counts_NV": jnp.sum(chosen_NBV, 1),
    "sums_NVZ": jnp.einsum("nbv,nbz->nvz", chosen_NBV, residuals_NBZ),
    "drawn_NVZ": jnp.take_along_axis(residuals_NBZ, rows_NV[..., None], 1),
  }


def update_codebook(config: Config, book: Any, observed: Any) -> dict[str, jax.Array]:
  """Moves the averages one step, and codes that hardly occur to the rows that were drawn."""
  average = lambda name: config.decay * book[name] + (1 - config.decay) * observed[name]
  counts_NV, sums_NVZ = average("counts_NV"), average("sums_NVZ")
  even_N1 = jnp.mean(observed["counts_NV"], -1, keepdims=True)
  dead_NV = counts_NV < config.revive_below * even_N1
  counts_NV = jnp.where(dead_NV, even_N1, counts_NV)
  drawn_NVZ = even_N1[..., None] * observed["drawn_NVZ"]
  sums_NVZ = jnp.where(dead_NV[..., None], drawn_NVZ, sums_NVZ)
  total_N1 = jnp.sum(counts_NV, -1, keepdims=True)
  smooth_NV = (counts_NV + SMOOTHING) / (total_N1 + config.codes * SMOOTHING) * total_N1
  codes_NVZ = sums_NVZ / smooth_NV[..., None]
  return {"codes_NVZ": codes_NVZ, "counts_NV": counts_NV, "sums_NVZ": sums_NVZ}


def make(config: Config, spec: BatchSpec, statistics: tokenizer_lib.Statistics | None) -> Tokenizer:
  """Returns the tokenizer for chunks of `spec.action_horizon` steps; see `tokenizer.Tokenizer`."""
  N, V, C = config.num_tokens, config.codes, spec.action_horizon
  tokenizer_lib.check_cumulative(config.cumulative_weight, config.cumulative_dims, spec.action_dim)
  network = Network(config, spec)
  sample = jnp.zeros((1, C, spec.action_dim)), jnp.ones((1, C), bool)

  def init(key):
    codes_NVZ = jnp.zeros((N, V, config.latent))
    return {
      "network": partitioning.init(network, key, *sample),
      "codebook": {
        "codes_NVZ": codes_NVZ,
        "counts_NV": jnp.zeros((N, V)),
        "sums_NVZ": jnp.zeros_like(codes_NVZ),
      },
      "statistics": normalization.parameters(statistics, config.normalization, "actions"),
    }

  def axes():
    return {"network": partitioning.logical_axes(network, *sample)}

  def apply(params, *args, method: str) -> Any:
    return network.apply({"params": params["network"]}, *args, method=method)

  def encode(params, actions_BCA, action_mask_BC, dataset_B=None):
    x_BCA = tokenizer_lib.normalize(params["statistics"], actions_BCA, dataset_B)
    z_BZ = apply(params, x_BCA, action_mask_BC, method="encode")
    return quantize(params["codebook"]["codes_NVZ"], z_BZ)[0].T

  def decode(params, tokens_BN, num_tokens, dataset_B=None):
    codes_BNZ = params["codebook"]["codes_NVZ"][jnp.arange(N), tokens_BN]
    z_BZ = jnp.sum(jnp.where((jnp.arange(N) < num_tokens)[:, None], codes_BNZ, 0), 1)
    x_BCA = apply(params, z_BZ, method="decode")
    return tokenizer_lib.denormalize(params["statistics"], x_BCA, dataset_B)

  def loss(params, batch, key):
    """Masked mean squared error of normalised actions, and of latents to their codes."""
    target_BCA = tokenizer_lib.normalize(params["statistics"], batch["actions"], batch["dataset"])
    mask_BCA = tokenizer_lib.valid(batch)
    z_BZ = apply(params, target_BCA, batch["action_mask"], method="encode")
    codes_NVZ = jax.lax.stop_gradient(params["codebook"]["codes_NVZ"])
    ids_NB, residuals_MBZ = quantize(codes_NVZ, z_BZ)
    # To the encoder, the gradient by the sum of codes passes as if it were the latent.
    predicted_BCA = apply(params, z_BZ - jax.lax.stop_gradient(residuals_MBZ[-1]), method="decode")
    total, aux = tokenizer_lib.reconstruction_loss(
      predicted_BCA, target_BCA, mask_BCA, config.cumulative_weight, config.cumulative_dims
    )
    row_B = jnp.any(mask_BCA, (1, 2))
    left_NBZ = residuals_MBZ[1:]
    far_NBZ = jnp.broadcast_to(row_B[:, None], left_NBZ.shape)
    commitment = N * tokenizer_lib.masked_mse(left_NBZ, jnp.zeros_like(left_NBZ), far_NBZ)
    given_NBZ = jax.lax.stop_gradient(residuals_MBZ[:-1])
    observed = observe(ids_NB, given_NBZ, row_B.astype(jnp.float32), V, key)
    aux |= {
      "commitment": commitment,
      "codes_in_batch": jnp.mean(jnp.sum(observed["counts_NV"] > 0, -1)),  # of a level
      "update": observed,
    }
    return total + config.commitment * commitment, aux

  def update(params, observed):
    return params | {"codebook": update_codebook(config, params["codebook"], observed)}

  return Tokenizer(
    init=init,
    axes=axes,
    encode=encode,
    decode=decode,
    loss=loss,
    update=update,
    spec=spec,
    vocab_size=V,
    max_tokens=N,
  )
