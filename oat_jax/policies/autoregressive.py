"""Autoregressive policy over ordered tokens (arXiv 2602.04215).

A decoder with cross-attention to the observation, trained by cross-entropy on the frozen
tokenizer's tokens. Acting encodes the observation once, generates K tokens with a KV cache and
decodes them to a chunk: fewer tokens are faster and coarser.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
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
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

# 1000 codes and BOS divide by nothing; padded to this, a vocabulary shards over any usual mesh.
VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 256  # D
  head_width: int = 64  # K
  layers: int = 4  # L
  mlp_ratio: int = 4
  dropout: float = 0.1
  observation: observation_lib.Config = observation_lib.Config()
  dtype: str = "float32"

  def __post_init__(self):
    config_lib.check_transformer(self, "layers")


class Network(nn.Module):
  """Observation tokens and shifted action tokens -> logits over the next token."""

  config: Config
  spec: BatchSpec
  vocab_size: int  # V, without BOS
  max_tokens: int  # N

  def setup(self):
    c = self.config
    D, dtype = c.width, jnp.dtype(c.dtype)
    padded = -(-(self.vocab_size + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    self.observe = observation_lib.Encoder(c.observation, self.spec, D, dtype)
    self.embed_tokens = linear.Embed(padded, D, dtype=dtype)
    positions = initializers.normal(None, "embed", stddev=1.0)
    self.positions_ND = self.param("positions", positions, (self.max_tokens, D))
    self.transformer = transformer.Transformer(
      c.layers, D, D // c.head_width, c.mlp_ratio * D, cross=True, dropout=c.dropout, dtype=dtype
    )
    self.to_logits = linear.Linear(padded, "embed", "vocab", scale=0.1)

  def memory(self, seen, deterministic=True):
    """Returns the cross-attention's keys and values: the cost of looking, paid once a chunk."""
    return self.transformer.memory(self.observe(seen, deterministic))

  def empty_cache(self, batch_size):
    return self.transformer.empty_cache(batch_size, self.max_tokens)

  def logits(self, tokens_BM, memory, cache=None, index=0, deterministic=True):
    """Feeds tokens at positions from `index` on; returns (logits_BMV of the next ones, cache)."""
    M = tokens_BM.shape[1]
    S = M if cache is None else self.max_tokens
    positions_MD = jax.lax.dynamic_slice_in_dim(self.positions_ND, index, M)
    x_BMD = self.embed_tokens(tokens_BM) + positions_MD.astype(self.embed_tokens.dtype)
    mask_1MS = (jnp.arange(S) <= index + jnp.arange(M)[:, None])[None]
    x_BMD, cache = self.transformer(
      x_BMD, mask_1MS, memory=memory, cache=cache, index=index, deterministic=deterministic
    )
    return self.to_logits(x_BMD.astype(jnp.float32))[..., : self.vocab_size], cache

  def __call__(self, seen, tokens_BN, deterministic=True):
    """Teacher forcing: `tokens_BN` begins with BOS; returns logits_BNV."""
    memory = self.memory(seen, deterministic)
    return self.logits(tokens_BN, memory, deterministic=deterministic)[0]


def make(config: Config, spec: BatchSpec, statistics: Any, tokenizer: Tokenizer | None) -> Policy:
  """Returns the policy over `tokenizer`'s tokens; the contract is `policy.Policy`."""
  if tokenizer is None:
    raise ValueError(
      "an autoregressive policy needs a tokenizer: set config.tokenizer to its working directory"
    )
  N, V = tokenizer.max_tokens, tokenizer.vocab_size
  bos = V
  network = Network(config, spec, V, N)
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
    tokens_BN = tokenizer.encode(
      params["tokenizer"], batch["actions"], batch["action_mask"], batch["dataset"]
    )
    return {"tokens": tokens_BN}

  def teacher_forced(params, batch, deterministic, key=None):
    tokens_BN = batch["tokens"] if "tokens" in batch else prepare(params, batch)["tokens"]
    tokens_BN = tokens_BN.astype(jnp.int32)
    shifted_BN = jnp.concatenate([jnp.full_like(tokens_BN[:, :1], bos), tokens_BN[:, :-1]], 1)
    rngs = None if key is None else {"dropout": key}
    logits_BNV = apply(params, observed(params, batch), shifted_BN, deterministic, rngs=rngs)
    return logits_BNV, tokens_BN

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

  def loss(params, batch, key):
    """Mean cross-entropy over the tokens, up to the first pad where lengths vary."""
    logits_BNV, tokens_BN = teacher_forced(params, batch, False, key)
    cross_entropy_BN, right_BN, said_BN = scores(logits_BNV, tokens_BN)
    return cross_entropy_BN.sum() / said_BN.sum(), {
      "token_accuracy": right_BN.sum() / said_BN.sum(),
      "first_token_accuracy": right_BN[:, 0].mean(),
    }

  def evaluate(params, batch):
    """Teacher-forced `cross_entropy`, `token_accuracy`; greedy `chunk_mse` of 1..N tokens: (B, N).

    Chunk errors are on normalised actions over valid steps, as the tokenizer's own. Where lengths
    vary, cross-entropy is 0 behind the first pad, which ends a sequence, and accuracy is one number
    a row, (B,).
    """
    logits_BNV, tokens_BN = teacher_forced(params, batch, True)
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

  def act(params, batch, key, num_tokens=None, sampling=Sampling()):
    num_tokens = N if num_tokens is None else num_tokens
    tokenizer_lib.check_num_tokens(num_tokens, N)
    num_tokens = tokenizer_lib.budget(tokenizer, num_tokens)
    memory = apply(params, observed(params, batch), method="memory")
    batch_size = batch["dataset"].shape[0]

    def step(token_B, cache, position):
      logits_B1V, cache = apply(params, token_B[:, None], memory, cache, position, method="logits")
      return logits_B1V[:, 0], cache

    tokens_BN = decoding.decode(
      step,
      apply(params, batch_size, method="empty_cache"),
      batch_size=batch_size,
      max_tokens=N,
      bos=bos,
      num_tokens=num_tokens,
      key=key,
      sampling=sampling,
    )
    actions_BCA = tokenizer.decode(params["tokenizer"], tokens_BN, num_tokens, batch["dataset"])
    return actions_BCA, {"tokens_BN": tokens_BN, "num_tokens": num_tokens}

  return Policy(
    init=init,
    axes=axes,
    loss=loss,
    evaluate=evaluate,
    act=act,
    prepare=prepare,
    spec=spec,
    max_tokens=N,
  )
