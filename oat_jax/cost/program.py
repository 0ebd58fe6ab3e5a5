"""The text of a compiled program, as computations of instructions."""

import math
import re
from typing import NamedTuple

_BYTES = {"pred": 1, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
# On-chip memory, into which compilers for TPUs place arrays: S(1) in a layout.
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")


class Array(NamedTuple):
  """A part of a shape."""

  dtype: str
  dims: tuple[int, ...]
  on_chip: bool = False

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    bits = re.search(r"\d+", self.dtype)
    each = _BYTES[self.dtype] if self.dtype in _BYTES else int(bits[0]) / 8 if bits else 0
    return math.ceil(self.size * each)


class Instruction(NamedTuple):
  """One line of a computation; `arrays` is its result, of which a tuple has several."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str  # its attributes

  def attribute(self, name: str) -> str:
    found = re.search(rf"\b{name}=\{{?%?([^,}}\s]+)", self.rest)
    return found[1] if found else ""


class Computation(NamedTuple):
  """A function of the program."""

  name: str
  instructions: dict[str, Instruction]
  root: str


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """Returns the computations by name, and the name of the one that is run."""
  computations: dict[str, Computation] = {}
  entry, name, root, instructions = "", "", "", {}
  for line in text.splitlines():
    if line.startswith("}"):
      computations[name] = Computation(name, instructions, root)
    elif line.endswith("{") and not line.startswith((" ", "HloModule")):
      head = re.match(r"(ENTRY )?%?([^\s(]+)", line)
      assert head is not None
      name, root, instructions = head[2], "", {}
      entry = name if head[1] else entry
    elif " = " in line and line.startswith("  "):
      instruction = _instruction(line.strip().removeprefix("ROOT "))
      instructions[instruction.name] = instruction
      root = instruction.name if line.lstrip().startswith("ROOT ") else root
  if not entry:
    raise ValueError("the text is no compiled program: it has no ENTRY")
  return computations, entry


def _instruction(line: str) -> Instruction:
  name, _, after = line.partition(" = ")
  end = _closed(after) if after.startswith("(") else after.index(" ")
  shape, call = after[:end], after[end:].strip()
  opcode, _, rest = call.partition("(")
  stop = _closed("(" + rest) - 1
  operands = [part.split()[-1].lstrip("%") for part in _split(rest[: stop - 1]) if part.strip()]
  return Instruction(name.lstrip("%"), opcode, _arrays(shape), tuple(operands), rest[stop:])


def _arrays(shape: str) -> tuple[Array, ...]:
  dims = lambda text: tuple(int(n) for n in text.split(",") if n)
  return tuple(
    Array(dtype, dims(sizes), bool(_ON_CHIP.search(layout)))
    for dtype, sizes, layout in _ARRAY.findall(shape)
  )


def _closed(text: str) -> int:
  """Returns the place behind the parenthesis that closes the first one."""
  depth = 0
  for at, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if letter == ")" and not depth:
      return at + 1
  raise ValueError(f"a parenthesis is not closed: {text[:80]}")


def _split(text: str) -> list[str]:
  """Splits at commas that stand in no brackets."""
  parts, depth, begin = [], 0, 0
  for at, letter in enumerate(text):
    depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and not depth:
      parts.append(text[begin:at])
      begin = at + 1
  return [*parts, text[begin:]]
