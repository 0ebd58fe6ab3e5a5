"""Training steps of OAT's tokenizer and policy beside those of the published PyTorch code.

Both train at the published size, with its dropout and without, on the same cores, in turns: forward
pass, loss, gradients, clipping, AdamW and the moving average, on one batch that stays. Policies see
states; the peer's tokenizes every batch, ours is given the tokens, as in training. The peer is
a checkout that the user names, and runs in an interpreter of its own, which needs what its modules
import: torch einops hydra-core dill zarr numpy.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
from typing import Any

import jax

from oat_jax.bench import clock
from oat_jax.bench import models
from oat_jax.bench import train
from oat_jax.train import config as config_lib

PROGRAM = pathlib.Path(__file__).with_name("peer_torch.py")
TOKENIZER = "oat/tokenizer/oat/tokenizer.py"  # of the peer's checkout
KINDS = ("tokenizer", "policy")
STEPS = 2  # of a turn
WARM_UP = 8  # steps: on fresh memory the first ones take several times as long

Ask = Callable[[str, float, int], clock.Cost]  # (kind, dropout, steps) -> cost of one step


def run(
  configs: Mapping[str, Any],
  scale: float = 1.0,
  checkout: str | None = None,
  python: str | None = None,
) -> dict[str, float | str]:
  """`configs` holds what is `published`; `peer_passed_over` says why there are no figures.

  Args:
    configs: of the shipped files.
    scale: share of the turns.
    checkout: of the peer.
    python: the interpreter that has what the peer imports.
  """
  runs = {kind: config_lib.freeze(configs[f"{kind}_published"]) for kind in KINDS}
  dropouts = (runs["tokenizer"].model["dropout"], 0.0)
  try:
    with _peer(runs, dropouts, checkout, python) as (facts, ask):
      figures: dict[str, float | str] = {
        "peer_batch_rows": runs["tokenizer"].batch_size,
        "peer_threads": facts["threads"],
        "peer_torch_version": facts["version"],
      }
      for kind, config in runs.items():
        figures[f"peer_{kind}_theirs_parameters"] = facts["parameters"][kind]
        for dropout in dropouts:
          print(f"both sides train a {kind} with dropout {dropout:g}", flush=True)
          ours = dataclasses.replace(config, model=dict(config.model) | {"dropout": dropout})
          step, figures[f"peer_{kind}_ours_parameters"] = _ours(ours, runs["tokenizer"].model)
          turns = {
            "theirs": functools.partial(ask, kind, dropout),
            "ours": functools.partial(clock.cost, step, warm_up=0),
          }
          name = f"peer_{kind}_dropout{dropout:g}"
          figures |= _taking_turns(name, turns, max(1, round(7 * scale)))
      return figures
  except _PassedOver as why:
    return {"peer_passed_over": str(why)}


def _ours(config: config_lib.Config, tokenizer: Mapping[str, Any]) -> tuple[Callable[[], Any], int]:
  """Returns our training step, and how many parameters it trains."""
  model, params = models.of_run(config, tokenizer)
  count = sum(x.size for x in jax.tree.leaves(params["network"]))
  return train.Step(config, model, params), count


class _PassedOver(Exception):
  """Says why there is no peer to compare with."""


def _taking_turns(
  name: str, turns: Mapping[str, Callable[[int], clock.Cost]], rounds: int
) -> dict[str, float]:
  """Medians of each side's turns, and of theirs over ours where the two followed each other."""
  for turn in turns.values():
    turn(WARM_UP)
  costs = [{side: turn(STEPS) for side, turn in turns.items()} for _ in range(rounds)]
  figures = {}
  for at, unit in enumerate(clock.Cost._fields):
    for side in turns:
      figures[f"{name}_{side}_{unit}_per_step"] = statistics.median(c[side][at] for c in costs)
    ratios = [c["theirs"][at] / c["ours"][at] for c in costs]
    figures[f"{name}_speed_up_{unit.removesuffix('_s')}"] = statistics.median(ratios)
  return figures


@contextlib.contextmanager
def _peer(
  runs: Mapping[str, config_lib.Config],
  dropouts: tuple[float, ...],
  checkout: str | None,
  python: str | None,
) -> Iterator[tuple[dict[str, Any], Ask]]:
  """Starts the peer's program and yields (what it says about itself, `ask`)."""
  if jax.default_backend() != "cpu":
    raise _PassedOver("the peer is compared on the CPU: set JAX_PLATFORMS=cpu")
  if not checkout or not python:
    raise _PassedOver("--peer names no checkout, or --peer_python no interpreter that has torch")
  if not (pathlib.Path(checkout) / TOKENIZER).is_file():
    raise _PassedOver(f"--peer={checkout} has no {TOKENIZER}")
  command = [python, PROGRAM, checkout, json.dumps(_settings(runs, dropouts))]
  try:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  except OSError as error:
    raise _PassedOver(f"--peer_python={python}: {error.strerror}") from error

  requests, lines = process.stdin, process.stdout
  assert requests is not None and lines is not None  # they are pipes

  def answer() -> dict[str, Any]:
    line = lines.readline()
    values = json.loads(line) if line else {"error": f"it ended with code {process.wait()}"}
    if "error" in values:
      raise _PassedOver(f"--peer_python={python}: {values['error']}")
    return values

  def ask(kind: str, dropout: float, steps: int) -> clock.Cost:
    with contextlib.suppress(BrokenPipeError):  # it has ended: `answer` says how
      os.write(requests.fileno(), f"{kind} {dropout} {steps}\n".encode())
    values = answer()
    return clock.Cost(values["cpu_s"] / steps, values["wall_s"] / steps)

  with process:
    try:
      yield answer(), ask
    finally:
      process.kill()


def _settings(runs: Mapping[str, config_lib.Config], dropouts: tuple[float, ...]) -> dict[str, Any]:
  """What the two sides share; the peer's nested dropout is the published one, powers of two."""
  config = runs["tokenizer"]
  model, optimizer, spec = config.model, config.optimizer, models.SPEC
  sizes = ("num_tokens", "levels", "width", "head_width", "encoder_layers", "decoder_layers")
  return {name: model[name] for name in sizes} | {
    "dropouts": dropouts,
    "threads": int(clock.machine()["cores"]),
    "batch": config.batch_size,
    "horizon": spec.action_horizon,
    "action_dim": spec.action_dim,
    "observation_steps": spec.observation_steps,
    "state_dim": spec.state_dim,
    "policy_layers": runs["policy"].model["layers"],
    "learning_rate": optimizer.learning_rate,
    "betas": (optimizer.b1, optimizer.b2),
    "clip": optimizer.clip,
    "ema_power": optimizer.ema_power,
  }
