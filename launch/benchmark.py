r"""Measures one section; writes flat JSON of named figures, with machine and versions.

Examples:
  python launch/benchmark.py train --out=runs/bench/train.json
  python launch/benchmark.py act --out=runs/bench/act.json

Sections: train (steps/s of tokenizer and policy), act (ms by K, on one core), data (index,
windows, images, memory), tokenizers (ms of encoding and decoding, on one core), peer (the training
step beside a checkout of the PyTorch implementation: --peer, --peer_python).
Read times as ratios within one run, or as CPU seconds beside the calibration kernel's of the same
run.
"""

import json
import pathlib
import runpy

from absl import flags

import command

_OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)
_SCALE = flags.DEFINE_float(
  "scale", 1.0, "Share of the work: less is quicker, and its figures are noisier."
)
_CORES = flags.DEFINE_integer(
  "cores",
  None,
  "Pins the run to so many of its cores; 0 is all. If unset, 1 for act and tokenizers, else 0.",
)
_PEER = flags.DEFINE_string("peer", None, "For peer: the checkout.")
_PEER_PYTHON = flags.DEFINE_string(
  "peer_python", None, "For peer: an interpreter that has torch and what the checkout imports."
)
SECTIONS = ("train", "act", "data", "tokenizers", "peer")
ON_ONE_CORE = ("act", "tokenizers")
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def main(section: str) -> None:
  import importlib

  from oat_jax.bench import clock
  from oat_jax.evaluate import report
  from oat_jax.study import evaluation

  if section not in SECTIONS:
    raise ValueError(f"section is '{section}'; it must be one of: {', '.join(SECTIONS)}")
  # Before jax counts the cores: a robot has one for this, and further threads would only spin.
  clock.pin(int(section in ON_ONE_CORE) if _CORES.value is None else _CORES.value)
  get = lambda name, size: runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](size)
  configs = {
    f"{kind}_{size}": get(f"{kind}_oat", size)
    for kind in ("tokenizer", "policy")
    for size in ("mt4", "published")
  }
  options = {}
  if section == "tokenizers":
    others = sorted({path.stem for path in CONFIGS.glob("tokenizer_*.py")} - {"tokenizer_oat"})
    configs |= {f"{name}_mt4": get(name, "mt4") for name in others}
  elif section == "peer":
    options = {"checkout": _PEER.value, "python": _PEER_PYTHON.value}
  figures = clock.calibration()
  run = importlib.import_module(f"oat_jax.bench.{section}").run
  figures |= run(configs, _SCALE.value, **options)
  figures |= {f"{name}_again": value for name, value in clock.calibration().items()}
  for name, value in figures.items():
    print(f"{name:<48} {value if isinstance(value, str) else f'{value:.6g}'}")
  out = pathlib.Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  content = {"section": section, **figures, **clock.machine()}
  content |= {f"version_{name}": version for name, version in evaluation.versions().items()}
  report.write_text(out, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
  command.run(main, positional="section")
