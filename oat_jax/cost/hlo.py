"""What a compiled program does, read from its text: FLOPs, bytes of memory, collectives.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as it runs, so that
a scanned stack costs what its layers cost. All numbers are of one device.
"""

from collections.abc import Iterator, Mapping
import math
import re
from typing import NamedTuple

from oat_jax.cost.program import Computation
from oat_jax.cost.program import Instruction
from oat_jax.cost.program import parse

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Of these nothing moves: they name what is there already, or what they hold is counted inside.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional",
  "after-all", "partition-id", "replica-id", "opt-barrier", "iota",
}  # fmt: skip


class Collective(NamedTuple):
  """An exchange between devices, as often as it happens in one step.

  Attributes:
    kind: of COLLECTIVES.
    bytes: of one device's whole array, gathered or before it is scattered, all times together.
    group: devices that take part.
    count: how often.
  """

  kind: str
  bytes: float
  group: int
  count: int


class Cost(NamedTuple):
  """Of one device and one step.

  Attributes:
    flops: of products of matrices and convolutions; a multiply-add is two.
    bytes: read from memory and written to it, on-chip memory left out.
    collectives: what is exchanged.
  """

  flops: float
  bytes: float
  collectives: tuple[Collective, ...]


def cost(text: str) -> Cost:
  """Returns what the program of `compiled.as_text()` costs.

  Raises ValueError where it has no entry, or a loop whose number of turns is not written in it.
  """
  computations, entry = parse(text)
  # Fusions that keep only their own part of what they sum up: reduce-scatters of TPUs.
  scattered = {
    each.attribute("calls")
    for computation in computations.values()
    for each in computation.instructions.values()
    if each.opcode == "fusion" and each.name.startswith("all-reduce-scatter")
  }
  flops = memory = 0.0
  exchanged: dict[str, Collective] = {}
  for computation, times, inside_fusion in _reached(computations, entry):
    for each in computation.instructions.values():
      flops += times * _flops(computation, each)
      if not inside_fusion:
        memory += times * _traffic(computations, computation, each)
      found = _collective(computation, each, computation.name in scattered)
      if found is not None:
        # One that runs beside other work stands in several fusions, under one channel.
        key = each.attribute("channel_id") or f"{computation.name}/{each.name}"
        kind, size, group = found
        exchanged.setdefault(key, Collective(kind, times * size, group, times))
  return Cost(flops, memory, tuple(exchanged.values()))


def _reached(
  computations: Mapping[str, Computation], entry: str
) -> Iterator[tuple[Computation, int, bool]]:
  """Yields every computation that is run, how often, and whether inside a fusion."""
  todo = [(entry, 1, False)]
  while todo:
    name, times, inside = todo.pop()
    computation = computations[name]
    yield computation, times, inside
    for each in computation.instructions.values():
      if each.opcode == "while":
        turns = _turns(computations, each)
        todo.append((each.attribute("body"), times * turns, inside))
      elif each.opcode == "fusion":
        todo.append((each.attribute("calls"), times, True))
      elif each.opcode == "call":
        todo.append((each.attribute("to_apply"), times, inside))
      elif each.opcode == "conditional":
        names = re.search(r"branch_computations=\{([^}]*)\}", each.rest)
        branches = names[1].split(",") if names else []
        branches += re.findall(r"(?:true|false)_computation=(%?[^,\s]+)", each.rest)
        todo += [(branch.strip().lstrip("%"), times, inside) for branch in branches]
      elif each.opcode == "async-start":
        todo.append((each.attribute("calls"), times, inside))


def _turns(computations: Mapping[str, Computation], loop: Instruction) -> int:
  """Returns how often a loop runs: what its counter is compared with, in the counter's strides."""
  known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.rest)
  if known:
    return int(known[1])
  bounds, places = set(), set()
  todo = [loop.attribute("condition")]
  while todo:
    for each in computations[todo.pop()].instructions.values():
      if each.opcode == "fusion":
        todo.append(each.attribute("calls"))
      if each.opcode == "constant" and each.arrays[0].dtype in ("s32", "u32", "s64"):
        bounds.add(int(each.operands[0]))
      if each.opcode == "get-tuple-element":
        places.add(int(each.attribute("index")))
  if len(bounds) != 1:
    raise ValueError(f"the loop {loop.name} has no fixed number of turns in its text: {bounds}")
  body = computations[loop.attribute("body")]
  strides = {_stride(computations, body, place) for place in places}
  return math.ceil(bounds.pop() / max(strides, default=1))


def _stride(computations: Mapping[str, Computation], body: Computation, place: int) -> int:
  """Returns what a loop adds to a part of its carry in one turn; 1 where it does not say.

  The loops of products whose operands arrive piece by piece, "windowed", do two pieces in a turn.
  """
  name = body.instructions[body.root].operands[place]
  while name in body.instructions:
    each = body.instructions[name]
    if each.opcode == "fusion":
      body = computations[each.attribute("calls")]
      name = body.root
    elif each.opcode == "add":
      added = [body.instructions[operand] for operand in each.operands]
      return max((int(x.operands[0]) for x in added if x.opcode == "constant"), default=1)
    elif each.opcode in ("copy", "bitcast"):
      name = each.operands[0]
    else:
      break
  return 1


def _flops(computation: Computation, each: Instruction) -> float:
  if each.opcode == "dot":
    left = computation.instructions[each.operands[0]].arrays[0]
    contracted = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", each.rest)
    axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
    return 2.0 * each.arrays[0].size * math.prod(left.dims[axis] for axis in axes)
  if each.opcode == "convolution":
    return _convolution_flops(computation, each)
  if each.opcode == "custom-call" and '"__cu' in each.rest:
    return _library_flops(computation, each)
  return 0.0


def _library_flops(computation: Computation, each: Instruction) -> float:
  """Of what GPUs leave to a library; ValueError for others than products of matrices."""
  contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', each.rest)
  if "__cublas$" not in each.rest or contracted is None:
    raise ValueError(f"the FLOPs of {each.name} are not in the program's text: a library's call")
  left = computation.instructions[each.operands[0]].arrays[0]
  axes = [int(n) for n in re.findall(r"\d+", contracted[1])]
  return 2.0 * each.arrays[0].size * math.prod(left.dims[axis] for axis in axes)


def _convolution_flops(computation: Computation, each: Instruction) -> float:
  """Twice the products that are made; those with padding, or between dilated inputs, are not."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.rest)
  assert labels is not None
  left, right = (computation.instructions[name].arrays[0] for name in each.operands[:2])
  out = each.arrays[0]
  window = _window(each.rest, sum(letter.isdigit() for letter in labels[1]))
  pairs = 1
  for axis, (size, stride, low, base, dilation) in enumerate(window):
    inputs = left.dims[labels[1].index(str(axis))]
    outputs = out.dims[labels[3].index(str(axis))]
    pairs *= sum(
      0 <= at <= (inputs - 1) * base and at % base == 0
      for o in range(outputs)
      for k in range(size)
      for at in (o * stride - low + k * dilation,)
    )
  rows = out.dims[labels[3].index("b")]
  features = out.dims[labels[3].index("f")]
  inner = right.dims[labels[2].index("i")]
  groups = re.search(r"batch_group_count=(\d+)", each.rest)
  return 2.0 * rows * features * inner * pairs / (int(groups[1]) if groups else 1)


def _window(rest: str, rank: int) -> list[tuple[int, int, int, int, int]]:
  """Returns (size, stride, low padding, dilation of the input, of the window) of each axis."""
  found = re.search(r"window=\{([^}]*)\}", rest)
  given = dict(part.split("=") for part in found[1].split()) if found else {}
  axes = lambda name, default: given[name].split("x") if name in given else [default] * rank
  low = [int(pad.split("_")[0]) for pad in axes("pad", "0_0")]
  numbers = [
    [int(n) for n in axes(name, "1")] for name in ("size", "stride", "lhs_dilate", "rhs_dilate")
  ]
  size, stride, base, dilation = numbers
  return list(zip(size, stride, low, base, dilation))


def _traffic(
  computations: Mapping[str, Computation], computation: Computation, each: Instruction
) -> float:
  """Returns the bytes that an instruction reads from memory and writes to it."""
  name = each.opcode.removesuffix("-start")
  if name in _FREE or name in COLLECTIVES or name.endswith("-done"):
    return 0.0
  if '"AllocateBuffer"' in each.rest:
    return 0.0
  of = lambda array: 0 if array.on_chip else array.bytes
  operands = [
    computation.instructions[name].arrays
    for name in each.operands
    if name in computation.instructions
  ]
  written = sum(map(of, each.arrays))
  if each.opcode == "copy-start":  # its result is (copy, original, context)
    return of(each.arrays[0]) + of(each.arrays[1])
  if each.opcode == "slice-start":  # (original, slice, context)
    original, part = each.arrays[0], each.arrays[-2]
    return of(part) + (0 if original.on_chip else part.bytes)
  if each.opcode in ("dynamic-slice", "slice", "gather"):
    return 2 * written
  if each.opcode == "dynamic-update-slice":
    return 2 * sum(map(of, operands[1]))
  if each.opcode == "fusion":
    inner = computations[each.attribute("calls")]
    root = inner.instructions[inner.root]
    if root.opcode == "dynamic-update-slice":  # in place: what is not replaced is not touched
      written = sum(map(of, inner.instructions[root.operands[1]].arrays))
    reads = _reads(inner)
    return written + sum(
      min(sum(map(of, arrays)), reads.get(at, math.inf)) for at, arrays in enumerate(operands)
    )
  return written + sum(of(array) for arrays in operands for array in arrays)


def _reads(fused: Computation) -> dict[int, float]:
  """Returns, of a fusion's parameters of which only slices are read, their bytes."""
  users: dict[str, list[Instruction]] = {}
  for each in fused.instructions.values():
    for name in each.operands:
      users.setdefault(name, []).append(each)

  def read(name: str) -> float:
    total = 0.0
    for user in users.get(name, []):
      if user.opcode == "bitcast":
        total += read(user.name)
      elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
        total += user.arrays[0].bytes
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        pass
      else:
        return math.inf
    return total

  found = {}
  for each in fused.instructions.values():
    if each.opcode == "parameter":
      found[int(each.operands[0])] = read(each.name)
  return found


def _collective(
  computation: Computation, each: Instruction, scattered: bool
) -> tuple[str, float, int] | None:
  """Returns (kind, bytes of the whole array, devices that take part), or None."""
  kind = each.opcode.removesuffix("-start")
  if kind not in COLLECTIVES:
    return None
  operands = [
    array
    for name in each.operands
    if name in computation.instructions
    for array in computation.instructions[name].arrays
  ]
  read = sum(array.bytes for array in operands)
  group = _group(each.rest)
  if kind == "all-reduce" and scattered:
    kind = "reduce-scatter"
  size = read * group if kind == "all-gather" else read
  return kind, float(size), group


def _group(rest: str) -> int:
  """Returns how many devices take part in each group of a collective."""
  axes = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest)
  if axes:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes[1])}
    return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", axes[2]))
  iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)
  if iota:
    return int(iota[2])
  listed = re.search(r"replica_groups=\{\{([0-9,]*)\}", rest)
  if listed:
    return len(listed[1].split(","))
  pairs = re.search(r"source_target_pairs=\{", rest)
  return 2 if pairs else 1
