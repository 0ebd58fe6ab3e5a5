"""Imports go one way through the rooms of DESIGN.md, and `import oat_jax` alone is light."""

import ast
import json
import subprocess
import sys

import pytest
import tiny

PYTHON_FILES = sorted(
  path for folder in ("oat_jax", "launch", "configs") for path in (tiny.ROOT / folder).rglob("*.py")
)
MODELS = {"batch", "config", "files", "parameters", "nn", "tokenizers", "perception", "policies"}
TRAIN = {f"train.{name}" for name in ("config", "optimizer", "state", "step", "models")}
LOOP = {
  f"train.{name}"
  for name in (
    *(
      "agreement",
      "checkpoint",
      "evaluation",
      "failures",
      "init_from",
      "inputs",
      "loop",
      "metrics",
      "prepared",
    ),
    *("provenance", "signals", "speed", "workdir"),
  )
}

LAW = ("allocation", "holdout", "huber", "law_figures", "law_report", "law_table", "power_law")

# Room -> the rooms that it may import besides itself. The longest name that fits a module holds: a
# new room, or a new file of `train`, needs a row here before it may be imported or import anything.
MAY_IMPORT = {
  "": set(),  # oat_jax/__init__.py
  "batch": set(),
  "config": set(),
  "parameters": set(),
  "files": set(),
  "console": set(),
  "nn": {"batch"},
  "tokenizers": {"batch", "config", "files", "parameters", "nn", "data.normalization"},
  "perception": {"batch", "config", "nn", "data.normalization"},
  "policies": MODELS | {"data.normalization"},
  "parallel": set(),
  "cost": set(),
  "scaling": MODELS | TRAIN | {"cost", "parallel", "data.normalization"},
  # A sweep's directories.
  "scaling.cost": MODELS
  | TRAIN
  | {"cost", "parallel", "scaling"}
  | {"train.inputs", "train.metrics", "train.provenance"},
  "scaling.sweep": {
    "config",
    *(f"train.{name}" for name in ("checkpoint", "config", "metrics", "provenance", "workdir")),
  },
  "scaling.local": {"scaling.sweep", "train.checkpoint", "train.workdir"},
  "scaling.clusters": {"scaling.sweep"},
  "scaling.collect": {"scaling.sweep", "train.provenance", "train.workdir"},
  "scaling.sweep_table": {"scaling.sweep"},
  # A law is fitted on a laptop from a table, where nothing was trained.
  **{f"scaling.{name}": {"files", *(f"scaling.{other}" for other in LAW)} for name in LAW},
  "data": {"batch", "data.normalization"},
  "data.normalization": set(),
  "envs": {"data"},
  "envs.goals": set(),
  "evaluate": {"export.limits", "files"},
  "evaluate.subject": {"batch", "evaluate", "export.limits"},
  "evaluate.evaluation": {
    *("config", "envs", "envs.goals", "evaluate", "evaluate.subject", "export.versions"),
  },
  "evaluate.described": {"batch", "export.limits"},
  "evaluate.exported": {"evaluate", "evaluate.described"}
  | {f"export.{name}" for name in ("directory", "limits", "loader")},
  "evaluate.remote": {"batch", "evaluate", "evaluate.described", "serve.wire"},
  "evaluate.run": {f"evaluate.{name}" for name in ("evaluation", "exported", "remote")},
  "train": set(),  # train/__init__.py
  "train.config": {"config"},
  "train.metrics": {"files"},
  "train.optimizer": {"train.config"},
  "train.state": MODELS | {"parallel"},
  "train.step": MODELS | {"parallel", "train.config", "train.optimizer", "train.state"},
  "train.checkpoint": {"train.state"},
  "train.models": MODELS | {"train.config", "train.checkpoint"},
  "train.init_from": {"train.checkpoint", "train.models", "train.optimizer", "train.state"},
  "train.inputs": {"data", "data.normalization", "perception", "train.config"},
  "train.prepared": {"data"},
  "train.workdir": {"files", "train.checkpoint", "train.config", "train.models"},
  "train.agreement": {"", "train.workdir"},
  "train.provenance": {"files", "train.agreement"},
  "train.evaluation": {"data", "parallel"},
  "train.failures": {"train.optimizer"},
  "train.signals": set(),
  "train.speed": {"cost"},
  "train.loop": MODELS | TRAIN | LOOP | {"parallel", "data", "data.normalization"},
  "study": MODELS
  | TRAIN
  | LOOP
  | {"parallel", "data", "data.normalization", "envs", "envs.goals", "bench.clock", ""}
  | {"evaluate", "evaluate.evaluation", "export.limits"},
  "study.scaling": {"config", "cost", "scaling"}
  | {
    f"scaling.{name}"
    for name in (*("clusters", "collect", "cost", "law_report", "local", "sweep", "sweep_table"),)
  },
  # Who receives an export needs these only, and neither flax nor what trained it.
  "export.directory": {"batch", "files", "parameters"},
  "export.limits": set(),
  "export.loader": {
    *("batch", "parameters", "policies", "tokenizers"),
    *("export.directory", "export.limits", "export.observing"),
  },
  "export.numpy_decode": set(),
  "export.observing": {"batch"},
  "export.versions": {""},
  "serve": {"batch", "serve.wire"}
  | {f"export.{name}" for name in ("directory", "limits", "loader", "observing", "versions")},
  "serve.wire": set(),
  # Who writes it: exporter, functions, source, card, to_numpy.
  "export": MODELS
  | TRAIN
  | LOOP
  | {"data.normalization", "envs.goals"}
  | {f"export.{name}" for name in ("directory", "loader", "numpy_decode", "versions")},
  "bench.clock": set(),
  "bench.peer_torch": set(),  # runs in another interpreter
  "bench": MODELS
  | TRAIN
  | LOOP
  | {"parallel", "data", "data.normalization", "envs", "evaluate", "bench.clock"}
  | {"serve", "serve.wire", "export.loader", "scaling.power_law"},
}

# Package -> the rooms, or modules, that may import it; packages that are not here are free.
ONLY_IN = {
  "flax": {"nn", "tokenizers", "perception", "policies"},
  "optax": {"policies", "train.optimizer", "train.state", "train.step"},
  "orbax": {"train.checkpoint"},
  "grain": {"data.pipeline"},
  "jax": {
    "nn",
    "tokenizers",
    "perception",
    "policies",
    "parallel",
    "cost",
    "train",
    "scaling",
    "study",
    "export",
    "serve.run",
    "serve.service",
    "bench",
  },  # fmt: skip
  "msgpack": {"serve.wire"},
  "websockets": {"serve.websocket", "bench.serve", "evaluate.remote"},
  "grpc": {"serve.grpc"},
  "praxis_remote": {"serve.grpc"},
  "tensorboardX": {"train.metrics"},
  "tokenizers": {"tokenizers.fast", "perception.text"},
  "torch": {"bench.peer_torch"},
  "oat": {"bench.peer_torch"},  # the PyTorch implementation's package
  "tensorflow_datasets": {"data.directory", "data.write", "data.sources", "envs.collect", "bench"},
  "h5py": {"data.sources._hdf5"},
  "pyarrow": {
    *("data.sources.lerobot", "data.sources._lerobot_meta"),
    *("scaling.collect", "scaling.law_table"),
  },
  "av": {"data.sources._video"},
  "imageio_ffmpeg": {"evaluate.video"},
  "metaworld": {"envs.metaworld"},
  "mujoco": {
    f"envs.{name}" for name in ("metaworld", "rendering", "robosuite", "manipulation", "task_env")
  },
  "gymnasium": {"envs.rendering", "envs.task_env"},
  "libero": {"envs.libero"},
  "robocasa": {"envs.robocasa"},
  "robosuite": {"envs.libero", "envs.robocasa", "envs.robosuite"},
  "matplotlib": {
    "study.figures",
    "study.contact_sheet",
    "study.compare_figures",
    "study.policies_figures",
    "scaling.law_figures",
  },  # fmt: skip
  "PIL": {"study.page", "study.strips"},
  "ml_collections": set(),
  "tensorflow": set(),
  "launch": set(),
  "configs": set(),
  "command": set(),  # launch/command.py, as launch files see it
}

# Room -> all packages, besides the standard library and oat_jax, that it may import.
NOTHING_BUT = {
  "": set(),
  "batch": {"numpy"},
  "config": set(),
  "parameters": {"ml_dtypes", "numpy", "safetensors"},
  "data.normalization": {"numpy"},
  "parallel": {"jax", "numpy"},
  "cost": {"jax", "numpy"},
  "evaluate": {"imageio_ffmpeg", "numpy", "scipy", "tqdm"},
  "evaluate.subject": {"numpy"},
  "evaluate.evaluation": set(),
  "evaluate.described": set(),
  "evaluate.remote": {"numpy", "websockets"},
  "export.directory": {"numpy"},
  "export.limits": {"numpy"},
  "export.loader": {"jax", "numpy"},
  "export.numpy_decode": {"numpy"},
  "export.observing": {"numpy"},
  "bench.peer_torch": {"torch", "oat"},
  **{f"scaling.{name}": {"numpy", "scipy", "tqdm"} for name in LAW},
  "scaling.law_figures": {"matplotlib", "numpy"},
  "scaling.law_table": {"numpy", "pyarrow"},
}


def below(name, parent):
  return name == parent or name.startswith(f"{parent}.")


def room_of(module):
  """The longest row of the table that holds `module` (without "oat_jax."), or None."""
  rows = [row for row in MAY_IMPORT if row == module or (row and below(module, row))]
  return max(rows, key=len, default=None)


def module_name(path):
  """Of a file of oat_jax, without "oat_jax."; a package is its __init__.py."""
  parts = path.relative_to(tiny.ROOT / "oat_jax").with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


def imported(source, package):
  """Yields (line, full module name) of every import, wherever it stands; names imported from a
  module count as modules of it, because they may be.
  """
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parent = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parent, base] if base else parent)
      yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(source, module, is_package=False):
  """Says what the imports of a module of oat_jax do against the tables above."""
  room, found = room_of(module), []
  if room is None:
    return [f"oat_jax.{module} is in no room: add a row to MAY_IMPORT"]
  full = f"oat_jax.{module}".rstrip(".")
  for line, name in imported(source, full if is_package else full.rpartition(".")[0]):
    top = name.partition(".")[0]
    where = f"oat_jax.{module}:{line} imports {name}"
    if top == "oat_jax":
      target = room_of(name.removeprefix("oat_jax").removeprefix("."))
      if target is None and name.count(".") == 1:  # `from oat_jax import __version__`
        target = ""
      if target != room and target not in MAY_IMPORT[room]:
        found.append(f"{where}; room '{room}' may import {sorted(MAY_IMPORT[room])}")
      continue
    if top in ONLY_IN and not any(below(module, owner) for owner in ONLY_IN[top]):
      found.append(f"{where}; only {sorted(ONLY_IN[top])} may")
    if room in NOTHING_BUT and top not in NOTHING_BUT[room] | sys.stdlib_module_names:
      found.append(f"{where}; '{room}' may import {sorted(NOTHING_BUT[room])} only")
  return found


def test_every_import_goes_the_way_of_the_rooms():
  found = []
  for path in PYTHON_FILES:
    if path.is_relative_to(tiny.ROOT / "oat_jax"):
      found += violations(path.read_text(), module_name(path), path.name == "__init__.py")
  assert not found, "\n".join(found)


@pytest.mark.parametrize(
  "module, source",
  [
    ("nn.transformer", "from oat_jax.tokenizers import fsq"),
    ("nn.transformer", "import oat_jax.policies.policy"),
    ("tokenizers.oat", "from oat_jax import policies"),
    ("tokenizers.oat", "def f():\n  from oat_jax.data import rlds"),
    ("perception.observation", "from ..tokenizers import fsq"),
    ("policies.autoregressive", "from oat_jax.train import state"),
    ("train.step", "class A:\n  def f(self):\n    import oat_jax.train.loop"),
    ("train.state", "from oat_jax.train.loop import train"),
    ("train.loop", "from oat_jax.study import trained"),
    ("study.quickstart", "from launch import command"),
    ("bench.act", "import configs.policy_oat"),
    ("train.loop", "import command"),
    ("data.rlds", "import jax.numpy as jnp"),
    ("envs.vector", "from flax import linen as nn"),
    ("envs.vector", "from oat_jax.train import models"),
    ("envs.manipulation", "import robosuite"),
    ("parallel.mesh", "from oat_jax import batch"),
    ("parallel.sharding", "from flax import linen"),
    ("train.step", "from flax import linen"),
    ("train.loop", "if True:\n  from orbax.checkpoint import v1"),
    ("data.windows", "import grain"),
    ("evaluate.report", "import jax"),
    ("evaluate.rollout", "from oat_jax.envs import vector"),
    ("evaluate.rollout", "from oat_jax.export import loader"),
    ("evaluate.rollout", "from oat_jax.tokenizers import tokenizer"),
    ("data.normalization", "import jax"),
    ("data.normalization", "from . import rlds"),
    ("config", "import ml_collections"),
    ("batch", "from . import config"),
    ("export.loader", "from oat_jax.export import functions"),
    ("export.loader", "from oat_jax.train import models"),
    ("export.directory", "import jax"),
    ("export.numpy_decode", "from oat_jax import batch"),
    ("serve.service", "from oat_jax.export import exporter"),
    ("serve.keymap", "import jax"),
    ("scaling.power_law", "import jax"),
    ("scaling.law_report", "from oat_jax.scaling import plan"),
    ("attic.model", ""),
    ("nn.transformer", "from oat_jax.attic import model"),
  ],
)
def test_a_wrong_import_is_found(module, source):
  assert violations(source, module)


def test_importing_is_light():
  code = """
import json, sys
heavy = ("jax", "flax", "numpy", "optax", "orbax", "grain", "tensorflow", "matplotlib", "mujoco")
loaded = lambda: [name for name in heavy if name in sys.modules]
import oat_jax
seen = {"oat_jax": loaded()}
import oat_jax.evaluate.run, oat_jax.evaluate.video  # where the policy is behind a server
import oat_jax.envs.env, oat_jax.envs.vector  # what every simulator process imports
seen["evaluate and envs"] = loaded()
print(json.dumps(seen))
"""
  run = subprocess.run(
    [sys.executable, "-c", code], env=tiny.environment(), capture_output=True, text=True, check=True
  )
  assert json.loads(run.stdout) == {"oat_jax": [], "evaluate and envs": ["numpy"]}


def test_every_room_is_a_package_that_an_installation_finds():
  folders = {path.parent for path in PYTHON_FILES if path.is_relative_to(tiny.ROOT / "oat_jax")}
  assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_configs_hold_values_only():
  for path in (tiny.ROOT / "configs").rglob("*.py"):
    tops = {name.partition(".")[0] for _, name in imported(path.read_text(), "")}
    assert tops <= {"ml_collections", "pathlib", "runpy", "typing"}, path.name


def test_launch_files_have_names_of_their_own():
  """The folder is on sys.path: a name of the standard library would hide it from all packages."""
  names = {path.stem for path in (tiny.ROOT / "launch").glob("*.py")}
  assert names and not names & sys.stdlib_module_names


def test_no_file_grows_past_400_lines():
  lines = {str(path): len(path.read_text().splitlines()) for path in PYTHON_FILES}
  assert {path: count for path, count in lines.items() if count > 400} == {}
