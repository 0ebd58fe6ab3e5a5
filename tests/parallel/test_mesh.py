"""The mesh's sizes multiply to the devices there are; a wrong shape or process group says why."""

import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tiny

from oat_jax.parallel import distributed
from oat_jax.parallel import mesh as mesh_lib

# jax counts its devices at its start: many shapes over 8 of them in one process of their own.
PROGRAM = """
import json, sys
import jax
from oat_jax.parallel import mesh as mesh_lib

out = []
for shape, count in json.loads(sys.argv[1]):
  try:
    mesh = mesh_lib.make_mesh(tuple(shape), jax.devices()[:count])
    ids = sorted(device.id for device in mesh.devices.flat)
    out.append([list(mesh.axis_names), list(mesh.devices.shape), ids])
  except ValueError as error:
    out.append(str(error))
print(json.dumps(out))
"""
GOOD = [
  ((-1, 1, 1), 8, [8, 1, 1]),
  ((1, -1, 1), 8, [1, 8, 1]),
  ((2, -1, 2), 8, [2, 2, 2]),
  ((-1, 2, 4), 8, [1, 2, 4]),
  ((2, 2, 2), 8, [2, 2, 2]),
  ((1, 2, 1), 2, [1, 2, 1]),
]
BAD = [
  ((2, 2, 1), 8, "needs 4 devices; there are 8"),
  ((4, 2, 2), 8, "needs 16 devices; there are 8"),
  ((-1, 3, 1), 8, "there are 8"),
  ((-1, 16, 1), 8, "there are 8"),
  ((-1, -1, 1), 8, "one of which may be -1"),
  ((8, 1), 8, "('data', 'fsdp', 'tensor')"),
  ((8, 1, 1, 1), 8, "('data', 'fsdp', 'tensor')"),
  ((0, 1, 8), 8, "one of which may be -1"),
  ((-2, 2, 2), 8, "one of which may be -1"),
]


@pytest.fixture(scope="module")
def answers():
  cases = json.dumps([(shape, count) for shape, count, _ in GOOD + BAD])
  flags = tiny.environment(XLA_FLAGS="--xla_force_host_platform_device_count=8")
  command = [sys.executable, "-c", PROGRAM, cases]
  run = subprocess.run(command, env=flags, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  return dict(zip([(shape, count) for shape, count, _ in GOOD + BAD], json.loads(run.stdout)))


@pytest.mark.parametrize("shape, count, sizes", GOOD)
def test_minus_one_takes_what_the_others_leave(answers, shape, count, sizes):
  names, found, ids = answers[shape, count]
  assert names == ["data", "fsdp", "tensor"]
  assert found == sizes
  assert ids == list(range(count))  # every device once


@pytest.mark.parametrize("shape, count, text", BAD)
def test_wrong_sizes_are_errors_that_say_both_numbers(answers, shape, count, text):
  assert isinstance(answers[shape, count], str), answers[shape, count]
  assert f"config.mesh {shape}" in answers[shape, count].replace(" is ", " ")
  assert text in answers[shape, count]


def test_the_default_is_all_devices():
  assert mesh_lib.make_mesh((-1, 1, 1)).size == jax.device_count()


def test_one_process_joins_no_group(monkeypatch):
  monkeypatch.setattr(jax.distributed, "initialize", lambda *_: pytest.fail("joined a group"))
  distributed.initialize("", 1, 0)


@pytest.mark.parametrize(
  "arguments, text",
  [
    (("localhost:1", 2, 2), "--process_id=2 is outside 0..1"),
    (("localhost:1", 2, -1), "--process_id=-1 is outside 0..1"),
    (("", 2, 0), "--num_processes=2 needs --coordinator=HOST:PORT"),
  ],
)
def test_a_wrong_process_group_is_an_error(arguments, text, monkeypatch):
  monkeypatch.setattr(jax.distributed, "initialize", lambda *_: pytest.fail("joined a group"))
  with pytest.raises(ValueError, match=text.replace(".", r"\.")):
    distributed.initialize(*arguments)


def test_several_processes_join_the_group_they_were_given(monkeypatch):
  joined = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *group: joined.append(group))
  distributed.initialize("localhost:1234", 2, 1)
  assert joined == [("localhost:1234", 2, 1)]


class Chip:
  """As a TPU's device looks to what arranges a mesh."""

  platform, device_kind = "tpu", "a TPU of the future"

  def __init__(self, slice_index, id):
    self.slice_index, self.id, self.process_index = slice_index, id, slice_index
    self.coords, self.core_on_chip = (id // 2, 0, 0), 0


def test_only_the_data_axis_crosses_between_slices(monkeypatch):
  chips = [Chip(i % 2, i) for i in range(16)]
  monkeypatch.setattr(jax.sharding, "Mesh", lambda devices, axes, axis_types: devices)
  for shape in ((2, 4, 2), (-1, 8, 1), (4, 2, 2)):
    placed = mesh_lib.make_mesh(shape, chips)
    slices = np.vectorize(lambda chip: chip.slice_index)(placed)
    assert (slices == slices[:, :1, :1]).all() and len(np.unique(slices)) == 2
    half = len(slices) // 2
    assert (slices[:half] == slices[0]).all() and (slices[half:] == slices[-1]).all()
  with pytest.raises(ValueError, match=r"over 2 slices; the data axis .* a multiple of 2"):
    mesh_lib.make_mesh((1, 16, 1), chips)


def grid(shape, owner):
  """A mesh of devices whose processes `owner` tells by their place."""
  devices = np.empty(shape, object)
  for place in np.ndindex(*shape):
    devices[place] = types.SimpleNamespace(process_index=owner(*place))
  return types.SimpleNamespace(devices=devices, shape=dict(zip(mesh_lib.AXES, shape)))


def test_a_hosts_rows_need_not_lie_together(monkeypatch):
  """As on v5e:4x4, whose hosts have 2 x 2 chips each, along a ring through all 16."""
  ring = [0, 0, 1, 1, 3, 3, 2, 2, 2, 3, 3, 2, 0, 1, 1, 0]
  mesh, found = grid((1, 16, 1), lambda d, f, t: ring[f]), []
  for process in range(4):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    found.append(mesh_lib.process_rows(mesh, 32))
    expected = [2 * f + i for f in range(16) if ring[f] == process for i in (0, 1)]
    assert found[-1].tolist() == expected
  assert sorted(np.concatenate(found)) == list(range(32))


def test_hosts_that_a_tensor_axis_joins_hold_the_same_rows(monkeypatch):
  mesh = grid((2, 1, 2), lambda d, f, t: t)
  for process in range(2):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    assert mesh_lib.process_rows(mesh, 4).tolist() == [0, 1, 2, 3]
  with pytest.raises(ValueError, match="batch_size 3 does not divide over the 2 devices"):
    mesh_lib.process_rows(mesh, 3)
