"""The rule table: what it refuses, naming the parameter; all state follows its parameter."""

import json
import subprocess
import sys

import jax
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
import pytest
import tiny

from oat_jax.parallel import mesh as mesh_lib
from oat_jax.parallel import sharding

# The rules are about sizes alone: no devices are needed.
MESH = AbstractMesh((2, 2, 4), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3)


def shaped(**shapes):
  return {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}


def refused(axes, shapes, **changes):
  with pytest.raises(ValueError) as error:
    sharding.param_shardings({"block": axes}, {"block": shapes}, MESH, **changes)
  return str(error.value)


def test_axes_follow_the_table():
  axes = {
    "w": ("embed", "mlp"),
    "q": ("embed", "heads", None),
    "head": ("embed", "vocab"),
    "b": (None,),
  }
  shapes = shaped(w=(6, 8), q=(6, 4, 5), head=(6, 12), b=(7,), statistics=(1, 3))
  found = sharding.param_shardings(axes, shapes, MESH)
  assert {name: value.spec for name, value in found.items()} == {
    "w": jax.P("fsdp", "tensor"),
    "q": jax.P("fsdp", "tensor", None),
    "head": jax.P("fsdp", "tensor"),
    "b": jax.P(None),
    "statistics": jax.P(),
  }


def test_rows_of_a_batch_lie_over_data_and_fsdp():
  assert mesh_lib.batch_sharding(MESH).shard_shape((8, 3)) == (2, 3)
  assert mesh_lib.replicated(MESH).shard_shape((8, 3)) == (8, 3)
  assert dict(sharding.RULES)["batch"] == mesh_lib.BATCH_AXES


def test_an_axis_without_a_rule_is_an_error():
  message = refused({"w": ("embed", "width")}, shaped(w=(4, 8)))
  assert "['block']['w']" in message and "no sharding rule for axis 'width'" in message
  message = refused({"w": ("embed",)}, shaped(w=(4,)), rules=(("mlp", "tensor"),))
  assert "no sharding rule for axis 'embed'; rules: ['mlp']" in message


@pytest.mark.parametrize("names", [("embed",), ("embed", "mlp", None), ()])
def test_names_are_as_many_as_axes(names):
  message = refused({"w": names}, shaped(w=(4, 8)))
  assert "['block']['w']" in message
  assert f"{len(names)} logical axes" in message and "(4, 8)" in message


@pytest.mark.parametrize(
  "names, shape, text",
  [
    (("embed", "mlp"), (3, 8), "axis 'embed' of size 3 does not divide over 2 devices"),
    (("embed", "mlp"), (4, 6), "axis 'mlp' of size 6 does not divide over 4 devices"),
    (("batch", None), (6, 6), "axis 'batch' of size 6 does not divide over 4 devices"),
  ],
)
def test_sizes_divide_over_the_mesh(names, shape, text):
  message = refused({"w": names}, shaped(w=shape))
  assert "['block']['w']" in message and text in message


def test_axes_of_a_parameter_that_does_not_exist_are_an_error():
  message = refused({"w": ("embed",), "gone": ("embed",)}, shaped(w=(4,)))
  assert "do not exist" in message and "['block']['gone']" in message
  assert "['block']['w']" not in message


def test_state_follows_its_parameter_and_all_else_replicates():
  """A frozen tokenizer inside a policy has parameters of the same name as the policy's own."""
  w, other = jax.ShapeDtypeStruct((4, 8), "float32"), jax.ShapeDtypeStruct((8,), "float32")
  params = {"network": {"w": w}, "tokenizer": {"network": {"w": w}}}
  shardings = sharding.param_shardings({"network": {"w": ("embed", "mlp")}}, params, MESH)
  state = {"mu": params, "nu": [params], "count": other, "reduced": {"network": {"w": other}}}
  found = sharding.state_shardings(state, params, shardings, MESH)
  specs = jax.tree.map(lambda value: value.spec, found)
  both = {"network": {"w": jax.P("fsdp", "tensor")}, "tokenizer": {"network": {"w": jax.P()}}}
  assert specs == {
    "mu": both,
    "nu": [both],
    "count": jax.P(),
    "reduced": {"network": {"w": jax.P()}},
  }


# On 8 devices: a real policy's state, as training makes it, its tokenizer inside.
PROGRAM = """
import json
import jax
import tiny
from oat_jax.train import optimizer
from oat_jax.train import state

name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
tokenizer = tiny.tokenizer()
params = jax.jit(tokenizer.init)(jax.random.key(0))
policy = tiny.policy(tokenizer=tokenizer)
tx = optimizer.make(tiny.optimizer_config(), 10)
mesh = tiny.mesh(2, 2, 2)
init = lambda: policy.init(jax.random.key(0), params)
made, shardings = state.create(init, policy.axes(), tx, mesh)
rows = {}
for part, tree in made._asdict().items():
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  shard = lambda x: list(x.addressable_shards[0].data.shape)
  rows[part] = {
    name(path): [list(x.shape), shard(x), len(x.sharding.device_set)] for path, x in leaves
  }
assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, made, shardings))
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def state():
  environment = tiny.environment(**tiny.quick("--xla_force_host_platform_device_count=8"))
  command = [sys.executable, "-c", PROGRAM]
  run = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  return json.loads(run.stdout)


def test_state_is_born_on_all_devices_in_parts(state):
  for part in state.values():
    assert {devices for _, _, devices in part.values()} == {8}
  found = {name: (shape, shard) for name, (shape, shard, _) in state["params"].items()}
  layers = [name for name in found if name.startswith("network/") and name.endswith("w_up")]
  assert layers
  for name in layers:
    assert found[name] == ([32, 64], [16, 32])
  frozen = [shape == shard for name, (shape, shard) in found.items() if "network/" not in name[:8]]
  assert frozen and all(frozen)


def test_average_and_optimiser_follow_their_parameter(state):
  assert state["ema_params"] == state["params"]
  trained = {n: row for n, row in state["params"].items() if n.startswith("network/")}
  followers = dict.fromkeys(trained, 0)
  for name, row in state["opt_state"].items():
    own = [n for n in trained if name.endswith(f"/{n}")]
    if own:
      assert row == trained[own[0]], name
      followers[own[0]] += 1
    else:
      assert row[0] == [], f"{name} belongs to no parameter"
  assert set(followers.values()) == {2}  # AdamW's two moments
  assert sum(shape != shard for shape, shard, _ in trained.values()) > len(trained) / 2
