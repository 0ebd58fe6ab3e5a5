"""Every tokenizer, also one of anyone's, as jax.export serialises it and written down for numpy."""

import json

from contract import batch
from contract import BOTH
from contract import Case
from contract import CASES
from contract import columns
from contract import make
from contract import make_params
from jax import export
import numpy as np
import pytest

from oat_jax.export import functions
from oat_jax.export import numpy_decode
from oat_jax.export import to_numpy


@pytest.fixture(scope="module", params=CASES)
def case(request):
  tokenizer = make(CASES[request.param])
  return Case(request.param, tokenizer, make_params(tokenizer))


def tokens(tokenizer, B, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, tokenizer.vocab_size, (B, tokenizer.max_tokens), np.int32)


def test_serialised_functions_are_the_tokenizer_s(case):
  tokenizer, params = case.tokenizer, case.params
  built = functions.build(tokenizer, tokenizer, params, platforms=("cpu",))
  assert set(built) == {"decode"} | ({"encode"} if not tokenizer.host_encode else set())
  calls = {name: export.deserialize(bytearray(x.serialize())).call for name, x in built.items()}
  for B in (1, 3):  # one program for all sizes of batches
    dataset_B, tokens_BN = np.resize(BOTH, B), tokens(tokenizer, B)
    for K in sorted({1, tokenizer.max_tokens // 2, tokenizer.max_tokens}):
      found_BCA = calls["decode"](params, tokens_BN, np.int32(K), dataset_B)
      np.testing.assert_array_equal(found_BCA, tokenizer.decode(params, tokens_BN, K, dataset_B))
    if "encode" in calls:
      seen = [x[:B] for x in columns(batch())]
      found_BN = calls["encode"](params, *seen)
      np.testing.assert_array_equal(found_BN, tokenizer.encode(params, *seen))


def test_numpy_decodes_as_jax_does(case):
  tokenizer, params = case.tokenizer, case.params
  program, arrays = to_numpy.write_down(tokenizer, params)
  decoder = numpy_decode.Decoder.__new__(numpy_decode.Decoder)
  decoder.spec = {"max_tokens": tokenizer.max_tokens, "vocab_size": tokenizer.vocab_size}
  decoder.spec |= {"num_datasets": 2, "action_horizon": 8, "action_dim": 3}
  decoder._program, decoder._arrays = json.loads(json.dumps(program)), arrays
  for K in sorted({1, tokenizer.max_tokens // 2, tokenizer.max_tokens}):
    for seed in range(3):
      tokens_BN, dataset_B = tokens(tokenizer, 4, seed), np.resize(BOTH, 4)
      wanted_BCA = np.asarray(tokenizer.decode(params, tokens_BN, K, dataset_B))
      found_BCA = decoder(tokens_BN, K, dataset_B)
      assert found_BCA.dtype == np.float32
      np.testing.assert_allclose(found_BCA, wanted_BCA, rtol=0, atol=1e-5)
  assert decoder(tokens_BN[:0]).shape == (0, 8, 3)
