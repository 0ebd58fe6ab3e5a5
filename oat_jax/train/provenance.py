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

from oat_jax.train import agreement


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
    facts: JSON.
  """
  code, path = agreement.code(), workdir / "provenance.json"
  before = read(workdir)["code"] if path.exists() else []
  devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
  content = {"code": [*(each for each in before if each != code), code], "devices": devices}
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(content | dict(facts), indent=2) + "\n")
  temporary.replace(path)


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns what `write` wrote; ValueError where it is not there, or not that."""
  path = pathlib.Path(workdir) / "provenance.json"
  try:
    content = json.loads(path.read_text())
    content["code"], content["evaluation_set"]
  except FileNotFoundError as error:
    raise ValueError(
      f"{path} is missing: this run was trained by an older oat_jax, or the file was removed"
    ) from error
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is not what a run writes: {error}") from error
  return content
