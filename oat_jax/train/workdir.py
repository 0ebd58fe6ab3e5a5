"""A working directory belongs to one run: one process holds it, config.json names it."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import pathlib
import re
import time
from typing import Any

import jax

from oat_jax import files
from oat_jax.train import checkpoint
from oat_jax.train import config as config_lib
from oat_jax.train import models

# Where things lie, and how they are read: may differ between processes that train together.
# Fingerprint and digest say whether dataset and tokenizer are the same.
LOCAL = (
  "config/tokenizer",
  "config/model/observation/images/weights",
  "config/data/path",
  "config/data/cache",
  "config/data/fetch_gb",
  "config/data/threads",
  "config/data/workers",
)
# May differ between the run that began a working directory and the one that goes on with it.
HARMLESS = (
  *LOCAL,
  "config/log_every",
  "config/evaluate_every",
  "config/evaluate_windows",
  "config/save_every",
  "config/keep",
  "config/keep_every",
  "config/keep_best",
  "config/optimizer/max_failures",
  "config/plan",
  "config/wandb",
  "config/mesh",
)
# A tenth of a second apart.
LOCK_TRIES = 10


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, description: dict[str, Any]) -> Iterator[None]:
  """Holds the working directory for one run, after checking that it is this run's.

  A directory belongs to the run that saved its first checkpoint; what failed before that may be
  corrected in place.

  Raises:
    ValueError: the directory holds another run or other files, or is in use.
  """
  path = workdir / "config.json"
  if "://" in str(workdir) or ":/" in str(workdir):
    raise ValueError(
      f"{workdir} is no folder: a run locks its directory and renames what is whole, which stores "
      "of objects do not do; take a folder that all processes share, e.g. on NFS"
    )
  if checkpoint.steps(workdir):
    found = differences(described(workdir), description)
    if found:
      raise ValueError(
        f"{workdir} holds another run; take another directory, or the same configuration:\n  "
        + "\n  ".join(found)
      )
  elif workdir.exists() and any(workdir.iterdir()) and not (workdir / ".lock").exists():
    raise ValueError(f"{workdir} is not empty and holds no run; take an empty or a new directory")
  workdir.mkdir(parents=True, exist_ok=True)
  if jax.process_index():
    yield
    return
  with open(workdir / ".lock", "w") as lock:
    for left in reversed(range(LOCK_TRIES)):
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except OSError as error:
        if not left:
          raise ValueError(
            f"{workdir} is in use by another process; wait for it, or take another directory"
          ) from error
        time.sleep(0.1)  # `in_use` holds it for a moment
    files.write_text(path, json.dumps(description, indent=2) + "\n")
    yield


def described(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns `config.json`, with the defaults of settings that came later."""
  content = models.read_description(workdir)
  return content | {"config": config_lib.to_json(config_lib.freeze(content["config"]))}


def in_use(workdir: pathlib.Path) -> bool:
  """Whether a process holds the working directory."""
  try:
    with open(workdir / ".lock") as lock:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False


def differences(
  old: Any, new: Any, harmless: tuple[str, ...] = HARMLESS, where: str = ""
) -> list[str]:
  """Lists the keys, harmless ones left out, in which two descriptions differ."""
  if isinstance(old, dict) and isinstance(new, dict):
    out = []
    for key in sorted(old.keys() | new.keys()):
      below = f"{where}/{key}" if where else key
      out += differences(old.get(key), new.get(key), harmless, below)
    return out
  # A mixture's datasets are named between: config/data/mixture/NAME/path.
  key = re.sub(r"^(config/data/)mixture/[^/]+/", r"\1", where)
  if old == new or key in harmless:
    return []
  return [f"{where.replace('/', '.')}: {old!r} there, {new!r} now"]
