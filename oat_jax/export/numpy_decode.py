"""Decodes action tokens in plain numpy: this file and its directory are all that it takes.

  import decode                                # the name of this file in an export
  decoder = decode.Decoder("DIR")
  actions_BCA = decoder(tokens_BN, num_tokens=4)

or, for a test of the directory against what the model gave in JAX:  python DIR/decode.py

program.json holds the operations of the decoder, one after another, as jax.make_jaxpr wrote them
down for one row; arrays.npz their constants, the parameters. Axis letters: B rows, N tokens of a
chunk, C steps, A action dimensions.
"""

import json
import pathlib
import sys

import numpy as np


class Decoder:
  """Token ids to chunks of actions, in the units of the dataset."""

  def __init__(self, directory):
    """Reads `directory`, which launch/export.py --format=numpy wrote."""
    path = pathlib.Path(directory)
    self.spec = json.loads((path / "spec.json").read_text())
    self._program = json.loads((path / "program.json").read_text())
    with np.load(path / "arrays.npz", allow_pickle=False) as held:
      self._arrays = {name: held[name] for name in held.files}

  def __call__(self, tokens_BN, num_tokens=None, dataset_B=None):
    """Returns float32 (B, C, A).

    Args:
      tokens_BN: integers (B, N) in 0 .. vocab_size - 1; those behind `num_tokens` do not count.
      num_tokens: in 1 .. N; all if None.
      dataset_B: (B,), whose statistics hold, where there are several; the first if None.

    Raises:
      ValueError: a shape or a number is wrong.
    """
    spec = self.spec
    N, V, datasets = spec["max_tokens"], spec["vocab_size"], spec["num_datasets"]
    tokens_BN = np.asarray(tokens_BN)
    if tokens_BN.ndim != 2 or tokens_BN.shape[1] != N or tokens_BN.dtype.kind not in "iu":
      raise ValueError(f"tokens are {tokens_BN.dtype}{list(tokens_BN.shape)}; expected [B, {N}]")
    K = N if num_tokens is None else int(num_tokens)
    if not 1 <= K <= N:
      raise ValueError(f"num_tokens is {K}; it must be in 1..{N}")
    used_BK = tokens_BN[:, :K]
    if used_BK.size and not (0 <= used_BK.min() and used_BK.max() < V):
      raise ValueError(f"tokens are in {used_BK.min()}..{used_BK.max()}; known are 0..{V - 1}")
    B = len(tokens_BN)
    dataset_B = np.zeros(B, np.int32) if dataset_B is None else np.asarray(dataset_B, np.int32)
    if dataset_B.shape != (B,) or (B and not 0 <= dataset_B.min() <= dataset_B.max() < datasets):
      raise ValueError(f"dataset is {dataset_B.tolist()}; expected {B} of 0..{datasets - 1}")
    tokens_BN = np.where(np.arange(N) < K, tokens_BN, 0).astype(np.int32)
    rows = [
      self._run(self._program, (tokens_BN[b : b + 1], np.int32(K), dataset_B[b : b + 1]))[0]
      for b in range(B)
    ]
    shape = (0, spec["action_horizon"], spec["action_dim"])
    return np.concatenate(rows) if rows else np.zeros(shape, np.float32)

  def _run(self, program, inputs):
    """Returns a program's results. An operand is the number of a value, or of a constant's name."""
    values = dict(zip(program["inputs"], inputs))
    read = lambda x: self._arrays[x] if isinstance(x, str) else values[x]
    # JAX's numbers overflow, and divide by zero, without a word.
    with np.errstate(all="ignore"):
      for name, operands, results, settings in program["steps"]:
        found = self._step(name, [read(x) for x in operands], settings)
        for number, value, dtype in zip(results, found, settings["dtypes"]):
          values[number] = np.asarray(value, dtype)
    return [read(x) for x in program["outputs"]]

  def _step(self, name, x, settings):
    if name != "scan":
      return [OPERATIONS[name](settings, *x)]
    first, carried = settings["num_consts"], settings["num_carry"]
    fixed, carry, each = x[:first], x[first : first + carried], x[first + carried :]
    rows = []
    for i in range(settings["length"]):
      found = self._run(settings["body"], [*fixed, *carry, *(row[i] for row in each)])
      carry = found[:carried]
      rows.append(found[carried:])
    return carry + [np.stack(column) for column in zip(*rows)]


def _dot(s, a, b):
  """Contracts and batches axes, in the order that JAX's dot_general has: batch, a's, b's."""
  (contract_a, contract_b), (batch_a, batch_b) = s["dimensions"]
  letters = iter("abcdefghijklmnopqrstuvwxyz")
  of_a, of_b = [next(letters) for _ in a.shape], [next(letters) for _ in b.shape]
  for i, j in [*zip(contract_a, contract_b), *zip(batch_a, batch_b)]:
    of_b[j] = of_a[i]
  out = [of_a[i] for i in batch_a]
  out += [of_a[i] for i in range(a.ndim) if i not in (*contract_a, *batch_a)]
  out += [of_b[i] for i in range(b.ndim) if i not in (*contract_b, *batch_b)]
  return np.einsum(f"{''.join(of_a)},{''.join(of_b)}->{''.join(out)}", a, b, optimize=True)


def _starts(s, indices, shape, size):
  """Yields (index into the batch of starts, slices of an operand of this shape, whether inside).

  Batching dimensions of the operand go along with those of the indices.
  """
  for at in np.ndindex(indices.shape[:-1]):
    start = [0] * len(shape)
    for dim, value in zip(s["start_map"], indices[at]):
      start[dim] = int(value)
    for dim, of in zip(s["batch"], s["index_batch"]):
      start[dim] = at[of]
    most = [n - k for n, k in zip(shape, size)]
    inside = all(0 <= i <= m for i, m in zip(start, most))
    start = [min(max(i, 0), m) for i, m in zip(start, most)]
    yield at, tuple(slice(i, i + k) for i, k in zip(start, size)), inside


def _gather(s, operand, indices):
  gone = tuple(sorted((*s["collapsed"], *s["batch"])))
  kept = [n for dim, n in enumerate(s["sizes"]) if dim not in gone]
  out = np.zeros((*indices.shape[:-1], *kept), operand.dtype)
  for at, where, inside in _starts(s, indices, operand.shape, s["sizes"]):
    if inside or not s["fill"]:
      out[at] = operand[where].reshape(kept)
    else:
      out[at] = s["fill_value"] if s["fill_value"] is not None else _outside(operand.dtype)
  offsets = s["offset"]
  others = [dim for dim in range(out.ndim) if dim not in offsets]
  return np.moveaxis(out, range(out.ndim), [*others, *offsets])


def _outside(dtype):
  """What JAX gives where an index is outside: NaN, or the end of the integers."""
  if dtype.kind == "f":
    return np.nan
  if dtype.kind == "b":
    return True
  return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def _scatter(add):
  def run(s, operand, indices, updates):
    out = np.array(operand)
    windows = s["offset"]  # axes of the updates that are inside a window
    batches = [dim for dim in range(updates.ndim) if dim not in windows]
    moved = np.transpose(updates, [*batches, *windows])
    size, window = [], iter([updates.shape[dim] for dim in windows])
    for dim in range(operand.ndim):
      gone = dim in s["collapsed"] or dim in s["batch"]
      size.append(1 if gone else next(window))
    for at, where, inside in _starts(s, indices, operand.shape, size):
      if inside:
        value = moved[at].reshape(size)
        out[where] = out[where] + value if add else value
    return out

  return run


def _broadcast(s, x):
  shape = [1] * len(s["shape"])
  for dim, n in zip(s["dimensions"], x.shape):
    shape[dim] = n
  return np.broadcast_to(x.reshape(shape), s["shape"])


def _pad(s, x, value):
  """Low, high and inner padding; negative ones cut."""
  for dim, (low, high, inner) in enumerate(s["config"]):
    n = x.shape[dim]
    length = n + inner * max(n - 1, 0)
    spread = np.full([*x.shape[:dim], length, *x.shape[dim + 1 :]], value, x.dtype)
    spread[(*[slice(None)] * dim, slice(None, None, inner + 1))] = x
    total = low + length + high
    out = np.full([*x.shape[:dim], total, *x.shape[dim + 1 :]], value, x.dtype)
    begin, end = max(low, 0), min(low + length, total)
    out[(*[slice(None)] * dim, slice(begin, end))] = spread[
      (*[slice(None)] * dim, slice(begin - low, end - low))
    ]
    x = out
  return x


def _iota(s):
  n = s["shape"][s["dimension"]]
  return _broadcast({"shape": s["shape"], "dimensions": [s["dimension"]]}, np.arange(n))


def _divide(s, a, b):
  del s
  return np.trunc(a / b) if a.dtype.kind in "iu" else a / b


def _cumulate(function):
  def run(s, x):
    axis = s["axis"]
    turn = lambda y: np.flip(y, axis) if s["reverse"] else y
    return turn(function(turn(x), axis))

  return run


_simple = lambda function: lambda s, *x: function(*x)
_reduced = lambda function: lambda s, x: function(x, axis=tuple(s["axes"]))

OPERATIONS = {
  "abs": _simple(np.abs),
  "add": _simple(np.add),
  "and": _simple(np.bitwise_and),
  "argmax": lambda s, x: np.argmax(x, axis=s["axes"][0]),
  "argmin": lambda s, x: np.argmin(x, axis=s["axes"][0]),
  "broadcast_in_dim": _broadcast,
  "clamp": _simple(lambda low, x, high: np.minimum(np.maximum(x, low), high)),
  "concatenate": lambda s, *x: np.concatenate(x, s["dimension"]),
  "convert_element_type": _simple(lambda x: x),
  "copy": _simple(np.array),
  "cos": _simple(np.cos),
  "cummax": _cumulate(np.maximum.accumulate),
  "cumprod": _cumulate(np.cumprod),
  "cumsum": _cumulate(np.cumsum),
  "div": _divide,
  "dot_general": _dot,
  "eq": _simple(np.equal),
  "exp": _simple(np.exp),
  "expand_dims": lambda s, x: x.reshape(s["shape"]),
  "floor": _simple(np.floor),
  "gather": _gather,
  "ge": _simple(np.greater_equal),
  "gt": _simple(np.greater),
  "integer_pow": lambda s, x: x ** s["y"] if s["y"] >= 0 else 1 / x ** -s["y"],
  "iota": _iota,
  "le": _simple(np.less_equal),
  "log": _simple(np.log),
  "logistic": _simple(lambda x: 1 / (1 + np.exp(-x))),
  "lt": _simple(np.less),
  "max": _simple(np.maximum),
  "min": _simple(np.minimum),
  "mul": _simple(np.multiply),
  "ne": _simple(np.not_equal),
  "neg": _simple(np.negative),
  "not": _simple(np.invert),
  "or": _simple(np.bitwise_or),
  "pad": _pad,
  "pow": _simple(np.power),
  "reduce_and": _reduced(np.all),
  "reduce_max": _reduced(np.max),
  "reduce_min": _reduced(np.min),
  "reduce_or": _reduced(np.any),
  "reduce_prod": _reduced(np.prod),
  "reduce_sum": _reduced(np.sum),
  "rem": _simple(np.fmod),
  "reshape": lambda s, x: x.reshape(s["shape"]),
  "rev": lambda s, x: np.flip(x, s["dimensions"]),
  "round": _simple(np.rint),
  "rsqrt": _simple(lambda x: 1 / np.sqrt(x)),
  "scatter": _scatter(False),
  "scatter-add": _scatter(True),
  "select_n": lambda s, which, *cases: np.choose(which.astype(int), cases),
  "shift_left": _simple(np.left_shift),
  "shift_right_arithmetic": _simple(np.right_shift),
  "sign": _simple(np.sign),
  "sin": _simple(np.sin),
  "slice": lambda s, x: x[tuple(slice(*each) for each in s["slices"])],
  "sqrt": _simple(np.sqrt),
  "square": _simple(np.square),
  "squeeze": lambda s, x: x.reshape(s["shape"]),
  "stack": lambda s, *x: np.stack(x, s["axis"]),
  "stop_gradient": _simple(lambda x: x),
  "sub": _simple(np.subtract),
  "tanh": _simple(np.tanh),
  "transpose": lambda s, x: np.transpose(x, s["permutation"]),
  "xor": _simple(np.bitwise_xor),
}


def check(directory):
  """Returns the largest difference from what JAX gave, in shares of the actions' training range."""
  decoder = Decoder(directory)
  with np.load(pathlib.Path(directory) / "selftest.npz", allow_pickle=False) as held:
    test = {name: held[name] for name in held.files}
  low_GA, high_GA = (np.asarray(decoder.spec["actions"][end]) for end in ("low", "high"))
  span_BA = np.maximum(high_GA - low_GA, 1e-6)[test["dataset"]]
  worst = 0.0
  for name in sorted(test):
    if name.startswith("actions_"):
      K = int(name.rpartition("_")[2])
      found_BCA = decoder(test["tokens"], K, test["dataset"])
      worst = max(worst, float(np.max(np.abs(found_BCA - test[name]) / span_BA[:, None])))
  return worst


if __name__ == "__main__":
  difference = check(pathlib.Path(__file__).parent)
  print(f"largest difference from JAX: {difference:.2g} of the training range; 1e-05 is allowed")
  sys.exit(difference > 1e-5)
