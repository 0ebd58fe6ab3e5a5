"""One device equals eight: the same initial bits and the same losses on every mesh."""

import json

import numpy as np
import pytest
import tiny

MESHES = ([1, 1, 1], [8, 1, 1], [2, 2, 2], [1, 8, 1], [1, 1, 8])
# By mesh, the parts that a matrix (embed, vocabulary) or (embed, actions) is cut into. Models that
# others are much like are looked at on fewer meshes: each is compiled anew.
PARTS = {
  "tokenizer": dict(zip(map(str, MESHES), (1, 1, 2, 8, 1))),
  "policy": dict(zip(map(str, MESHES), (1, 1, 4, 8, 8))),
  "seeing": {"[1, 1, 1]": 1, "[2, 2, 2]": 4, "[1, 1, 8]": 8},
  "diffusion": {"[1, 1, 1]": 1, "[2, 2, 2]": 2},
}


@pytest.fixture(scope="module", params=PARTS)
def runs(request):
  """(name, what a run on each mesh found, the first being that on one device)"""
  name, flags = request.param, "--xla_force_host_platform_device_count=8"
  arguments = [name, json.dumps([mesh for mesh in MESHES if str(mesh) in PARTS[name]])]
  code, out, err = tiny.command("tests/train/device_runs.py", *arguments, **tiny.quick(flags))
  assert code == 0, err
  return name, json.loads(out.splitlines()[-1])


def test_every_mesh_trains_as_one_device_does(runs):
  _, found = runs
  one, *others = found.values()
  assert one["devices"] == 1 and len(set(one["losses"])) == 5 and one["evaluated"]
  for mesh, run in zip(list(found)[1:], others):
    assert run["devices"] == 8, mesh
    assert run["initial"] == one["initial"], mesh
    assert run["losses"] == pytest.approx(one["losses"], rel=1e-4), mesh
    assert run["evaluated"] == pytest.approx(one["evaluated"], rel=1e-2), mesh  # some tokens differ
    assert run["grad_norms"] == pytest.approx(one["grad_norms"], rel=1e-3), mesh


def test_the_same_key_acts_alike_on_every_mesh(runs):
  name, found = runs
  one, *others = (found[mesh]["acts"] for mesh in map(str, MESHES[:3]) if mesh in found)
  if name == "tokenizer":
    assert one is None
    return
  for other in others:
    assert other["tokens"] == one["tokens"]  # none of these lies between two logits
    np.testing.assert_allclose(other["chunks"], one["chunks"], atol=1e-3)
  assert np.std(one["chunks"], axis=0).mean() > 0.01  # and not every row alike


def test_parameters_are_cut_as_the_mesh_says(runs):
  name, found = runs
  assert {mesh: run["parts"] for mesh, run in found.items()} == PARTS[name]


def test_activations_are_pinned_inside_the_step(runs):
  name, found = runs
  rows, width = '[{"data", "fsdp"}, {}, {}]', '[{"data", "fsdp"}, {}, {"tensor"}]'
  # The policies' tables, of tokens and of tasks; MLPs.
  own = {
    "policy": ['[{"data", "fsdp"}, {"tensor"}]', '[{"tensor"}, {}]', "[{}, {}]"],
    "seeing": ['[{"data", "fsdp"}, {}, {}, {}]', '[{"tensor"}, {}]', "[{}, {}]"],
    "diffusion": ["[{}, {}]"],
    "tokenizer": ['[{"data", "fsdp"}, {"tensor"}]'],
  }
  assert found["[2, 2, 2]"]["pinned"] == sorted([rows, width, *own[name]])
  assert found["[1, 1, 1]"]["pinned"] == []
