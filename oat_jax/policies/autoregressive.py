"""Autoregressive policy over ordered tokens (arXiv 2602.04215).

A decoder with cross-attention to the observation, trained by cross-entropy on the frozen
tokenizer's tokens. Acting encodes the observation once, generates K tokens with a KV cache and
decodes them to a chunk: fewer tokens are faster and coarser. Tokens that the tokenizer wrote
without seeing each other, a block, are generated at once (arXiv 2607.21670).

Over tokens in order it also learns how much of a chunk is still to change behind each prefix, so
that generating can stop where little is.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.data import normalization
from oat_jax.nn import initializers
from oat_jax.nn import linear
from oat_jax.nn import partitioning
from oat_jax.nn import transformer
from oat_jax.perception import observation as observation_lib
from oat_jax.policies import decoding
from oat_jax.policies import vocabulary
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

# 1000 codes and BOS divide by nothing; padded to this, a vocabulary shards over any usual mesh.
VOCAB_MULTIPLE = 128
# Of a chunk, in squared normalised units: what lies below it counts as no change.
SMALLEST_CHANGE = 1e-6
# Of the loss of expected changes. It trains two layers of its own, whose steps Adam scales whatever
# the weight; a small one keeps their gradients from having those of all others clipped.
REFINEMENT_WEIGHT = 0.01


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 256  # D
  head_width: int = 64  # K
  layers: int = 4  # L
  mlp_ratio: int = 4
  dropout: float = 0.1
  by_block: bool = True  # whether the tokens of a block are generated at once, or one by one
  # Whether tokens are also known by where they lie, where the tokenizer says so; see `vocabulary`.
  geometry: bool = False
  # Standard deviation, in steps between neighbouring tokens, by which targets are blurred; 0: none.
  blur: float = 0.0
  # Width of the two hidden layers of an MLP beside the attention, from the observation to what all
  # positions begin with: attention hardly tells observations apart at first. 0: none.
  shortcut: int = 0
  # Whether to learn how much tokens behind a prefix change, where the tokenizer's are in order.
  refinement: bool = True
  observation: observation_lib.Config = observation_lib.Config()
  dtype: str = "float32"
  scan: bool = False  # each stack of layers is one scan, compiled once; see `nn.stack`
  remat: str = "none"  # what of a scanned layer is computed again for its gradient: dots, or full

  def __post_init__(self):
    config_lib.check_transformer(self, "layers")
    for name in ("blur", "shortcut"):
      config_lib.at_least(getattr(self, name), 0, f"config.model.{name}")


class Network(nn.Module):
  """Observation tokens and shifted action tokens -> logits over the next token."""

  config: Config
  spec: BatchSpec
  vocab_size: int  # V, without BOS
  block_sizes: tuple[int, ...]  # of N tokens
  refinement: bool = False
  features_VF: Any = None  # numpy, of `vocabulary.features`

  def setup(self):
    c = self.config
    D, dtype = c.width, jnp.dtype(c.dtype)
    padded = -(-(self.vocab_size + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    self.ends_N = decoding.blocks(self.block_sizes).ends_N
    self.observe = observation_lib.Encoder(c.observation, self.spec, D, dtype)
    known = self.features_VF is not None
    self.embed_tokens = linear.Embed(padded, D, dtype=dtype, stddev=0.3 if known else 1.0)
    if known:
      F = self.features_VF.shape[1]
      self.padded_VF = np.pad(self.features_VF, ((0, padded - self.vocab_size), (0, 0)))
      self.from_features = linear.Linear(D, dtype=dtype)
      self.to_features = linear.Linear(F, "embed", None, scale=0.1)
    if c.shortcut:
      self.to_positions = linear.MLP(c.shortcut, D, dtype=dtype)
    positions = initializers.normal(None, "embed", stddev=1.0)
    self.positions_ND = self.param("positions", positions, (len(self.ends_N), D))
    self.transformer = transformer.Transformer(
      c.layers,
      D,
      D // c.head_width,
      c.mlp_ratio * D,
      cross=True,
      dropout=c.dropout,
      dtype=dtype,
      scan=c.scan,
      remat=c.remat,
    )
    self.to_logits = linear.Linear(padded, "embed", "vocab", scale=0.1)
    if self.refinement:
      self.refine_in = linear.Linear(D, "embed", "mlp")
      self.refine_out = linear.Linear(1, "mlp", None)

  def memory(self, seen, deterministic=True):
    """Returns keys and values, and what positions begin with (B, 1, D): paid once a chunk."""
    x_BMD, begin_B1D = self.seen(seen, deterministic)
    return self.transformer.memory(x_BMD), begin_B1D

  def seen(self, seen, deterministic=True):
    """Returns the observation's tokens (B, M, D), and what positions begin with (B, 1, D)."""
    x_BMD = self.observe(seen, deterministic)
    begin_B1D = jnp.zeros((), x_BMD.dtype)
    if self.config.shortcut:  # from the steps' tokens, which come first; not from patches
      steps_BX = x_BMD[:, : self.spec.observation_steps].reshape(x_BMD.shape[0], -1)
      begin_B1D = self.to_positions(steps_BX)[:, None]
    return x_BMD, begin_B1D

  def empty_cache(self, batch_size):
    return self.transformer.empty_cache(batch_size, len(self.ends_N))

  def logits(self, fed_BM, memory, cache=None, index=0, deterministic=True):
    """Feeds M positions from `index` on; returns (logits_BMV of their tokens, hidden, cache)."""
    M, N = fed_BM.shape[1], len(self.ends_N)
    slice_M = lambda x: jax.lax.dynamic_slice_in_dim(x, index, M)
    memory, begin_B1D = memory
    x_BMD = self.embed(fed_BM) + slice_M(self.positions_ND).astype(self.embed_tokens.dtype)
    x_BMD += begin_B1D
    mask_1MS = (jnp.arange(M if cache is None else N) < slice_M(self.ends_N)[:, None])[None]
    x_BMD, cache = self.transformer(
      x_BMD, mask_1MS, memory=memory, cache=cache, index=index, deterministic=deterministic
    )
    x_BMD = x_BMD.astype(jnp.float32)
    logits_BMV = self.to_logits(x_BMD)[..., : self.vocab_size]
    if self.features_VF is not None:
      logits_BMV += self.to_features(x_BMD) @ self.features_VF.T
    return logits_BMV, x_BMD, cache

  def embed(self, tokens_BM):
    x_BMD = self.embed_tokens(tokens_BM)
    if self.features_VF is None:
      return x_BMD
    return x_BMD + self.from_features(jnp.asarray(self.padded_VF)[tokens_BM])

  def log_refinement(self, hidden_BMD, tokens_BM):
    """Returns (B, M): log of the mean squared change still to come behind tokens; see `loss`.

    No gradient passes into what it is computed from.
    """
    x_BMX = jnp.concatenate([hidden_BMD, self.embed(tokens_BM).astype(jnp.float32)], -1)
    return self.refine_out(nn.gelu(self.refine_in(jax.lax.stop_gradient(x_BMX))))[..., 0]

  def __call__(self, seen, fed_BN, deterministic=True):
    """Teacher forcing: `fed_BN` is `decoding.fed(...)`; returns (logits_BNV, hidden_BND)."""
    memory = self.seen(seen, deterministic)
    logits_BNV, hidden_BND, _ = self.logits(fed_BN, memory, deterministic=deterministic)
    if self.refinement and self.is_initializing():
      self.log_refinement(hidden_BND, fed_BN)
    return logits_BNV, hidden_BND


def make(config: Config, spec: BatchSpec, statistics: Any, tokenizer: Tokenizer | None) -> Policy:
  """Returns the policy over `tokenizer`'s tokens; the contract is `policy.Policy`."""
  if tokenizer is None:
    raise ValueError(
      "an autoregressive policy needs a tokenizer: set config.tokenizer to its working directory"
    )
  for name in ("action_horizon", "action_dim"):
    own, other = getattr(spec, name), getattr(tokenizer.spec, name)
    if own != other:
      raise ValueError(
        f"the policy's {name} is {own}, its tokenizer's {other}; take a tokenizer of such chunks"
      )
  N, V = tokenizer.max_tokens, tokenizer.vocab_size
  bos = V
  sizes = np.diff((0, *tokenizer.budgets)).tolist() if config.by_block else [1] * N
  plan = decoding.blocks(sizes)
  at_budgets = tuple(np.cumsum(plan.sizes).tolist()) == tokenizer.budgets
  refines = config.refinement and tokenizer.prefix_decodable and at_budgets and N > 1
  features_VF = blurred_VV = None
  if tokenizer.coordinates is not None:
    if config.geometry:
      features_VF = vocabulary.features(tokenizer.coordinates)
    if config.blur:
      blurred_VV = vocabulary.neighbours(tokenizer.coordinates, config.blur)
  network = Network(config, spec, V, plan.sizes, refines, features_VF)
  sample = (observation_lib.sample(spec), jnp.zeros((1, N), jnp.int32))

  def init(key, tokenizer_params):
    return {
      "network": partitioning.init(network, key, *sample),
      "statistics": normalization.parameters(
        None if statistics is None else statistics["state"],
        config.observation.normalization,
        "states",
      ),
      "tokenizer": tokenizer_params,
    }

  def axes():
    return {"network": partitioning.logical_axes(network, *sample)}

  def apply(params, *args, **kwargs) -> Any:
    return network.apply({"params": params["network"]}, *args, **kwargs)

  def observed(params, batch):
    return observation_lib.inputs(params["statistics"], batch, config.observation)

  def prepare(params, batch):
    """Tokens (B, N) and, behind a `prefix` of each row in turn, the `refinement` (B,) to come."""
    inner, dataset_B = params["tokenizer"], batch["dataset"]
    tokens_BN = tokenizer.encode(inner, batch["actions"], batch["action_mask"], dataset_B)
    if not refines:
      return {"tokens": tokens_BN}
    B = tokens_BN.shape[0]
    prefix_B = jnp.asarray(tokenizer.budgets)[jnp.arange(B) % (len(tokenizer.budgets) - 1)]
    # Decoded as many, by one program: a change that is none is 0.
    part_BCA = decode_rows(inner, tokens_BN, prefix_B, dataset_B)
    whole_BCA = decode_rows(inner, tokens_BN, jnp.full(B, N), dataset_B)
    compared = batch | {"actions": whole_BCA}
    change_B = tokenizer_lib.chunk_mse(inner["statistics"], compared, part_BCA)
    return {"tokens": tokens_BN, "prefix": prefix_B, "refinement": change_B}

  def decode_rows(inner, tokens_BN, num_tokens_B, dataset_B):
    """Decodes a prefix of its own length for each row."""
    one = lambda tokens_N, K, dataset: tokenizer.decode(inner, tokens_N[None], K, dataset[None])[0]
    return jax.vmap(one)(tokens_BN, num_tokens_B, dataset_B)

  def teacher_forced(params, batch, deterministic, key=None):
    tokens_BN = batch["tokens"].astype(jnp.int32)
    fed_BN = decoding.fed(tokens_BN, plan.source_N, bos)
    rngs = None if key is None else {"dropout": key}
    logits_BNV, hidden_BND = apply(
      params, observed(params, batch), fed_BN, deterministic, rngs=rngs
    )
    return logits_BNV, hidden_BND, tokens_BN

  def log_refinement(params, hidden_BMD, tokens_BM):
    """Returns (B,), of a whole block."""
    return apply(params, hidden_BMD, tokens_BM, method="log_refinement").mean(1)

  def said(tokens_BN):
    """Where tokens count: all, or those up to the first pad, which ends the sequence."""
    if tokenizer.pad_id is None:
      return jnp.ones(tokens_BN.shape, jnp.float32)
    pad_BN = (tokens_BN == tokenizer.pad_id).astype(jnp.float32)
    return (jnp.cumsum(pad_BN, 1) - pad_BN == 0).astype(jnp.float32)

  def scores(logits_BNV, tokens_BN):
    """Returns cross-entropy and accuracy of every token, and which count, all (B, N)."""
    cross_entropy_BN = optax.softmax_cross_entropy_with_integer_labels(logits_BNV, tokens_BN)
    right_BN = (jnp.argmax(logits_BNV, -1) == tokens_BN).astype(jnp.float32)
    said_BN = said(tokens_BN)
    return cross_entropy_BN * said_BN, right_BN * said_BN, said_BN

  def prepared(params, batch):
    columns = ("tokens", "prefix", "refinement") if refines else ("tokens",)
    missing = [name for name in columns if name not in batch]
    if missing and "tokens" in batch:
      raise ValueError(f"the batch has tokens but no '{missing[0]}'; `prepare` makes all of them")
    return batch | jax.lax.stop_gradient(prepare(params, batch)) if missing else batch

  def loss(params, batch, key):
    """Mean cross-entropy over the tokens, up to the first pad where lengths vary.

    With `blur` a token's neighbours count as it does, the less the farther away.
    Where refinements are learned, the negative log-likelihood of the change behind a block, taken
    as exponentially distributed, is added: its minimum is at the mean, on any scale.
    """
    batch = prepared(params, batch)
    logits_BNV, hidden_BND, tokens_BN = teacher_forced(params, batch, False, key)
    cross_entropy_BN, right_BN, said_BN = scores(logits_BNV, tokens_BN)
    if blurred_VV is not None:
      targets_BNV = jnp.asarray(blurred_VV)[tokens_BN]
      cross_entropy_BN = said_BN * optax.softmax_cross_entropy(logits_BNV, targets_BNV)
    total = cross_entropy_BN.sum() / said_BN.sum()
    aux = {
      "token_accuracy": right_BN.sum() / said_BN.sum(),
      "first_token_accuracy": right_BN[:, 0].mean(),
    }
    if refines:
      aux["refinement_nll"] = refinement_nll(params, batch, hidden_BND, tokens_BN).mean()
      total += REFINEMENT_WEIGHT * aux["refinement_nll"]
    return total, aux

  def refinement_nll(params, batch, hidden_BND, tokens_BN):
    log_BN = apply(params, hidden_BND, tokens_BN, method="log_refinement")
    mine_BN = plan.ends_N == batch["prefix"][:, None]  # the block that ends with the prefix
    log_B = jnp.sum(log_BN * mine_BN, 1) / jnp.sum(mine_BN, 1)
    return jnp.maximum(batch["refinement"], SMALLEST_CHANGE) * jnp.exp(-log_B) + log_B

  def evaluate(params, batch):
    """Teacher-forced `cross_entropy`, `token_accuracy`; greedy `chunk_mse` of 1..N tokens: (B, N).

    Chunk errors are on normalised actions over valid steps, as the tokenizer's own. Where lengths
    vary, cross-entropy is 0 behind the first pad, which ends a sequence, and accuracy is one number
    a row, (B,).
    """
    batch = prepared(params, batch)
    logits_BNV, _, tokens_BN = teacher_forced(params, batch, True)
    cross_entropy_BN, right_BN, said_BN = scores(logits_BNV, tokens_BN)
    if tokenizer.pad_id is not None:
      right_BN = right_BN.sum(1) / said_BN.sum(1)
    _, info = act(params, batch, jax.random.key(0), N, Sampling())
    inner = params["tokenizer"]

    def error(num_tokens):
      actions_BCA = tokenizer.decode(inner, info["tokens_BN"], num_tokens, batch["dataset"])
      return tokenizer_lib.chunk_mse(inner["statistics"], batch, actions_BCA)

    return {
      "cross_entropy": cross_entropy_BN,
      "token_accuracy": right_BN,
      "chunk_mse": jax.lax.map(error, jnp.arange(1, N + 1)).T,
    }

  def act(params, batch, key, num_tokens=None, sampling=Sampling(), tolerance=None):
    num_tokens = N if num_tokens is None else num_tokens
    tokenizer_lib.check_num_tokens(num_tokens, N)
    num_tokens = tokenizer_lib.budget(tokenizer, num_tokens)
    memory = apply(params, observed(params, batch), method="memory")
    batch_size = batch["dataset"].shape[0]

    def score(hidden_BMD, tokens_BM):
      return jnp.exp(log_refinement(params, hidden_BMD, tokens_BM))

    out = decoding.decode(
      lambda fed_BM, cache, at: apply(params, fed_BM, memory, cache, at, method="logits"),
      apply(params, batch_size, method="empty_cache"),
      plan=plan,
      batch_size=batch_size,
      bos=bos,
      num_tokens=num_tokens,
      key=key,
      sampling=sampling,
      end=tokenizer.pad_id,
      score=None if tolerance is None else score,
      tolerance=-jnp.inf if tolerance is None else tolerance,
    )
    inner, dataset_B = params["tokenizer"], batch["dataset"]
    info = {"tokens_BN": out.tokens_BN, "num_tokens": out.num_tokens_B}
    if tolerance is None:
      return tokenizer.decode(inner, out.tokens_BN, num_tokens, dataset_B), info
    info["refinement_BX"] = out.scores_BX
    return decode_rows(inner, out.tokens_BN, out.num_tokens_B, dataset_B), info

  return Policy(
    init=init,
    axes=axes,
    loss=loss,
    evaluate=evaluate,
    act=act,
    prepare=prepare,
    spec=spec,
    max_tokens=N,
    budgets=tokenizer.budgets,
    refines=refines,
  )
