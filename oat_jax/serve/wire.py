"""Messages of openpi's protocol: msgpack, in which arrays are maps of data, dtype and shape.

The frames are those of the package openpi-client. Nothing in them is code: arrays hold numbers
only, and whatever does not say what it is, is an error.
"""

import math
from typing import Any

import msgpack
import numpy as np

MOST = 1024  # entries of a map or list: numbers come as arrays
KINDS = "biuf"  # of numpy's dtypes: booleans, integers, floats


def pack(content: Any) -> bytes:
  """Returns a message of dicts, lists, strings, numbers and numpy arrays."""
  data = msgpack.packb(content, default=_pack_array)
  assert data is not None
  return data


def unpack(data: bytes, most: int = MOST) -> Any:
  """Returns the content of a message; arrays are in this machine's byte order.

  Args:
    data: of the message.
    most: entries of a map or list.

  Raises:
    ValueError: it is no such message, or an array in it does not fit its description.
  """
  if not isinstance(data, bytes):
    raise ValueError("the message is text; a binary message in msgpack is needed")
  try:
    return msgpack.unpackb(
      data, object_hook=_unpack_array, max_map_len=most, max_array_len=most, max_ext_len=0
    )
  except (ValueError, TypeError, OverflowError, msgpack.UnpackException, RecursionError) as error:
    text = " ".join(str(error).split())
    raise ValueError(f"the message cannot be read: {text or type(error).__name__}") from error


def _pack_array(x: Any) -> Any:
  if isinstance(x, np.ndarray | np.generic) and x.dtype.kind not in KINDS:
    raise ValueError(f"arrays of dtype {x.dtype} cannot be sent")
  if isinstance(x, np.ndarray):
    shape, data = x.shape, x.tobytes()
    return {b"__ndarray__": True, b"data": data, b"dtype": x.dtype.str, b"shape": shape}
  if isinstance(x, np.generic):
    return {b"__npgeneric__": True, b"data": x.item(), b"dtype": x.dtype.str}
  raise TypeError(f"{type(x).__name__} cannot be sent")


def _unpack_array(content: dict[Any, Any]) -> Any:
  if b"__ndarray__" in content:
    dtype, shape, data = (content.get(key) for key in (b"dtype", b"shape", b"data"))
    dtype = _dtype(dtype)
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
      raise ValueError(f"an array's shape is {shape!r}; a list of sizes is needed")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
      size = len(data) if isinstance(data, bytes) else type(data).__name__
      raise ValueError(f"an array {dtype}{shape} has {size} bytes of data")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
  if b"__npgeneric__" in content:
    value = content.get(b"data")
    if not isinstance(value, bool | int | float):
      raise ValueError(f"a numpy number is {type(value).__name__}")
    return _dtype(content.get(b"dtype")).type(value)
  return content


def _dtype(text: Any) -> np.dtype:
  """Returns the dtype of numbers that a text like '<f4' names."""
  if not isinstance(text, str) or len(text) > 4:
    raise ValueError(f"an array's dtype is {text!r}; one like '<f4' is needed")
  dtype = np.dtype(text)
  if dtype.kind not in KINDS:
    raise ValueError(f"an array's dtype is {text!r}; numbers are needed")
  return dtype
