"""Chips and how they are joined: peak figures, and the time that an exchange takes at its best."""

import dataclasses
import difflib
import math
import re
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak figures of one chip, as its maker gives them.

  Attributes:
    flops: bfloat16 FLOPs a second, dense.
    hbm_bytes: memory.
    hbm_rate: bytes a second between memory and chip.
    link_rate: bytes a second of one link between neighbours, in one direction.
    axes: of the torus; a chip has two links along each. 0: not a torus, every chip reaches every
      other of its node at `link_rate`.
    wraps: an axis is a ring where its length is a multiple of this, else a line.
    network_rate: bytes a second of one chip to other nodes or slices.
    per_host: chips that one host feeds.
    host_cores: of such a host.
  """

  flops: float
  hbm_bytes: float
  hbm_rate: float
  link_rate: float
  axes: int
  wraps: int
  network_rate: float
  per_host: int
  host_cores: int


# TPUs: Google Cloud's tables of system architecture, links as in "How to Scale Your Model"
# (jax-ml.github.io/scaling-book). GPUs: NVIDIA's data sheets, one direction of NVLink, 400 Gb/s of
# network a GPU. Hosts: the machines of Google Cloud that large slices, or nodes, consist of; two of
# their vCPUs are a core.
CHIPS = {
  "v4": Chip(275e12, 32e9, 1.23e12, 4.5e10, 3, 4, 6.25e9, 4, 120),
  "v5e": Chip(197e12, 16e9, 8.1e11, 4.5e10, 2, 16, 3.125e9, 4, 56),
  "v5p": Chip(459e12, 95e9, 2.77e12, 9e10, 3, 4, 6.25e9, 4, 104),
  "v6e": Chip(918e12, 32e9, 1.64e12, 9e10, 2, 16, 1.25e10, 4, 90),
  "a100": Chip(312e12, 80e9, 2.04e12, 3e11, 0, 0, 2.5e10, 8, 48),
  "h100": Chip(989e12, 80e9, 3.35e12, 4.5e11, 0, 0, 5e10, 8, 104),
  "b200": Chip(2250e12, 180e9, 8e12, 9e11, 0, 0, 5e10, 8, 112),
}

# What jax calls them begins with this; the first that fits.
_KINDS = {
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v6": "v6e",
  "TPU v4": "v4",
  "NVIDIA A100": "a100",
  "NVIDIA H100": "h100",
  "NVIDIA H200": "h100",
  "NVIDIA B200": "b200",
}


def kind_of(device_kind: str) -> str:
  """Returns the name, in CHIPS, of what `device.device_kind` calls so; "" if it is not known."""
  return next((kind for name, kind in _KINDS.items() if device_kind.startswith(name)), "")


def peak_flops(device_kind: str) -> float | None:
  """Returns the bfloat16 FLOPs a second of what `device.device_kind` names; None if not known."""
  kind = kind_of(device_kind)
  return CHIPS[kind].flops if kind else None


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips of one kind: a torus of TPUs, or nodes of GPUs."""

  name: str
  kind: str
  shape: tuple[int, ...]  # of the torus; (nodes, GPUs of each) where there is none
  slices: int = 1  # so many tori, joined by the data centre's network

  @property
  def title(self) -> str:
    return f"{self.slices}*{self.name}" if self.slices > 1 else self.name

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def size(self) -> int:
    return self.slices * math.prod(self.shape)

  @property
  def hosts(self) -> int:
    return max(1, self.size // self.chip.per_host)


def topology(name: str) -> Topology:
  """Returns a topology by name: `v5e:16x16`, two slices `2*v5p:4x4x4`, 4 nodes of 8 `h100:4x8`.

  Raises ValueError for one that there is not, with the nearest one.
  """
  times, star, one = name.rpartition("*")
  kind, _, sizes = one.partition(":")
  if kind not in CHIPS:
    near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.3)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"--topology={name}: no chip '{kind}'; {hint}there are {', '.join(CHIPS)}")
  chip = CHIPS[kind]
  rank = chip.axes or 2
  example = f"{kind}:" + "x".join(["4"] * rank if chip.axes else ["4", "8"])
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
    raise ValueError(f"--topology={name}: behind the colon stand sizes, e.g. {example}")
  shape = tuple(int(n) for n in sizes.split("x"))
  if not chip.axes and len(shape) == 1:
    shape = (1, *shape)
  if len(shape) != rank:
    raise ValueError(f"--topology={name}: {kind} has {rank} axes, e.g. {example}")
  _check_sizes(name, kind, shape)
  if star and (not re.fullmatch(r"[1-9]\d*", times) or not chip.axes):
    raise ValueError(
      f"--topology={name}: before the star stands a number of TPU slices, e.g. 2*{example}"
    )
  return Topology(one, kind, shape, int(times or 1))


# Slices that there are. Of three axes, all but the small ones have multiples of 4 along each.
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_LARGEST = {"v4": 4096, "v5p": 6144}


def _check_sizes(name: str, kind: str, shape: tuple[int, ...]) -> None:
  text = lambda shape: f"{kind}:{'x'.join(map(str, shape))}"
  distance = lambda other: abs(math.log(math.prod(other) / math.prod(shape)))
  if CHIPS[kind].axes == 2 and shape not in _FLAT:
    near = text(min(_FLAT, key=distance))
    raise ValueError(f"--topology={name}: there is no such slice; near it is {near}")
  if CHIPS[kind].axes == 3 and shape not in _SMALL and any(n % 4 for n in shape):
    near = text(tuple(max(4, 4 * round(n / 4)) for n in shape))
    raise ValueError(
      f"--topology={name}: there is no such slice; sizes are multiples of 4, e.g. {near}, or "
      f"{', '.join(map(text, _SMALL))}"
    )
  if math.prod(shape) > _LARGEST.get(kind, math.inf):
    raise ValueError(f"--topology={name}: the largest slice of {kind} has {_LARGEST[kind]} chips")
  if not CHIPS[kind].axes and shape[1] > CHIPS[kind].per_host:
    raise ValueError(
      f"--topology={name}: a node has {CHIPS[kind].per_host} GPUs; {kind}:4x8 is 4 of them"
    )


def rate(where: Topology, coordinates: Any) -> float:
  """Returns the bytes a second that each chip of a group takes in, all links that help together.

  Args:
    where: the topology.
    coordinates: of the group's chips: on the torus, or (node, GPU); of several slices, the slice
      first.
  """
  chip = where.chip
  varies = [len(np.unique(column)) > 1 for column in np.asarray(coordinates).T]
  if where.slices > 1 and varies.pop(0):
    return chip.network_rate
  if not chip.axes:
    return chip.network_rate if varies[0] else chip.link_rate
  rings = [
    2 if length % chip.wraps == 0 else 1 for length, used in zip(where.shape, varies) if used
  ]
  return chip.link_rate * max(1, sum(rings))


def seconds(kind: str, size: float, group: int, bytes_per_s: float) -> float:
  """Returns the time of a collective at its best; kinds and sizes as in `hlo.Collective`."""
  if group == 1:
    return 0.0
  share = (group - 1) / group
  times = {"all-reduce": 2.0, "all-to-all": 0.25}.get(kind, 1.0)
  return times * share * size / bytes_per_s
