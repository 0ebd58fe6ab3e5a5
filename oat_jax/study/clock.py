"""What a run took, over interruptions."""

from collections.abc import Iterator
import contextlib
import json
import pathlib
import time

from oat_jax import files
from oat_jax.train import checkpoint


@contextlib.contextmanager
def of_run(workdir: pathlib.Path, steps: int) -> Iterator[None]:
  """Adds the CPU seconds, of all threads, and wall seconds of a run to `NAME.seconds.json`.

  The file lies beside the working directory NAME and holds {"cpu", "wall"}. A run that was stopped
  and goes on adds to what it took before; one that was killed has lost that.
  """
  now = lambda: {"cpu": time.process_time(), "wall": time.monotonic()}
  since, saved = now(), checkpoint.steps(workdir)
  try:
    yield
  finally:
    if steps not in saved and workdir.exists():
      before = read(workdir) if saved else {}
      seconds = {
        name: round(before.get(name, 0.0) + value - since[name], 1) for name, value in now().items()
      }
      files.write_text(_path(workdir), json.dumps(seconds, indent=2) + "\n")


def read(workdir: pathlib.Path) -> dict[str, float]:
  """Returns {"cpu", "wall"} of a run; {} where nothing is known."""
  path = _path(workdir)
  return json.loads(path.read_text()) if path.exists() else {}


def _path(workdir: pathlib.Path) -> pathlib.Path:
  return workdir.parent / f"{workdir.name}.seconds.json"
