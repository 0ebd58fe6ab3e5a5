"""Messages come back as they were sent; whatever else is sent is an error, and nothing more."""

import math

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import msgpack
import numpy as np
import pytest

from oat_jax.serve import wire

DTYPES = st.sampled_from(["?", "u1", "i1", ">i2", "<i4", ">i8", "<f2", ">f4", "<f8", "u8"])
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))
NUMBERS = st.builds(np.float32, st.floats(width=32, allow_nan=False)) | st.builds(
  np.int16, st.integers(-(2**15), 2**15 - 1)
)
PLAIN = (
  NUMBERS | st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
)
CONTENT = st.recursive(
  PLAIN | ARRAYS,
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
  max_leaves=8,
)


def same(a, b):
  if isinstance(a, np.ndarray):
    assert a.dtype.newbyteorder("=") == b.dtype and b.dtype.isnative and b.flags.c_contiguous
    np.testing.assert_array_equal(a, b)
  elif isinstance(a, dict):
    assert a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
  elif isinstance(a, list):
    assert len(a) == len(b) and all(map(same, a, b))
  else:
    assert a == b
  return True


@hypothesis.given(CONTENT)
def test_content_comes_back(content):
  assert same(content, wire.unpack(wire.pack(content)))


def test_views_and_numpy_numbers_come_back():
  x = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-3].T
  content = wire.unpack(wire.pack({"x": x, "n": np.float32(0.5), "k": np.int64(-3)}))
  np.testing.assert_array_equal(content["x"], x)
  assert (content["n"], content["n"].dtype, content["k"]) == (0.5, np.float32, -3)


@hypothesis.given(st.binary())
def test_bytes_of_any_kind_are_read_or_an_error(data):
  try:
    wire.unpack(data)
  except ValueError:
    pass


@hypothesis.given(CONTENT, st.data())
def test_a_message_that_was_damaged_is_read_or_an_error(content, data):
  whole = bytearray(wire.pack(content))
  for _ in range(data.draw(st.integers(1, 4))):
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
  cut = data.draw(st.integers(0, len(whole)))
  try:
    wire.unpack(bytes(whole[:cut]))
  except ValueError:
    pass


ARRAY = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({b"dtype": "|O"}, "numbers are needed"),
    ({b"dtype": "<U1"}, "numbers are needed"),
    ({b"dtype": "<M8"}, "numbers are needed"),
    ({b"dtype": "<c8"}, "numbers are needed"),
    ({b"dtype": "f4,f4"}, "one like '<f4' is needed"),
    ({b"dtype": [["a", "<f4"]]}, "one like '<f4' is needed"),
    ({b"dtype": "x"}, "cannot be read"),
    ({b"dtype": None}, "one like '<f4' is needed"),
    ({b"shape": [3]}, r"an array float32\[3\] has 8 bytes of data"),
    ({b"shape": [-2, -1]}, "a list of sizes is needed"),
    ({b"shape": [2.0]}, "a list of sizes is needed"),
    ({b"shape": [True, 2]}, "a list of sizes is needed"),
    ({b"shape": [2**40, 2**40]}, "has 8 bytes of data"),
    ({b"shape": "2"}, "a list of sizes is needed"),
    ({b"data": "text"}, "has str bytes of data"),
    ({b"data": None}, "has NoneType bytes of data"),
  ],
)
def test_an_array_that_does_not_fit_its_description_is_an_error(changed, message):
  assert wire.unpack(msgpack.packb(ARRAY)).tolist() == [0, 0]
  with pytest.raises(ValueError, match=message):
    wire.unpack(msgpack.packb({"state": ARRAY | changed}))


def test_text_and_what_is_behind_a_message_are_errors():
  with pytest.raises(ValueError, match="the message is text"):
    wire.unpack("{}")
  with pytest.raises(ValueError, match="cannot be read"):
    wire.unpack(wire.pack({}) + b"\0")
  with pytest.raises(ValueError, match="cannot be read"):
    wire.unpack(b"\x91" * 100_000 + b"\x90")  # lists in lists in lists
  for value, dtype, message in (
    ([1], "<f4", "a numpy number is list"),
    (1000, "|i1", "cannot be read"),
    (math.inf, "<i8", "cannot be read"),
  ):
    number = {b"__npgeneric__": True, b"data": value, b"dtype": dtype}
    with pytest.raises(ValueError, match=message):
      wire.unpack(msgpack.packb(number))


def test_a_message_of_very_many_small_things_is_refused():
  for content in ([{}] * 2000, {str(i): 0 for i in range(2000)}):
    with pytest.raises(ValueError, match="cannot be read"):
      wire.unpack(msgpack.packb(content))


def test_what_numbers_are_not_is_not_sent():
  for x in (np.array([None]), np.array(["a"]), np.array([1j])):
    with pytest.raises(ValueError, match=f"arrays of dtype {x.dtype} cannot be sent"):
      wire.pack({"x": x})
  with pytest.raises(TypeError, match="object cannot be sent"):
    wire.pack({"x": object()})
  assert math.isnan(wire.unpack(wire.pack({"x": math.nan}))["x"])
