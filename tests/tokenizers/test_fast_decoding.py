"""FAST's decoding, total and strict, against an oracle; any bytes, any prefix, no host code."""

from fast_oracle import A
from fast_oracle import C
from fast_oracle import chunks
from fast_oracle import fit
from fast_oracle import in_units
from fast_oracle import make
from fast_oracle import N
from fast_oracle import normalized
from fast_oracle import Oracle
from fast_oracle import padded
from fast_oracle import said
from fast_oracle import V
import jax
import numpy as np
import pytest
import scipy.fft
import tiny


@pytest.fixture(scope="module")
def tokenizer():
  return make()


@pytest.fixture(scope="module")
def params(tokenizer):
  return fit(tokenizer, *chunks(400))


@pytest.fixture(scope="module")
def oracle(params):
  return Oracle(normalized(params, *chunks(400)))


@pytest.fixture(scope="module")
def strict():
  return make(decoding="strict")


def sequences(tokenizer, params, kind):
  """Rows of ids: of real chunks, some tokens changed, or random; with an end or without one."""
  rng = np.random.default_rng(5)
  x_BCA, dataset_B = chunks(150, seed=2)
  tokens_BN = np.asarray(tokenizer.encode(params, x_BCA, None, dataset_B)).copy()
  if kind == "corrupted":
    for tokens_N in tokens_BN:
      tokens_N[rng.integers(len(said(tokens_N)))] = rng.integers(V)
  if kind == "random":
    tokens_BN = rng.integers(0, V, tokens_BN.shape, np.int32)
    tokens_BN[::2][np.arange(N) >= rng.integers(1, N, (75, 1))] = V
  return tokens_BN, dataset_B


@pytest.mark.parametrize("kind", ["real", "corrupted", "random"])
def test_decode_equals_the_oracle_s(tokenizer, strict, params, oracle, kind):
  tokens_BN, dataset_B = sequences(tokenizer, params, kind)
  for made, decoding in ((tokenizer, "total"), (strict, "strict")):
    rows = [oracle.decode(said(tokens_N), decoding) for tokens_N in tokens_BN]
    expected_BCA = in_units(params, np.array([x for x, _ in rows]), dataset_B)
    got_BCA = np.asarray(made.decode(params, tokens_BN, N, dataset_B))
    np.testing.assert_allclose(got_BCA, expected_BCA, atol=2e-5)
    whole = np.array([ok for _, ok in rows])
  np.testing.assert_array_equal(jax.jit(strict.decodable)(params, tokens_BN), whole)
  assert tokenizer.decodable is None
  assert whole.all() if kind == "real" else not whole.all()
  assert whole.any() or kind == "random"
  # What strict decoding accepts, total decoding reads the same way.
  total_BCA, strict_BCA = (m.decode(params, tokens_BN, N, dataset_B) for m in (tokenizer, strict))
  np.testing.assert_array_equal(total_BCA[whole], strict_BCA[whole])
  zero_BCA = in_units(params, np.zeros((150, C, A)), dataset_B)
  np.testing.assert_allclose(strict_BCA[~whole], zero_BCA[~whole], atol=1e-6)


@pytest.fixture(scope="module")
def wide():
  """A vocabulary with bytes of characters of any length, and with tokens that stand for no byte."""
  rng = np.random.default_rng(0)
  x_WCA = rng.normal(size=(400, C, A)).astype(np.float32) * 5
  tokenizer = make(tiny.spec(), tiny.statistics(A), vocab_size=800, normalization="none")
  params = fit(tokenizer, x_WCA, np.zeros(400, int))
  return tokenizer, params, Oracle(x_WCA, 800)


def test_the_table_of_bytes_agrees_with_tokenizers_own_decode(wide):
  _, params, oracle = wide
  fitted = params["fitted"]
  assert oracle.high - oracle.low > 0xF4 and fitted["bytes_VX"].max() >= 0xF4
  spelled = [row[:n].tobytes() for row, n in zip(fitted["bytes_VX"], fitted["lengths_V"])]
  rng = np.random.default_rng(1)
  used = oracle.bpe.get_vocab_size()
  rows = [[i] for i in range(used)] + rng.integers(0, used, (300, 40)).tolist()
  # Characters of several bytes, and sequences that only look like them.
  special = [i for i in range(used) if spelled[i] and spelled[i][0] >= 0x80 and len(spelled[i]) < 3]
  rows += rng.choice(special, (3000, 12)).tolist()
  seen = set()
  for ids in rows:
    text = oracle.bpe.decode(ids)
    assert b"".join(spelled[i] for i in ids).decode(errors="replace") == text
    seen |= {len(c.encode()) for c in text if c != "\ufffd"}
  assert seen >= {1, 2, 3}


def test_any_bytes_are_read_as_utf8_is(wide):
  tokenizer, params, oracle = wide
  table = zip(params["fitted"]["bytes_VX"], params["fitted"]["lengths_V"])
  token_of = {row[0]: i for i, (row, length) in enumerate(table) if length == 1}
  # The bounds of well-formed characters: shortest and longest, surrogates, above the last one.
  edges = "00 41 7F 80 8F 90 9F A0 BF C0 C1 C2 DF E0 E1 EC ED EE EF F0 F1 F3 F4 F5 FF"
  edges = np.array([byte for byte in bytes.fromhex(edges) if byte in token_of])
  assert len(edges) > 20
  rng = np.random.default_rng(2)
  bytes_BN = rng.choice(edges, (2000, N))
  bytes_BN[1000:, ::4] = rng.choice(edges[edges >= 0xC0], (1000, N // 4))
  for i in (1, 2):
    more_X = edges[(edges >= 0x80) & (edges < 0xC0)]
    bytes_BN[1000:, i::4] = rng.choice(more_X, (1000, N // 4))
  tokens_BN = np.vectorize(token_of.get)(bytes_BN)
  found = [bytes(row.tolist()).decode(errors="ignore") for row in bytes_BN]
  found = [[min(ord(c) + oracle.low, oracle.high) for c in text] for text in found]
  c_BCA = padded(found, pad=0).reshape(-1, C, A) / 10
  x_BCA = scipy.fft.idct(c_BCA, axis=1, norm="ortho")
  expected_BCA = in_units(params, x_BCA, np.zeros(2000, int))
  np.testing.assert_allclose(tokenizer.decode(params, tokens_BN), expected_BCA, atol=1e-4)


def test_strict_decoding_counts_characters_not_bytes_and_wants_all_of_them_well_formed(wide):
  _, params, oracle = wide
  changes = {"vocab_size": 800, "normalization": "none", "max_tokens": N + 1}
  strict = make(tiny.spec(), None, decoding="strict", **changes)
  two = oracle.bpe.token_to_id("\u0160")  # of two bytes, as its own character
  lone = next(i for i in range(800) if params["fitted"]["bytes_VX"][i, 0] == 0xBF)
  assert params["fitted"]["lengths_V"][[two, lone]].tolist() == [2, 1]
  ends = {800: True, lone: False, 0x41: False}  # pad, malformed, one character too many
  tokens_BN = np.array([[two] * N + [end] for end in ends])
  decodable = jax.jit(strict.decodable)
  assert decodable(params, tokens_BN).tolist() == list(ends.values())
  assert decodable(params, tokens_BN, N).all() and not decodable(params, tokens_BN, N - 1).any()
  decoded_BCA = np.asarray(strict.decode(params, tokens_BN))
  assert decoded_BCA[0].any() and not decoded_BCA[1:].any()


def test_nothing_behind_the_first_pad_has_influence_and_a_prefix_is_what_ends_there(
  tokenizer, params
):
  tokens_BN, dataset_B = sequences(tokenizer, params, "random")
  decode = lambda tokens, K=N: np.asarray(tokenizer.decode(params, tokens, K, dataset_B))
  behind_BN = np.cumsum(tokens_BN == V, -1) > 1
  other_BN = np.random.default_rng(3).integers(0, V + 1, tokens_BN.shape)
  assert behind_BN.any()
  np.testing.assert_array_equal(decode(tokens_BN), decode(np.where(behind_BN, other_BN, tokens_BN)))
  for K in (1, 5, N // 2):
    ended_BN = np.where(np.arange(N) < K, tokens_BN, V)
    np.testing.assert_array_equal(decode(tokens_BN, K), decode(ended_BN))
    assert (decode(tokens_BN, K) != decode(tokens_BN, K + 1)).any()
  # Nothing said: all coefficients are zero.
  empty_BCA = in_units(params, np.zeros((150, C, A)), dataset_B)
  np.testing.assert_allclose(decode(np.full_like(tokens_BN, V)), empty_BCA, atol=1e-6)


def test_decode_exports_without_host_code(tokenizer, params):
  struct = lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype)
  tokens_BN, dataset_B = sequences(tokenizer, params, "corrupted")
  args = params, tokens_BN, np.int32(N), dataset_B
  exported = jax.export.export(jax.jit(tokenizer.decode), platforms=("cpu", "cuda", "tpu"))(
    *jax.tree.map(struct, args)
  )
  got_BCA = jax.export.deserialize(exported.serialize()).call(*args)
  np.testing.assert_allclose(got_BCA, tokenizer.decode(*args), atol=1e-6)
