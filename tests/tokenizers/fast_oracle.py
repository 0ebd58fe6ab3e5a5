"""An oracle of FAST made of scipy and `tokenizers` alone, and what FAST's tests share.

The oracle follows the published processor step by step. It differs where this one says so: it clips
coefficients to the fitted range, and does not take a malformed character for a coefficient.
"""

import numpy as np
import scipy.fft
import tiny
import tokenizers as hf

from oat_jax import tokenizers

C, A, V = 8, 3, 300
N = C * A
SPEC = tiny.spec(num_datasets=2)
STATISTICS = tiny.statistics(A, datasets=2)


def make(spec=SPEC, statistics=STATISTICS, **changes):
  return tokenizers.make({"name": "fast", "vocab_size": V} | changes, spec, statistics)


def chunks(count, seed=0, noise=0.1, C=C, A=A):
  """Smooth motion and noise, (count, C, A), and numbers of datasets."""
  rng = np.random.default_rng(seed)
  phase_XA, speed_XA = rng.uniform(0, 6, (count, A)), rng.uniform(0, 1, (count, A))
  x_XCA = np.sin(phase_XA[:, None] + speed_XA[:, None] * np.arange(C)[:, None])
  x_XCA = x_XCA * rng.uniform(0, 1, (count, 1, 1)) + noise * rng.normal(size=(count, C, A))
  return x_XCA.astype(np.float32), rng.integers(0, 2, count, np.int32)


def fit(tokenizer, x_WCA, dataset_W):
  return tokenizer.fit(x_WCA, np.ones(x_WCA.shape[:2], bool), dataset_W)


class Oracle:
  """Trained on normalised chunks; `low`, `high` are the smallest and the largest coefficient."""

  def __init__(self, x_WCA, vocab_size=V):
    self.C, self.A = x_WCA.shape[1:]
    all_coefficients = [np.around(scipy.fft.dct(x, axis=0, norm="ortho") * 10) for x in x_WCA]
    self.low, self.high = int(np.min(all_coefficients)), int(np.max(all_coefficients))
    self.bpe = hf.ByteLevelBPETokenizer()
    trainer = hf.trainers.BpeTrainer(
      vocab_size=vocab_size,
      min_frequency=2,
      show_progress=False,
      special_tokens=[],
      initial_alphabet=[chr(i) for i in range(self.high - self.low + 1)],
      max_token_length=10000,
    )
    self.bpe._tokenizer.train_from_iterator(map(self.text, all_coefficients), trainer=trainer)

  def text(self, coefficients_CA):
    clipped = np.clip(coefficients_CA, self.low, self.high).astype(int)
    return "".join(chr(c - self.low) for c in clipped.flatten())

  def coefficients(self, x_CA):
    return np.around(scipy.fft.dct(x_CA, axis=0, norm="ortho") * 10)

  def encode(self, x_CA):
    return self.bpe.encode(self.text(self.coefficients(x_CA))).ids

  def characters(self, ids):
    return [min(ord(c) + self.low, self.high) for c in self.bpe.decode(ids) if c != "\ufffd"]

  def decode(self, ids, decoding):
    """Returns normalised actions and whether strict decoding succeeds."""
    found, size = self.characters(ids), self.C * self.A
    whole = len(found) == size and "\ufffd" not in self.bpe.decode(ids)
    if not whole:
      found = padded([found if decoding == "total" else []], size, 0)
    c_CA = np.reshape(found, (self.C, self.A)) / 10
    return scipy.fft.idct(c_CA, axis=0, norm="ortho"), whole


def bpe_of(params):
  return hf.Tokenizer.from_str(params["fitted"]["bpe_json"].tobytes().decode())


def row(params, name, dataset_B):
  return params["statistics"][name][dataset_B][:, None]


def normalized(params, x_BCA, dataset_B):
  return (x_BCA - row(params, "offset", dataset_B)) * row(params, "scale", dataset_B)


def in_units(params, x_BCA, dataset_B):
  x_BCA = x_BCA / row(params, "scale", dataset_B) + row(params, "offset", dataset_B)
  return np.clip(x_BCA, row(params, "min", dataset_B), row(params, "max", dataset_B))


def said(tokens_N, pad=V):
  """The ids in front of the first pad."""
  return list(tokens_N[: np.argmax(tokens_N == pad) if pad in tokens_N else len(tokens_N)])


def padded(rows, N=N, pad=V):
  return np.array([(list(ids) + [pad] * N)[:N] for ids in rows], np.int32)
