"""A pod run on paper: what lies on each chip, what a step costs there, and which mesh is best.

The real train step is compiled for the topology where libtpu is installed (extra `tpu`); no chip is
needed. Without it, and for GPUs that are not here, shapes and shardings give parameters, state and
FLOPs, and what the parameters' exchange costs at least.
"""

from collections.abc import Mapping, Sequence
import importlib.util
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from oat_jax import batch as batch_lib
from oat_jax import tokenizers
from oat_jax.cost import chips
from oat_jax.cost import flops as flops_lib
from oat_jax.cost import hlo
from oat_jax.data import normalization
from oat_jax.parallel import mesh as mesh_lib
from oat_jax.scaling import interconnect
from oat_jax.train import config as config_lib
from oat_jax.train import models
from oat_jax.train import optimizer as optimizer_lib
from oat_jax.train import state as state_lib
from oat_jax.train import step as step_lib


class Run(NamedTuple):
  """A run's pure parts, made without data.

  Attributes:
    config: of the run.
    spec: of its batches.
    model: tokenizer or policy.
    init_args: shapes of what `model.init` takes.
    batch: shapes of one batch, with what is computed once for each window.
  """

  config: config_lib.Config
  spec: batch_lib.BatchSpec
  model: Any
  init_args: tuple[Any, ...]
  batch: Any


class Leaf(NamedTuple):
  """A parameter: its logical axes, the mesh axes that it is cut along, bytes of one chip's part."""

  name: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  spec: str
  bytes: int


class Plan(NamedTuple):
  """What one mesh promises. Numbers are of one chip and one step, seconds at peak figures.

  Attributes:
    mesh: sizes of (data, fsdp, tensor).
    error: why this mesh cannot be, or "".
    leaves: the parameters.
    state_bytes: parameters, their average and the optimiser's state.
    memory_bytes: at most in use; None where nothing was compiled.
    flops: asked of the chip, computing again included; None where nothing was compiled.
    model_flops: the model's, without computing again.
    hbm_bytes: moved; None where nothing was compiled.
    collectives: exchanged.
    seconds: {"compute", "memory", "interconnect"}; the step takes the longest of them. Where
      nothing was compiled, at least so much: memory, and what activations cut along tensor
      exchange, are not in it.
    compile_seconds: of this machine.
  """

  mesh: tuple[int, int, int]
  error: str
  leaves: tuple[Leaf, ...]
  state_bytes: int
  memory_bytes: int | None
  flops: float | None
  model_flops: float
  hbm_bytes: float | None
  collectives: tuple[hlo.Collective, ...]
  seconds: Mapping[str, float]
  compile_seconds: float

  @property
  def bound(self) -> str:
    return max(self.seconds, key=lambda name: self.seconds[name])

  @property
  def step_seconds(self) -> float:
    return max(self.seconds.values())

  def mfu(self, chip: chips.Chip) -> float:
    """Model FLOPs over what the chip could do in the step's time."""
    return self.model_flops / (self.step_seconds * chip.flops)

  def fits(self, chip: chips.Chip, spare: float = 0.0) -> bool:
    """Whether a share `spare` of the memory is left."""
    used = self.state_bytes if self.memory_bytes is None else self.memory_bytes
    return used <= (1 - spare) * chip.hbm_bytes


def run_of(config: config_lib.Config, tokenizer: Mapping[str, Any]) -> Run:
  """Returns a run without its data: their sizes are `config.plan`'s.

  Args:
    config: of the run.
    tokenizer: `config.model` of the tokenizer of a policy over tokens.
  """
  data, sizes = config.data, config.plan
  if data.cameras and not data.image_size:
    raise ValueError("config.data.image_size is not set; without data nothing else says it")
  spec = batch_lib.BatchSpec(
    observation_steps=data.observation_steps,
    action_horizon=data.action_horizon,
    action_dim=sizes.action_dim,
    state_dim=sizes.state_dim,
    task_names=tuple(f"task {i}" for i in range(sizes.tasks)),
    cameras=tuple((camera.partition("=")[0], *data.image_size[:2]) for camera in data.cameras),  # type: ignore
    language_dim=sizes.language_dim,
  )
  of = lambda dims: normalization.stack(
    [normalization.compute(np.outer([-1.0, 1.0], np.ones(dims)))]
  )
  statistics = {"actions": of(spec.action_dim), "state": of(spec.state_dim)}
  shapes = batch_lib.shapes(spec, config.batch_size)
  batch: Any = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(*leaf), shapes, is_leaf=lambda x: isinstance(x, tuple)
  )
  inner = None
  if config.kind == "policy" and config.model["name"] == "autoregressive":
    inner = tokenizers.make(tokenizer, spec, statistics["actions"])
  model = models.build(config, spec, statistics, inner)
  args: tuple[Any, ...] = (jax.eval_shape(lambda: jax.random.key(0)),)
  if inner is not None:
    if inner.init is None:
      raise ValueError(
        "a fitted tokenizer's parameters are not known without data; plan a learned one"
      )
    args = (*args, jax.eval_shape(inner.init, args[0]))
  prepare = getattr(model, "prepare", None)
  if prepare is not None and config.precompute:
    params = jax.eval_shape(model.init, *args)
    batch |= jax.eval_shape(prepare, params, batch)
  return Run(config, spec, model, args, batch)


def model_flops(run: Run) -> float:
  """Returns the FLOPs of a whole step on all chips together, without computing again."""
  params = jax.eval_shape(run.model.init, *run.init_args)
  loss = lambda params, batch: run.model.loss(params, batch, jax.random.key(0))[0]
  return flops_lib.TRAINING * flops_lib.forward(loss, params, run.batch)


def make(
  run: Run,
  where: chips.Topology,
  mesh_shape: Sequence[int],
  compiled: bool = True,
  flops: float | None = None,
) -> Plan:
  """Returns the plan of one mesh; where it cannot be, one with `error`.

  Args:
    run: what is trained.
    where: the chips.
    mesh_shape: sizes of (data, fsdp, tensor), one of which may be -1.
    compiled: compile the step, where `can_compile` says so.
    flops: `model_flops(run)`, which are those of every mesh.
  """
  config = run.config
  begin = time.monotonic()
  asked = (model_flops(run) if flops is None else flops) / where.size
  nothing = Plan(tuple(mesh_shape), "", (), 0, None, None, asked, None, (), {"compute": 0.0}, 0.0)  # type: ignore
  try:
    mesh = _mesh(where, mesh_shape, compiled)
    if config.batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]):
      raise ValueError(
        f"config.batch_size {config.batch_size} does not divide over data and fsdp, "
        f"{mesh.shape['data']} x {mesh.shape['fsdp']}"
      )
    mesh_lib.check_parts(mesh, config.batch_size, config.accumulate)
    state, shardings, optimizer = _state(run, mesh)
  except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
    return nothing._replace(error=_short(error))
  sizes: Any = tuple(mesh.shape.values())
  of_state = _bytes(state)
  leaves = _leaves(state.params, run.model.axes())
  if not compiled:
    seconds = {
      "compute": asked / where.chip.flops,
      "interconnect": interconnect.least(leaves, where, sizes, config),
    }
    return nothing._replace(mesh=sizes, leaves=leaves, state_bytes=of_state, seconds=seconds)
  rows = mesh_lib.batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), run.batch)
  update = getattr(run.model, "update", None)
  step = step_lib.compile_train_step(
    run.model.loss, optimizer, config.optimizer, config.seed, mesh, shardings, update,
    config.accumulate,
  )  # fmt: skip
  program: Any = step
  try:
    program = program.lower(state, batch).compile()
    found = hlo.cost(program.as_text())
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    return nothing._replace(mesh=sizes, error=_short(error), leaves=leaves)
  memory = program.memory_analysis()
  used = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  exchange = sum(
    chips.seconds(each.kind, each.bytes, each.group, interconnect.rate(where, mesh, each.group))
    for each in found.collectives
  )
  return Plan(
    sizes,
    "",
    leaves,
    of_state,
    used,
    found.flops,
    asked,
    found.bytes,
    found.collectives,
    {
      "compute": found.flops / where.chip.flops,
      "memory": found.bytes / where.chip.hbm_rate,
      "interconnect": exchange,
    },
    time.monotonic() - begin,
  )


def parameters(run: Run, mesh: Any) -> tuple[Leaf, ...]:
  """Returns a run's parameters as a mesh, which may be `mesh.abstract`, cuts them.

  Raises ValueError, naming the parameter, where it cannot.
  """
  return _leaves(_state(run, mesh)[0].params, run.model.axes())


def _state(run: Run, mesh: Any) -> tuple[Any, Any, Any]:
  """Returns the state's shapes with shardings, the shardings, and the optimiser."""
  optimizer = optimizer_lib.make(run.config.optimizer, run.config.steps)
  # Under jit, what `run_of` has traced is not traced again for every mesh.
  init = lambda: jax.jit(run.model.init)(*_concrete(run.init_args))
  return *state_lib.abstract(init, run.model.axes(), optimizer, mesh), optimizer


def _concrete(args: tuple[Any, ...]) -> tuple[Any, ...]:
  """Stand-ins for shapes inside `eval_shape`: nothing is computed with them."""
  zeros = lambda x: jax.numpy.zeros(x.shape, x.dtype)
  return (jax.random.key(0), *(jax.tree.map(zeros, each) for each in args[1:]))


def _mesh(where: chips.Topology, shape: Sequence[int], compiled: bool) -> Any:
  if compiled and not where.chip.axes:
    return mesh_lib.make_mesh(tuple(shape))
  if compiled:
    from jax.experimental import topologies

    more = {"num_slices": where.slices} if where.slices > 1 else {}
    devices = topologies.get_topology_desc(where.name, "tpu", **more).devices
    return mesh_lib.make_mesh(tuple(shape), devices)
  sizes = mesh_lib.sizes(tuple(shape), where.size)
  return mesh_lib.abstract(sizes)


def can_compile(where: chips.Topology) -> bool:
  """Whether steps can be compiled for these chips here: TPUs anywhere, GPUs where they are."""
  if where.chip.axes:
    return importlib.util.find_spec("libtpu") is not None
  devices = jax.devices()
  return len(devices) == where.size and chips.kind_of(devices[0].device_kind) == where.kind


def _short(error: Exception) -> str:
  return " ".join(str(error).split())[:300]


def _bytes(tree: Any) -> int:
  """Returns the bytes of one chip's parts."""
  is_key = lambda x: jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
  return sum(_part(x) for x in jax.tree.leaves(tree) if not is_key(x))


def _part(x: Any) -> int:
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _leaves(params: Any, axes: Any) -> tuple[Leaf, ...]:
  is_axes = lambda x: isinstance(x, tuple)
  known = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))
  found = []
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    names, cut = known.get(path, (None,) * x.ndim), str(x.sharding.spec)
    found.append(Leaf(optimizer_lib.path_name(path), x.shape, names, cut, _part(x)))
  return tuple(found)


def meshes(where: chips.Topology) -> list[tuple[int, int, int]]:
  """Returns meshes worth a look: powers of two over fsdp, little of tensor and data.

  Of GPUs, whose steps are planned from shapes, none that cuts along tensor: see `Plan.seconds`.
  """
  S, n = where.slices, where.size // where.slices
  inside = [
    (1, n, 1),
    (2, n // 2, 1),
    (1, n // 2, 2),
    (1, n // 4, 4),
    (n // 16 or 1, min(16, n), 1),
  ]
  if not where.chip.axes:
    nodes, gpus = where.shape
    inside = [(nodes, gpus, 1), (1, n, 1), (n, 1, 1)]
  return [
    (S * data, fsdp, tensor)
    for data, fsdp, tensor in dict.fromkeys(inside)
    if data * fsdp * tensor == n
  ]


def data_rate(run: Run, where: chips.Topology, figures: Mapping[str, float]) -> float:
  """Returns the windows a second that all cores of a host read.

  Args:
    run: what is trained.
    where: the chips, whose hosts' cores are taken to be as fast as those of the benchmark.
    figures: what `launch/benchmark.py data` wrote.

  Raises ValueError for figures of something else.
  """
  spec = run.spec
  pixels = spec.observation_steps * sum(height * width for _, height, width in spec.cameras)
  name = "data_images_pixels_per_cpu_s" if pixels else "data_batch256_threads1_windows_per_cpu_s"
  if name not in figures:
    raise ValueError(f"'{name}' is not among the figures; launch/benchmark.py data writes it")
  return where.chip.host_cores * figures[name] / (pixels or 1)


def best(plans: Sequence[Plan], chip: chips.Chip, spare: float = 0.25) -> Plan | None:
  """Returns the fastest plan that leaves a share of the memory, or just fits, or None.

  Of those within 1 %, the one whose other times are shorter: peak figures are not reached alike.
  """
  key = lambda plan: (round(math.log(plan.step_seconds), 2), sum(plan.seconds.values()))
  possible = [plan for plan in plans if not plan.error]
  for room in (spare, 0.0):
    fitting = [plan for plan in possible if plan.fits(chip, room)]
    if fitting:
      return min(fitting, key=key)
  return None
