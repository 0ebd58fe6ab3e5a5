"""How a launch file runs: a user's error is one line and exit code 1, with --debug a traceback."""

from collections.abc import Callable
import sys
from typing import Any

from absl import app
from absl import flags
from absl import logging

_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
_USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError)


def run(main: Callable[[], Any]) -> None:
  """Parses the flags and calls `main()`; the file's docstring is what --help shows."""

  def guarded(argv: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)  # libraries narrate their progress at INFO
    try:
      if len(argv) > 1:
        raise ValueError(f"unexpected argument '{argv[1]}'; settings are given as --name=value")
      main()
    except _USER_ERRORS as error:
      if _DEBUG.value:
        raise
      print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
      return 1
    except KeyboardInterrupt:
      if _DEBUG.value:
        raise
      print("stopped; the same command continues", file=sys.stderr)
      return 130
    return 0

  app.run(guarded)
