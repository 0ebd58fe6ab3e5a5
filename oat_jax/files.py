"""Directories and files that are there whole, or not at all."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import uuid


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a directory to write into, which is called `path` once all went well.

  Raises:
    ValueError: `path` holds something.
  """
  path = check_new(path)
  partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
  partial.mkdir(parents=True)
  try:
    yield partial
    partial.replace(path)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def check_new(path: str | os.PathLike) -> pathlib.Path:
  """Returns the absolute path of what is to be made; ValueError if it holds something."""
  path = pathlib.Path(path).absolute()
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise ValueError(f"{path} exists and is no empty directory; name a new one")
  return path


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  temporary.replace(path)
