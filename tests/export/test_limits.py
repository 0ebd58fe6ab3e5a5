"""Limits of what a robot is told: nearest inside, by steps that are small enough, never NaN."""

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from oat_jax.export import limits as limits_lib

LIMITS = limits_lib.make([-1, 0, -2], [1, 0, 3], [0.5, 1, 10])


@hypothesis.given(
  hnp.arrays(np.float32, (6, 3), elements=st.floats(-100, 100, width=32)),
  st.none() | hnp.arrays(np.float32, 3, elements=st.floats(-100, 100, width=32)),
)
def test_what_comes_out_is_inside_and_changes_slowly(actions_CA, last_A):
  found_CA = limits_lib.apply(LIMITS, actions_CA, last_A)
  assert (found_CA >= LIMITS.low_A).all() and (found_CA <= LIMITS.high_A).all()
  assert (np.abs(np.diff(found_CA, axis=0)) <= LIMITS.rate_A + 1e-5).all()
  if last_A is not None and ((LIMITS.low_A <= last_A) & (last_A <= LIMITS.high_A)).all():
    assert (np.abs(found_CA[0] - last_A) <= LIMITS.rate_A + 1e-5).all()
  np.testing.assert_allclose(limits_lib.apply(LIMITS, found_CA, last_A), found_CA, atol=1e-5)


def test_what_is_allowed_stays_as_it_is():
  actions_CA = np.array([[0, 0, 0], [0.5, 0, 3], [0, 0, -2]], np.float32)
  np.testing.assert_array_equal(limits_lib.apply(LIMITS, actions_CA), actions_CA)
  many_BCA = np.stack([actions_CA, actions_CA * 2])
  found_BCA = limits_lib.apply(LIMITS, many_BCA)
  np.testing.assert_array_equal(found_BCA[0], actions_CA)
  np.testing.assert_array_equal(found_BCA[1, :, 0], np.float32([0, 0.5, 0]))
  assert many_BCA[1, 1, 0] == 1  # the given ones are not written on


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_of_a_chunk_with_nan_is_told(bad):
  actions_CA = np.zeros((4, 3))
  actions_CA[2, 1] = bad
  with pytest.raises(ValueError, match=r"NaN or infinity at index \[2, 1\]: nothing of them"):
    limits_lib.apply(LIMITS, actions_CA)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (([0, 0], [1], None), "one of each is needed"),
    (([0, 2], [1, 1], None), r"limits of dimension 1 are \[2.0, 1.0\]"),
    (([0, np.nan], [1, 1], None), "limits of dimension 1"),
    (([0, 0], [1, np.inf], None), "limits of dimension 1"),
    (([0, 0], [1, 1], [1, 0]), "limits of dimension 1 .* at rate 0.0"),
    (([0, 0], [1, 1], [np.nan, 1]), "limits of dimension 0"),
  ],
)
def test_limits_that_say_nothing_are_errors(arguments, message):
  with pytest.raises(ValueError, match=message):
    limits_lib.make(*arguments)
