"""Plans without chips: what lies on each, what cannot be, which mesh is named."""

import dataclasses
import functools
import importlib.util
import json
import re
import types

import numpy as np
import pytest
import tiny

from oat_jax.cost import chips
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.scaling import interconnect
from oat_jax.scaling import plan
from oat_jax.scaling import plan_report
from oat_jax.train import config as config_lib

TOKENIZER = {"name": "oat"} | tiny.TOKENIZER
NODE = chips.topology("h100:8")


def run(**changes):
  sizes = {"state_dim": 6, "action_dim": 4, "tasks": 2}
  return _run(json.dumps(tiny.run_values("policy", "", plan=sizes, **changes)))


@functools.cache
def _run(values):
  return plan.run_of(config_lib.freeze(json.loads(values)), TOKENIZER)


def made(mesh, where=NODE, **changes):
  return plan.make(run(**changes), where, mesh, compiled=False)


def test_state_is_parameters_their_average_and_two_moments_and_is_cut_over_fsdp():
  whole, cut = made((8, 1, 1)), made((1, 8, 1))
  assert whole.mesh == (8, 1, 1) and not whole.error
  trained = [leaf for leaf in whole.leaves if leaf.name.startswith("network/")]
  of_trained = sum(leaf.bytes for leaf in trained)
  frozen = sum(leaf.bytes for leaf in whole.leaves) - of_trained
  assert whole.state_bytes == pytest.approx(4 * of_trained + 2 * frozen, rel=0.01)
  w = {leaf.name: leaf.bytes for leaf in cut.leaves}["network/to_logits/w"]
  assert w == {leaf.name: leaf.bytes for leaf in whole.leaves}["network/to_logits/w"] / 8
  assert cut.state_bytes < whole.state_bytes


def test_flops_are_those_of_the_batch_and_shared_by_the_chips():
  small, large = made((8, 1, 1)), made((8, 1, 1), batch_size=64)
  assert large.model_flops == pytest.approx(4 * small.model_flops, rel=0.02)
  four = made((4, 1, 1), chips.topology("h100:4"))
  assert four.model_flops == pytest.approx(2 * small.model_flops)
  assert small.seconds["compute"] == pytest.approx(small.model_flops / NODE.chip.flops)


def test_scanned_layers_and_accumulation_change_no_model_flops():
  plain = made((8, 1, 1), model={"layers": 4})
  scanned = made((8, 1, 1), model={"layers": 4, "scan": True, "remat": "full"})
  assert scanned.model_flops == pytest.approx(plain.model_flops)
  assert "network/transformer/layers/self_attention/w_q" in {leaf.name for leaf in scanned.leaves}


@pytest.mark.parametrize(
  ("mesh", "changes", "message"),
  [
    ((3, 1, 1), {}, "needs 3 devices; there are 8"),
    ((8, 1, 1), {"batch_size": 12}, "batch_size 12 does not divide over data and fsdp, 8 x 1"),
    ((8, 1, 1), {"accumulate": 4}, "does not divide into config.accumulate 4 parts"),
    ((1, 1, 8), {}, "'heads' of size .* does not divide over 8 devices"),
  ],
)
def test_what_cannot_be_is_said_in_its_row(mesh, changes, message):
  found = made(mesh, **changes)
  assert re.search(message, found.error)
  text = plan_report.text(run(**changes), NODE, [found])
  assert found.error in text and "no mesh fits" in text


def test_the_best_is_the_fastest_that_leaves_room():
  base = made((8, 1, 1))
  of = lambda used, seconds: base._replace(
    memory_bytes=int(used * 80e9), seconds={"compute": seconds}
  )
  full, slow, fast = of(0.9, 1.0), of(0.2, 3.0), of(0.7, 2.0)
  too_large = of(1.1, 0.1)
  assert plan.best([full, slow, fast, too_large], NODE.chip) is fast
  assert plan.best([full, too_large], NODE.chip) is full  # fits, with little room
  alike = fast._replace(seconds={"compute": 2.001, "interconnect": 0.5})
  assert (
    plan.best([fast._replace(seconds={"compute": 2, "interconnect": 1}), alike], NODE.chip) is alike
  )
  assert plan.best([too_large], NODE.chip) is None
  assert plan.best([base._replace(error="no")], NODE.chip) is None


@pytest.mark.parametrize("size", ["20m", "80m", "300m", "1b"])
def test_sizes_divide_over_the_meshes_that_they_name(size):
  config = config_lib.freeze(tiny.get_config("policy_oat.py", size))
  made = plan.run_of(config, tiny.get_config("tokenizer_oat.py", "published").model)
  for mesh in ((16, 16, 1), (4, 16, 1), (1, 16, 8)):
    assert plan.parameters(made, mesh_lib.abstract(mesh))


def test_a_group_is_as_fast_as_the_slowest_axes_of_its_size():
  """Between slices the data centre's network, however fast the tensor axis of the same size is."""
  where = chips.topology("2*v5p:2x2x1")
  place = lambda i: types.SimpleNamespace(slice_index=i // 4, coords=(i // 2 % 2, i % 2, 0))
  devices = np.array([place(i) for i in range(8)], object).reshape(2, 2, 2)
  mesh = types.SimpleNamespace(devices=devices, shape=dict(zip(mesh_lib.AXES, (2, 2, 2))))
  assert interconnect.rate(where, mesh, 2) == where.chip.network_rate


def test_gpus_of_a_node_are_near_whatever_processes_hold_them():
  """As under SLURM, one process for each GPU."""
  where = chips.topology("h100:2x8")
  place = lambda i: types.SimpleNamespace(process_index=i, id=i)
  devices = np.array([place(i) for i in range(16)], object).reshape(2, 8, 1)
  mesh = types.SimpleNamespace(devices=devices, shape=dict(zip(mesh_lib.AXES, (2, 8, 1))))
  assert interconnect.rate(where, mesh, 8) == where.chip.link_rate
  assert interconnect.rate(where, mesh, 2) == where.chip.network_rate


@pytest.mark.parametrize("name", ["v5e:16x16", "v5p:4x4x4", "2*v5e:4x4", "h100:4x8", "v5e:2x2"])
def test_meshes_worth_a_look_use_every_chip(name):
  where = chips.topology(name)
  found = plan.meshes(where)
  assert found and all(mesh_lib.sizes(shape, where.size) == shape for shape in found)
  assert all(shape[0] % where.slices == 0 for shape in found)


def test_what_hosts_are_measured_to_read_is_compared_with_what_is_asked():
  figures = {"data_batch256_threads1_windows_per_cpu_s": 1e4, "data_images_pixels_per_cpu_s": 1e6}
  assert plan.data_rate(run(), NODE, figures) == NODE.chip.host_cores * 1e4
  cameras = (("top", 100, 50), ("hand", 50, 50))
  seeing = run()._replace(spec=dataclasses.replace(run().spec, cameras=cameras))
  pixels = seeing.spec.observation_steps * 7500
  assert plan.data_rate(seeing, NODE, figures) == pytest.approx(NODE.chip.host_cores * 1e6 / pixels)
  with pytest.raises(ValueError, match="'data_batch256_.*' is not among the figures"):
    plan.data_rate(run(), NODE, {"train_x": 1.0})
  found = made((8, 1, 1))._replace(seconds={"compute": 1.0})
  of = lambda rate: plan_report.text(run(), NODE, [found], rate)
  windows = run().config.batch_size
  assert f"{windows:,} windows/s for each host to read, of {2 * windows:,} that" in of(2 * windows)
  assert "it can (50 %)" in of(2 * windows)
  assert "data will keep the chips waiting (200 %)" in of(windows / 2)


def test_the_command_reports_parameters_meshes_and_the_best(tmp_path):
  figures = tmp_path / "data.json"
  figures.write_text('{"data_batch256_threads1_windows_per_cpu_s": 10000.0}')
  code, out, err = tiny.command(
    "launch/plan.py", f"--config={tiny.ROOT}/configs/policy_oat.py:mt4", "--topology=h100:8",
    "--mesh=8,1,1;1,8,1;16,1,1", f"--data_figures={figures}",
  )  # fmt: skip
  assert code == 0, err
  assert "a step of at least" in out and ", of 1,040,000 that one was measured to read" in out
  assert "h100:8: 8 x h100, 80 GB and 989 bfloat16 TFLOP/s each" in out
  assert "network/to_logits/w" in out and "best: --config.mesh=" in out
  assert "16,1,1" in out and "needs 16 devices; there are 8" in out


def test_a_topology_that_is_none_is_one_line():
  code, _, err = tiny.command(
    "launch/plan.py", f"--config={tiny.ROOT}/configs/policy_oat.py:mt4", "--topology=v5x:16x16"
  )
  assert code == 1 and "no chip 'v5x'; did you mean 'v5" in err and len(err.splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra `tpu`")
def test_a_step_compiles_for_chips_that_are_not_here():
  where = chips.topology("v5e:2x2")
  found = plan.make(run(model={"layers": 2, "scan": True}), where, (1, 4, 1))
  assert not found.error and found.memory_bytes and found.memory_bytes > found.state_bytes / 2
  assert found.flops and found.flops >= 0.9 * found.model_flops
  assert {each.kind for each in found.collectives} & {"all-gather", "reduce-scatter", "all-reduce"}
  slices = dataclasses.replace(where, slices=2)
  assert plan.make(run(), slices, (2, 4, 1)).mesh == (2, 4, 1)


@pytest.mark.parametrize(
  ("name", "size", "topology"),
  [("policy_8gpu.py", "300m", "h100:1x8"), ("policy_4nodes.py", "1b", "h100:4x8")],
)
def test_configs_of_nodes_of_gpus_fit_their_nodes(name, size, topology):
  config = config_lib.freeze(tiny.get_config(name, size))
  where = chips.topology(topology)
  inner = tiny.get_config("tokenizer_oat.py", "published").model
  found = plan.make(plan.run_of(config, inner), where, config.mesh, compiled=False)
  assert not found.error and found.fits(where.chip, 0.25) and found.bound == "compute"
