r"""Writes a directory that holds all that acting needs, without the code that trained it.

Examples:
  python launch/export.py --workdir=W/policy --out=E
  python launch/export.py --workdir=W/policy --out=E --step=best --dtype=bfloat16
  python launch/export.py --workdir=W/tokenizer --out=E --format=numpy

OUT holds spec.json, parameters (safetensors), functions (jax.export; for cpu, cuda and tpu, any
batch size), a self-test and a model card; `python -m oat_jax.export.loader OUT --check` tests it.
With --format=numpy it holds decoding of tokens alone, for machines without jax.
"""

import command

from absl import flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the policy or tokenizer.", required=True)
_OUT = flags.DEFINE_string("out", None, "A new directory.", required=True)
_STEP = flags.DEFINE_string("step", None, "Checkpoint step, or best; the newest by default.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Of the stored network: float32 or bfloat16.")
_FORMAT = flags.DEFINE_string("format", "jax", "jax, or numpy: decoding alone, in plain numpy.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of token sampling; 0 is greedy.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among the k most likely tokens; 0 is all.")


def main() -> None:
  from oat_jax import config
  from oat_jax.export import exporter
  from oat_jax.export import to_numpy

  config.choose(_FORMAT.value, ("jax", "numpy"), "--format")
  if _FORMAT.value == "numpy":
    to_numpy.export(_WORKDIR.value, _OUT.value, step=_STEP.value)
    return
  exporter.export(
    _WORKDIR.value,
    _OUT.value,
    step=_STEP.value,
    dtype=_DTYPE.value,
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
  )


if __name__ == "__main__":
  command.run(main, stopped=command.BEGINS_AGAIN)
