"""What a run was made with, and what it was measured on: `provenance.json` of a working directory.

Rows of metrics say nothing of this, and a collection of many runs must know it: losses compare only
on the same held-out windows, in the same units and, of policies over tokens, in the same tokens.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from oat_jax import files
from oat_jax.train import agreement

# What a run says of itself, besides `code` and `devices`.
KEYS = (
  "kind",
  "evaluation_set",
  "windows",
  "episodes",
  "bits_per_token",
  "parameters",  # trained ones
  "flops_per_step",  # of all devices, without computing again
)


def evaluation_set(
  held_out: Any, actions: Mapping[str, np.ndarray], normalization: str, tokenizer: str
) -> str:
  """Returns 16 hex digits of what held-out losses are of.

  Args:
    held_out: the windows, with `digest`.
    actions: statistics of the actions, (datasets, A).
    normalization: how the model brings actions to the units of its errors.
    tokenizer: the digest of a policy's tokenizer, "" for none.
  """
  sha = hashlib.sha256(repr((held_out.digest(), normalization, tokenizer)).encode())
  for name in sorted(actions):
    sha.update(name.encode() + np.ascontiguousarray(actions[name]).tobytes())
  return sha.hexdigest()[:16]


def write(workdir: pathlib.Path, facts: Mapping[str, Any]) -> None:
  """Writes what a run is made of; a run that goes on with other code says both.

  Args:
    workdir: of the run.
    facts: {name: value} of `KEYS`.
  """
  code, path = agreement.code(), workdir / "provenance.json"
  before = read(workdir)["code"] if path.exists() else []
  devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
  content = {"code": [*(each for each in before if each != code), code], "devices": devices}
  files.write_text(path, json.dumps(content | dict(facts), indent=2) + "\n")


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns what `write` wrote; ValueError where it is not there, or not that."""
  path = pathlib.Path(workdir) / "provenance.json"
  try:
    content = json.loads(path.read_text())
    missing = [name for name in KEYS if name not in content]
  except FileNotFoundError as error:
    raise ValueError(
      f"{path} is missing: this run was trained by an older oat_jax, or the file was removed"
    ) from error
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path} is not what a run writes: {error}") from error
  if missing:
    raise ValueError(f"{path} is not what a run writes: it has no '{missing[0]}'")
  return content
