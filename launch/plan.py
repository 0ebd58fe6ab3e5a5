r"""Plans a run on a TPU or GPU pod, on a machine that has none: memory, time and the best mesh.

Examples:
  python launch/plan.py --config=configs/policy_oat.py:1b --config.batch_size=8192 \
      --topology=v5e:16x16
  python launch/plan.py --config=configs/policy_oat.py:300m --topology=v5p:4x4x4 --mesh=1,64,1
  python launch/plan.py --config=configs/tokenizer_oat.py:100m --topology=h100:4x8

With libtpu (`pip install -e '.[train,tpu]'`) the real train step is compiled for the TPUs named.
Several meshes are compared: --mesh=1,256,1;2,128,1, or some worth a look if unset.
"""

import command

import json
import os
import pathlib
import runpy

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "E.g. configs/policy_oat.py:1b.")
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "E.g. v5e:16x16, v5p:4x4x4, h100:4x8.", required=True
)
MESH = flags.DEFINE_string("mesh", "", "Sizes of data,fsdp,tensor; several behind semicolons.")
DATA = flags.DEFINE_string(
  "data_figures", "", "What launch/benchmark.py data wrote, to compare a host's reading with."
)
COMPILE = flags.DEFINE_bool("compile", True, "Whether to compile, where that is possible.")
flags.mark_flag_as_required("config")


def main() -> None:
  from oat_jax.cost import chips

  where = chips.topology(TOPOLOGY.value)
  if where.chip.axes:  # of this machine only the host is used; GPUs are compiled for where they are
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from oat_jax.scaling import plan
  from oat_jax.scaling import plan_report
  from oat_jax.train import config as config_lib

  meshes = [command.mesh(text) for text in MESH.value.split(";") if text] or plan.meshes(where)
  file = pathlib.Path(__file__).parent.parent / "configs" / "tokenizer_oat.py"
  tokenizer = runpy.run_path(str(file))["get_config"]("published").model
  run = plan.run_of(config_lib.freeze(CONFIG.value), tokenizer)
  figures = json.loads(pathlib.Path(DATA.value).read_text()) if DATA.value else {}
  data_rate = plan.data_rate(run, where, figures) if figures else 0.0
  compiled = COMPILE.value and plan.can_compile(where)
  if not compiled:
    print("nothing is compiled: memory is the state's alone, times are from shapes", flush=True)
  plans, flops = [], plan.model_flops(run)
  for mesh in meshes:
    print(f"mesh {','.join(map(str, mesh))}", flush=True)
    plans.append(plan.make(run, where, mesh, compiled, flops))
  print("\n" + plan_report.text(run, where, plans, data_rate), flush=True)


if __name__ == "__main__":
  command.run(main, stopped=command.BEGINS_AGAIN)
