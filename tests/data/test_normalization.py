"""Statistics are exact, and no dimension explodes."""

import json

import numpy as np
import pytest

from oat_jax.data import normalization


def map_values(values, statistics, mode):
  offset, scale = normalization.affine(statistics, mode)
  assert offset.dtype == scale.dtype == np.float32
  return (values - offset) * scale


def test_statistics_of_a_hand_made_array():
  values = np.stack([np.arange(101), [7] * 101, [0] * 100 + [101]], axis=1).astype(np.float32)
  s = normalization.compute(values)
  np.testing.assert_array_equal(s.min, [0, 7, 0])
  np.testing.assert_array_equal(s.max, [100, 7, 101])
  np.testing.assert_array_equal(s.mean, [50, 7, 1])
  np.testing.assert_array_equal(s.std, np.float32([np.sqrt((101**2 - 1) / 12), 0, 10]))
  np.testing.assert_array_equal(s.q01, [1, 7, 0])
  np.testing.assert_array_equal(s.q99, [99, 7, 0])
  assert s.count == 101 and s.mask.tolist() == [True] * 3
  assert all(a.dtype == np.float32 for a in s[:-2])


def test_means_of_many_large_values_do_not_drift():
  values = np.full((300_000, 1), 1000.1, np.float32)
  s = normalization.compute(values)
  assert s.mean[0] == values[0, 0] and s.std[0] < 1e-6


def test_modes_map_to_their_ranges():
  values = np.random.default_rng(0).normal([3, -200], [0.01, 50], (1000, 2)).astype(np.float32)
  s = normalization.compute(values)
  mapped = map_values(values, s._asdict(), "min_max")
  np.testing.assert_allclose([mapped.min(0), mapped.max(0)], [[-1, -1], [1, 1]], atol=1e-4)
  mapped = map_values(np.stack([s.q01, s.q99]), s._asdict(), "q01_q99")
  np.testing.assert_allclose(mapped, [[-1, -1], [1, 1]], atol=1e-4)
  mapped = map_values(values, s._asdict(), "mean_std")
  np.testing.assert_allclose(mapped.mean(0), 0, atol=1e-3)
  np.testing.assert_allclose(mapped.std(0), 1, atol=1e-3)
  np.testing.assert_array_equal(map_values(values, s._asdict(), "none"), values)


@pytest.mark.parametrize("mode", ["min_max", "q01_q99", "mean_std"])
@pytest.mark.parametrize("centre", [0.0, 1.0, 1e4])
def test_nearly_constant_dimensions_are_centred_but_not_scaled(mode, centre):
  noise = 2e-6 * max(1, centre) * np.random.default_rng(0).standard_normal((500, 1))
  values = (centre + noise).astype(np.float32)
  s = normalization.compute(values)
  assert normalization.affine(s._asdict(), mode)[1] == 1
  assert np.abs(map_values(values, s._asdict(), mode)).max() < 1e-4 * max(1, centre)


def test_small_but_real_ranges_are_scaled():
  s = normalization.compute(np.linspace(-0.001, 0.001, 50)[:, None])
  assert normalization.affine(s._asdict(), "min_max")[1] == pytest.approx(1000)


@pytest.mark.parametrize("mode", normalization.MODES)
def test_a_dimension_outside_the_mask_stays_as_it_is(mode):
  values = np.random.default_rng(0).normal(3, 2, (40, 3)).astype(np.float32)
  s = normalization.compute(values)
  mapped = map_values(values, s._replace(mask=np.array([True, False, True]))._asdict(), mode)
  np.testing.assert_array_equal(mapped[:, 1], values[:, 1])
  np.testing.assert_array_equal(mapped[:, [0, 2]], map_values(values, s._asdict(), mode)[:, [0, 2]])


def test_rows_that_are_chosen_alone_count():
  values = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
  chosen = np.arange(30) % 3 == 0
  for got, expected in zip(
    normalization.compute(values, chosen), normalization.compute(values[::3])
  ):
    np.testing.assert_array_equal(got, expected)
  with pytest.raises(ValueError, match="with steps"):
    normalization.compute(values, np.zeros(30, bool))


def test_placed_statistics_are_those_of_zeros_elsewhere():
  values = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
  wide = np.zeros((30, 4), np.float32)
  wide[:, [3, 1]] = values
  placed = normalization.place(normalization.compute(values), np.array([3, 1]), 4)
  for got, expected in zip(placed, normalization.compute(wide)):
    np.testing.assert_array_equal(got, expected)


def test_mixtures_are_stacked_and_mapped_row_by_row():
  rng = np.random.default_rng(0)
  parts = [normalization.compute(rng.normal(size=(20, 3)) * k) for k in (1, 10)]
  stacked = normalization.stack(parts)
  assert {v.shape for v in stacked.values()} == {(2, 3)} and "count" not in stacked
  for mode in normalization.MODES:
    rows = [normalization.affine(part._asdict(), mode) for part in parts]
    np.testing.assert_array_equal(normalization.affine(stacked, mode), np.stack(rows, axis=1))


def test_json_round_trip_is_exact():
  s = normalization.compute(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
  back = normalization.from_json(json.loads(json.dumps(normalization.to_json(s))))
  for name, value in s._asdict().items():
    np.testing.assert_array_equal(getattr(back, name), value, err_msg=name)
  assert isinstance(back.count, int)


def test_bad_input():
  good = normalization.compute(np.ones((2, 2)))
  with pytest.raises(ValueError, match="'minmax'; expected one of min_max, q01_q99, mean_std"):
    normalization.affine(good._asdict(), "minmax")
  with pytest.raises(ValueError, match=r"first at \[1, 0\]"):
    normalization.compute(np.array([[0.0, 1], [np.nan, 2]]))
  with pytest.raises(ValueError, match=r"\(0, 3\)"):
    normalization.compute(np.zeros((0, 3)))
  with pytest.raises(ValueError, match=r"\[2, 3\]"):
    normalization.stack([good, normalization.compute(np.ones((2, 3)))])
  with pytest.raises(ValueError, match="statistics hold"):
    normalization.from_json({"min": [0]})
  with pytest.raises(ValueError, match="one length"):
    normalization.from_json({**normalization.to_json(good), "max": [1]})
