"""FAST (arXiv 2501.09747): cosine transform over time, rounding, byte-pair encoding.

A chunk becomes C * A integer coefficients, all dimensions of the lowest frequency first. Each is
written as one character, and a byte-level BPE (Hugging Face `tokenizers`) that was trained on such
texts makes tokens of them. Encoding is host code; decoding reads a table of the tokens' bytes.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import tokenizers
from tokenizers import trainers

from oat_jax import config as config_lib
from oat_jax.batch import BatchSpec
from oat_jax.data import normalization
from oat_jax.tokenizers import tokenizer as tokenizer_lib
from oat_jax.tokenizers.tokenizer import Tokenizer

DECODING = ("total", "strict")
FITTED = ("bpe_json", "bytes_VX", "lengths_V", "max_token", "min_token")

# A callback's argument above 100 KiB is copied by a thread of the CPU backend, and where all of
# them are busy with the program that waits for the callback, both wait for ever.
_PIECE = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Config:
  """What configs/tokenizer_fast.py sets."""

  vocab_size: int = 1024  # of the BPE; one more id is the pad
  scale: float = 10.0  # quantisation steps per unit of a coefficient
  normalization: str = "q01_q99"
  # strict: a text that is not well-formed UTF-8 of exactly C * A characters decodes as zeros.
  # total: malformed bytes are skipped, missing coefficients are zero, surplus ones are cut off.
  decoding: str = "total"
  max_tokens: int = 0  # N; 0: C * A

  def __post_init__(self):
    # So that every coefficient is a character: some numbers from 0xD800 on are not.
    config_lib.between(self.vocab_size, 2, 32768, "config.model.vocab_size")
    config_lib.above(self.scale, 0, "config.model.scale")
    config_lib.choose(self.normalization, normalization.MODES, "config.model.normalization")
    config_lib.choose(self.decoding, DECODING, "config.model.decoding")
    config_lib.at_least(self.max_tokens, 0, "config.model.max_tokens")


def make(config: Config, spec: BatchSpec, statistics: tokenizer_lib.Statistics | None) -> Tokenizer:
  """Returns FAST for chunks of `spec.action_horizon` steps; see `tokenizer.Tokenizer`.

  Steps that the mask hides hold the last real action, which adds the least to the frequencies of
  the others. Coefficients outside the range that `fit` saw take its ends. Characters above 127 are
  two bytes, so a stream can be longer than N = C * A; it is cut, and loses its highest frequencies.

  `fitted` holds the BPE: `bpe_json` is its file, `bytes_VX` and `lengths_V` spell its tokens, and
  `min_token` and `max_token` are the smallest and largest coefficient of the fit.
  """
  C, A = spec.action_horizon, spec.action_dim
  N, pad_id = config.max_tokens or C * A, config.vocab_size

  def fit(actions_WCA, action_mask_WC, dataset_W):
    known: Any = normalization.parameters(statistics, config.normalization, "actions")
    x_WCA: Any = np.asarray(actions_WCA, np.float32)
    x_WCA = tokenizer_lib.normalize(known, x_WCA, dataset_W)
    x_WCA = np.where(np.asarray(action_mask_WC)[..., None], x_WCA, np.nan)
    coefficients_WN = coefficients(x_WCA, config.scale)
    low, high = int(coefficients_WN.min()), int(coefficients_WN.max())
    bpe = train_bpe(coefficients_WN, low, high, config.vocab_size)
    content = bpe.to_str()
    bytes_VX, lengths_V = _byte_table(json.loads(content)["model"]["vocab"], config.vocab_size)
    fitted = {
      "bpe_json": np.frombuffer(content.encode(), np.uint8).copy(),
      "bytes_VX": bytes_VX,
      "lengths_V": lengths_V,
      "min_token": np.array(low, np.int32),
      "max_token": np.array(high, np.int32),
    }
    return {"statistics": known, "fitted": fitted}

  def own(params):
    """Returns `fitted`; ValueError, where it is another tokenizer's."""
    fitted = params["fitted"]
    if set(fitted) != set(FITTED):
      raise ValueError(f"fitted are {', '.join(sorted(fitted))}; needed are {', '.join(FITTED)}")
    for name in ("bytes_VX", "lengths_V"):
      if fitted[name].shape[0] != config.vocab_size:
        raise ValueError(
          f"fitted '{name}' has shape {list(fitted[name].shape)}; config.model.vocab_size is "
          f"{config.vocab_size}"
        )
    return fitted

  def encode(params, actions_BCA, action_mask_BC, dataset_B=None):
    args = params, actions_BCA, action_mask_BC, dataset_B
    traced = not all(map(tokenizer_lib.concrete, jax.tree.leaves(args)))
    xp = jnp if traced else np
    params, actions_BCA, action_mask_BC, dataset_B = jax.tree.map(xp.asarray, args)
    x_BCA: Any = tokenizer_lib.normalize(params["statistics"], actions_BCA, dataset_B)
    x_BCA = xp.where(action_mask_BC[..., None], x_BCA, np.nan)  # steps to hold
    fitted = own(params)
    args = x_BCA, fitted["bpe_json"], fitted["min_token"], fitted["max_token"]
    if not traced:
      return jnp.asarray(to_tokens([args[0]], [args[1]], *args[2:]))
    rows = max(1, _PIECE // (4 * C * A))
    args = _pieces(args[0], rows), _pieces(args[1], _PIECE), *args[2:]
    tokens_BN = jax.ShapeDtypeStruct((x_BCA.shape[0], N), np.int32)
    return jax.pure_callback(to_tokens, tokens_BN, *args, vmap_method="sequential")

  def to_tokens(pieces_BCA, pieces_X, min_token, max_token):
    """The host's part of encode: normalised actions, NaN where they are hidden -> tokens."""
    x_BCA, content_X = (np.concatenate([np.asarray(x) for x in p]) for p in (pieces_BCA, pieces_X))
    low, high = int(min_token), int(max_token)
    bpe, nearest_X = _load(content_X.tobytes(), high - low)
    # Clipped above too, unlike the published code: what the BPE cannot spell it leaves out, and all
    # that follows would move one place up.
    ids_BN = np.clip(coefficients(x_BCA, config.scale), low, high).astype(np.int64) - low
    tokens_BN = np.full((len(x_BCA), N), pad_id, np.int32)
    for row_N, encoding in zip(tokens_BN, bpe.encode_batch_fast(_texts(nearest_X[ids_BN]))):
      ids = encoding.ids[:N]
      row_N[: len(ids)] = ids
    return tokens_BN

  def read(params, tokens_BN, num_tokens):
    """Returns coefficients (B, C * A), int32, and whether strict decoding accepts them (B,)."""
    fitted = own(params)
    said_BN = (tokens_BN != pad_id) & (jnp.arange(N) < num_tokens)
    said_BN = jnp.cumprod(said_BN, -1, dtype=jnp.int32)
    bytes_BM, length_B = _spell(fitted, tokens_BN, said_BN, 4 * C * A)
    codes_BM, sizes_BM = _characters(bytes_BM)
    values_BM = jnp.clip(codes_BM + fitted["min_token"], fitted["min_token"], fitted["max_token"])
    starts_BM = sizes_BM > 0
    places_BM = jnp.where(starts_BM, jnp.cumsum(starts_BM, -1) - 1, C * A)
    put = lambda places_M, values_M: (
      jnp.zeros(C * A, jnp.int32).at[places_M].set(values_M, mode="drop")
    )
    whole_B = (starts_BM.sum(-1) == C * A) & (sizes_BM.sum(-1) == length_B)
    return jax.vmap(put)(places_BM, values_BM), whole_B

  def decode(params, tokens_BN, num_tokens, dataset_B=None):
    values_BN, whole_B = read(params, tokens_BN, num_tokens)
    if config.decoding == "strict":
      values_BN = jnp.where(whole_B[:, None], values_BN, 0)
    values_BCA = values_BN.reshape(-1, C, A) / jnp.float32(config.scale)
    basis_CC = np.asarray(scipy.fft.dct(np.eye(C), axis=0, norm="ortho"), np.float32)
    x_BCA = jnp.einsum("fc,bfa->bca", basis_CC, values_BCA, precision=jax.lax.Precision.HIGHEST)
    return tokenizer_lib.denormalize(params["statistics"], x_BCA, dataset_B)

  def decodable(params, tokens_BN, num_tokens):
    return read(params, tokens_BN, num_tokens)[1]

  return Tokenizer(
    encode=encode,
    decode=decode,
    spec=spec,
    vocab_size=config.vocab_size + 1,
    max_tokens=N,
    fit=fit,
    host_encode=True,
    pad_id=pad_id,
    decodable=decodable if config.decoding == "strict" else None,
  )


def coefficients(x_BCA: np.ndarray, scale: float) -> np.ndarray:
  """Returns rounded, scaled DCT-II coefficients (B, C * A), row-major: frequency, then dimension.

  Values that are NaN hold the last one that is not, those before the first one that is not hold
  that, and where all are NaN they are zero.
  """
  x_BCA = np.asarray(x_BCA, np.float32)
  real_BCA = ~np.isnan(x_BCA)
  if not real_BCA.all():
    steps_C1 = np.arange(x_BCA.shape[1])[:, None]
    last_BCA = np.maximum.accumulate(np.where(real_BCA, steps_C1, -1), axis=1)
    last_BCA = np.where(last_BCA < 0, real_BCA.argmax(1, keepdims=True), last_BCA)
    x_BCA = np.take_along_axis(np.where(real_BCA, x_BCA, 0), last_BCA, axis=1)
  with np.errstate(over="ignore", invalid="ignore"):
    c_BCA = np.round(np.asarray(scipy.fft.dct(x_BCA, axis=1, norm="ortho")) * np.float32(scale))
  # A sum of values near float32's end is infinite or, of both signs, no number.
  return np.nan_to_num(c_BCA).reshape(len(x_BCA), -1)


def train_bpe(
  coefficients_WN: np.ndarray, low: int, high: int, vocab_size: int
) -> tokenizers.Tokenizer:
  """Returns the byte-level BPE of coefficients in low .. high, each written as one character.

  Trained as the published processor does it: the first high - low + 1 tokens are the characters
  themselves, but texts are spelled by the tokens of the characters' bytes, which come next.

  Raises:
    ValueError: both together are more than `vocab_size` tokens.
  """
  needed = characters = high - low + 1
  if needed <= vocab_size:
    used = "".join(_texts(np.unique(coefficients_WN)[None] - low)).encode()
    needed = len({*range(characters), *(ord(_BYTES[byte]) for byte in set(used))})
  if needed > vocab_size:
    raise ValueError(
      f"the chunks' coefficients lie in {low}..{high}, which takes at least {needed} tokens, but "
      f"config.model.vocab_size is {vocab_size}: raise it, or lower config.model.scale (a "
      "normalization of min_max also keeps outliers small)"
    )
  bpe = tokenizers.ByteLevelBPETokenizer()._tokenizer
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    min_frequency=2,
    show_progress=False,
    special_tokens=[],
    initial_alphabet=[chr(i) for i in range(characters)],
    max_token_length=10000,
  )
  bpe.train_from_iterator(_texts(coefficients_WN - low), trainer=trainer)
  return bpe


def _byte_alphabet() -> str:
  """The character that stands for each of the 256 bytes in a byte-level BPE's tokens."""
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = iter(range(256, 512))
  return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


_BYTES = _byte_alphabet()


def _texts(ids_BN: np.ndarray) -> list[str]:
  return [row_N.astype("<u4").tobytes().decode("utf-32-le") for row_N in ids_BN]


def _byte_table(vocab: dict[str, int], size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns each token's bytes (V, X), zeros behind them, and their number (V,); unused ids: 0.

  As `tokenizers` decodes: a token with a character that stands for no byte is its own UTF-8.
  """
  byte_of = {character: byte for byte, character in enumerate(_BYTES)}
  spelled = [b""] * size
  for token, i in vocab.items():
    known = all(character in byte_of for character in token)
    spelled[i] = bytes(byte_of[c] for c in token) if known else token.encode()
  lengths_V = np.array([len(content) for content in spelled], np.int32)
  width = int(lengths_V.max())
  padded = b"".join(content.ljust(width, b"\0") for content in spelled)
  return np.frombuffer(padded, np.uint8).reshape(size, width).copy(), lengths_V


@functools.lru_cache(maxsize=8)
def _load(content: bytes, highest: int) -> tuple[tokenizers.Tokenizer, np.ndarray]:
  """Returns the BPE of a JSON file and, for every character, the nearest that it can spell."""
  bpe = tokenizers.Tokenizer.from_str(content.decode())
  vocab = bpe.get_vocab()
  # A byte that no text of the fit held has no token, and would be left out.
  spelled = [all(_BYTES[byte] in vocab for byte in chr(i).encode()) for i in range(highest + 1)]
  spelled_X = np.flatnonzero(spelled)
  nearest = [spelled_X[np.abs(spelled_X - i).argmin()] for i in range(highest + 1)]
  return bpe, np.array(nearest)


def _pieces(x: jax.Array, rows: int) -> Sequence[jax.Array]:
  return [x[i : i + rows] for i in range(0, x.shape[0], rows)]


def _spell(fitted, tokens_BN, said_BN, size):
  """Returns the first `size` (M) bytes of the tokens that are said, -1 behind them, and how many
  bytes (B,) there are in all."""
  V, _ = fitted["bytes_VX"].shape
  ids_BN = jnp.minimum(tokens_BN, V - 1)  # the pad spells nothing
  lengths_BN = fitted["lengths_V"][ids_BN] * said_BN
  ends_BN = jnp.cumsum(lengths_BN, -1)
  count = lambda ends_N: jnp.zeros(size, jnp.int32).at[ends_N].add(1, mode="drop")
  token_BM = jnp.cumsum(jax.vmap(count)(ends_BN), -1)  # how many tokens end up to here
  token_BM = jnp.minimum(token_BM, tokens_BN.shape[1] - 1)
  of = lambda x_BN: jnp.take_along_axis(x_BN, token_BM, axis=-1)
  places_M = jnp.arange(size)
  bytes_BM = fitted["bytes_VX"][of(ids_BN), places_M - of(ends_BN - lengths_BN)]
  length_B = ends_BN[:, -1]
  return jnp.where(places_M < length_B[:, None], bytes_BM.astype(jnp.int32), -1), length_B


def _characters(bytes_BM):
  """Reads UTF-8: returns the code of the character that begins at each byte, and its bytes' number,
  0 where none begins that is well-formed."""
  padded_BM = jnp.pad(bytes_BM, ((0, 0), (0, 3)), constant_values=-1)
  M = bytes_BM.shape[1]
  b0, b1, b2, b3 = (padded_BM[:, i : i + M] for i in range(4))
  more = lambda x_BM: (x_BM >> 6) == 2
  two = (b0 & 0x1F) << 6 | b1 & 0x3F
  three = (b0 & 0x0F) << 12 | (b1 & 0x3F) << 6 | b2 & 0x3F
  four = (b0 & 0x07) << 18 | (b1 & 0x3F) << 12 | (b2 & 0x3F) << 6 | b3 & 0x3F
  surrogate = (three >> 11) == 0x1B
  kinds = [
    (b0 >> 7) == 0,
    (b0 >> 5 == 0x06) & more(b1) & (two >= 0x80),
    (b0 >> 4 == 0x0E) & more(b1) & more(b2) & (three >= 0x800) & ~surrogate,
    (b0 >> 3 == 0x1E) & more(b1) & more(b2) & more(b3) & (four >= 0x10000) & (four <= 0x10FFFF),
  ]
  sizes = [jnp.full_like(b0, size) for size in (1, 2, 3, 4)]
  return jnp.select(kinds, [b0, two, three, four]), jnp.select(kinds, sizes)
