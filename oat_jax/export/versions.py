"""The versions that an export states."""

from importlib import metadata
import platform

import oat_jax


def of(*packages: str) -> dict[str, str]:
  """Returns {package: version}, oat_jax and python before those named."""
  named = {name: metadata.version(name) for name in packages}
  return {"oat_jax": oat_jax.__version__, "python": platform.python_version()} | named
