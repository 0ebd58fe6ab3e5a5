"""Processes that train together run the same thing, or none of them starts."""

from collections.abc import Mapping
import contextlib
import functools
import hashlib
import json
import pathlib
import secrets
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

import oat_jax
from oat_jax.train import workdir as workdir_lib


def check(facts: Mapping[str, Any]) -> None:
  """Raises ValueError, in every process, where not all of them bring the same facts and code.

  Paths may differ, see `workdir.LOCAL`: fingerprints say whether what lies there is the same.

  Args:
    facts: of this process, JSON.
  """
  if jax.process_count() == 1:
    return
  mine = json.dumps({**facts, "code": code()}, sort_keys=True).encode()
  lengths_P = multihost_utils.process_allgather(np.array(len(mine), np.int32)).reshape(-1)
  padded = np.zeros(lengths_P.max(), np.uint8)
  padded[: len(mine)] = np.frombuffer(mine, np.uint8)
  rows_PN = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths_P), -1)
  first, *others = (
    json.loads(row_N[:length].tobytes()) for row_N, length in zip(rows_PN, lengths_P)
  )
  for number, other in enumerate(others, 1):
    found = workdir_lib.differences(first, other, workdir_lib.LOCAL)
    if found:
      raise ValueError(
        f"process {number} runs something else than process 0 (there, and now):\n  "
        + "\n  ".join(found)
      )


def check_shared(workdir: pathlib.Path, seconds: float = 10.0) -> None:
  """Raises ValueError, in every process, unless all of them see the first one's directory.

  Args:
    workdir: of the run.
    seconds: that a file system may take to show to one host what another wrote.
  """
  if jax.process_count() == 1:
    return
  mark = workdir / ".shared"
  number = multihost_utils.broadcast_one_to_all(np.array(secrets.randbits(30), np.int32))
  if jax.process_index() == 0:
    mark.write_text(str(number))
  multihost_utils.sync_global_devices("a mark in the working directory")
  end, seen = time.monotonic() + seconds, False
  while not seen and time.monotonic() < end:
    with contextlib.suppress(OSError):
      seen = mark.read_text() == str(number)
    if not seen:
      time.sleep(0.1)
  seen_P = np.asarray(multihost_utils.process_allgather(np.array(seen))).reshape(-1)
  if jax.process_index() == 0:
    mark.unlink()
  if not seen_P.all():
    raise ValueError(
      f"{workdir} of process {int(np.argmin(seen_P))} is another directory than that of process 0; "
      "all processes need one that they share, e.g. on NFS"
    )


@functools.cache
def code() -> dict[str, str]:
  """Returns the versions that decide what is computed, and a digest of this package's files."""
  sha = hashlib.sha256()
  root = pathlib.Path(oat_jax.__file__).parent
  for path in sorted(root.rglob("*.py")):
    sha.update(str(path.relative_to(root)).encode() + path.read_bytes())
  return {"oat_jax": f"{oat_jax.__version__} {sha.hexdigest()[:12]}", "jax": jax.__version__}
