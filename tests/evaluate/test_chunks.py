"""Temporal ensembling equals a plain loop over all that was ever said about a step."""

import numpy as np
import pytest

from oat_jax.evaluate import chunks

B, A = 3, 2


def plain(said, m, R, call):
  """The R actions of one episode's call, from (call, chunk) of all its calls: ACT, algorithm 2."""
  actions = []
  for t in range(R * call, R * (call + 1)):
    covering = [(R * c, chunk[t - R * c]) for c, chunk in said if 0 <= t - R * c < len(chunk)]
    oldest = min(asked for asked, _ in covering)
    weights = [np.exp(-m * (asked - oldest)) for asked, _ in covering]
    actions.append(sum(w * a for w, (_, a) in zip(weights, covering)) / sum(weights))
  return np.stack(actions)


@pytest.mark.parametrize("m", [0.01, 0.5, 0.0, -0.3])
@pytest.mark.parametrize("C, R", [(8, 1), (8, 3), (8, 4), (8, 8), (5, 2)])
def test_an_ensemble_equals_a_plain_loop(C, R, m):
  """Episode 1 begins again behind its call 3, and only what it said since then counts."""
  rng = np.random.default_rng(0)
  ensemble = chunks.Ensemble(m, R)
  said, begun = [[] for _ in range(B)], np.zeros(B, int)
  for call in range(10):
    chunks_BCA = rng.normal(size=(B, C, A)).astype(np.float32)
    found_BRA = ensemble(chunks_BCA)
    assert found_BRA.shape == (B, R, A) and found_BRA.dtype == np.float32
    for b in range(B):
      said[b].append((call - begun[b], chunks_BCA[b]))
      expected = plain(said[b], m, R, call - begun[b])
      np.testing.assert_allclose(found_BRA[b], expected, rtol=1e-5, atol=1e-6)
    if call == 3:
      ensemble.clear(np.array([False, True, False]))
      said[1], begun[1] = [], call + 1


@pytest.mark.parametrize("m, favoured", [(50.0, 1.0), (-50.0, 2.0)])
def test_the_sign_says_whether_the_oldest_or_the_newest_chunk_counts(m, favoured):
  ensemble = chunks.Ensemble(m, 2)
  ensemble(np.full((1, 4, 1), 1.0, np.float32))
  np.testing.assert_allclose(ensemble(np.full((1, 4, 1), 2.0, np.float32)), favoured)


def test_chunks_that_are_executed_whole_stay_as_they_are():
  ensemble = chunks.Ensemble(0.01, 4)
  for i in range(3):
    np.testing.assert_array_equal(
      ensemble(np.full((1, 4, 1), i, np.float32)), np.full((1, 4, 1), i)
    )


@pytest.mark.parametrize("m", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_an_error(m):
  with pytest.raises(ValueError, match=f"ensemble is {m}; it must be a finite number"):
    chunks.Ensemble(m, 1)
