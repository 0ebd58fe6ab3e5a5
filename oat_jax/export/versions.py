"""The versions that an export, a server or a report states."""

from importlib import metadata
import platform

import oat_jax


def of(*packages: str) -> dict[str, str]:
  """Returns {package: version or "not installed"}, oat_jax and python before those named."""
  found = {"oat_jax": oat_jax.__version__, "python": platform.python_version()}
  for name in packages:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = "not installed"
  return found
