r"""Measures one section; writes flat JSON of named figures, with machine and versions.

Examples:
  python launch/benchmark.py train --out=runs/bench/train.json
  python launch/benchmark.py peer --out=runs/bench/peer.json --peer=DIR --peer_python=FILE

Sections: train (steps/s; what dispatching and saving hold the loop), act (ms by K and of Diffusion
Policy, on one core), data (index, windows, images, memory), tokenizers (ms, on one core), peer (the
training step beside the PyTorch implementation's, by a python with torch, einops, hydra-core, dill,
zarr and numpy), faults (a run that is killed 50 times), serve (round trips to an export, many
clients, memory), law (whether the 95 % intervals of scaling laws hold the truth). Read times as
ratios within one run, or as CPU seconds beside the calibration kernel's of the same run.
"""

import command

import json
import pathlib
import runpy

from absl import flags

_OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)
_SCALE = flags.DEFINE_float("scale", 1.0, "Share of the work: less is quicker, and noisier.")
_CORES = flags.DEFINE_integer(
  "cores", None, "How many to run on; 0: all. If unset, 1 for act and tokenizers, else all."
)
_PEER = flags.DEFINE_string("peer", None, "For peer: the checkout.")
_PEER_PYTHON = flags.DEFINE_string("peer_python", None, "For peer: its python, see above.")
_EXPORT = flags.DEFINE_string("export", None, "For serve: the export directory.")
SECTIONS = ("train", "act", "data", "tokenizers", "peer", "faults", "serve", "law")
ON_ONE_CORE = ("act", "tokenizers")
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def main(section: str) -> None:
  import importlib

  from oat_jax import config
  from oat_jax import files
  from oat_jax.bench import clock
  from oat_jax.evaluate import evaluation

  config.choose(section, SECTIONS, "section")
  # Before jax counts the cores: a robot has one for this, and further threads would only spin.
  clock.pin(int(section in ON_ONE_CORE) if _CORES.value is None else _CORES.value)
  variants = [(path.stem, "mt4") for path in sorted(CONFIGS.glob("tokenizer_*.py"))]
  variants += [("tokenizer_oat", "published")]
  variants += [
    (name, size) for name in ("policy_oat", "policy_diffusion") for size in ("mt4", "published")
  ]
  get = lambda name, size: runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](size)
  configs = {f"{name.removesuffix('_oat')}_{size}": get(name, size) for name, size in variants}
  own = {"peer": {"checkout": _PEER.value, "python": _PEER_PYTHON.value}}
  own["serve"] = {"export": _EXPORT.value or ""}
  figures = clock.calibration()
  run = importlib.import_module(f"oat_jax.bench.{section}").run
  figures |= run(configs, _SCALE.value, **own.get(section, {}))
  figures |= {f"{name}_again": value for name, value in clock.calibration().items()}
  for name, value in figures.items():
    print(f"{name:<48} {value if isinstance(value, str) else f'{value:.6g}'}")
  out = pathlib.Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  content = {"section": section, **figures, **clock.machine()}
  content |= {f"version_{k}": v for k, v in evaluation.versions("metaworld", "mujoco").items()}
  files.write_text(out, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
  command.run(main, positional="section", stopped=command.BEGINS_AGAIN)
