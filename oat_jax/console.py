"""The commands of an installation, and how Ctrl-C ends a command: by one line and exit code 130.

What commands import takes seconds, in which Ctrl-C comes too: this imports none of it.
"""

import atexit
from collections.abc import Callable
import contextlib
import importlib
import os
import signal
import sys
from types import FrameType
from typing import Any

CONTINUES = "stopped; the same command continues"
BEGINS_AGAIN = "stopped; the same command begins again"


def take_over() -> None:
  """From here on Ctrl-C ends the process at once: nothing was begun yet that needs an end."""
  _handle(lambda number, frame: _leave())


def stoppable(main: Callable[[], int | None], says: str = CONTINUES) -> int:
  """Calls `main`, in which Ctrl-C raises KeyboardInterrupt; a second one ends the process at once,
  or behind the library's call that it comes in.

  Args:
    main: returns the exit code; None is 0.
    says: how to go on, printed unless the KeyboardInterrupt has a text of its own.

  Returns:
    the exit code; 130 where `main` was stopped, whatever a library made of the KeyboardInterrupt.
  """
  came = []

  def stop(number, frame):
    if came:
      os._exit(130)
    came.append(number)
    if _imports(frame):  # libraries crash where an exception cuts their import
      print(says, file=sys.stderr, flush=True)
      leave(130)
    raise KeyboardInterrupt

  _handle(stop)
  try:
    code = main() or 0
    if not came or code in (0, 130):  # 130: it has said itself how to go on
      return code
  except KeyboardInterrupt as caught:
    says = str(caught) or says
  except Exception as error:
    if not came:
      raise
    if isinstance(error, OSError):  # of a full disk: why not all is saved; others are the stop's
      print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
  finally:
    _handle(signal.SIG_DFL)  # while threads are waited for there is nothing left to be said
  print(says, file=sys.stderr, flush=True)
  return 130


def leave(code: int) -> int:
  """Returns an exit code, unless it is a stop's: then the process ends here.

  Python's own end waits for threads, and has crashed in libraries that were imported by half.
  """
  if code == 130:
    with contextlib.suppress(OSError):  # whoever read it may have been stopped as well
      sys.stdout.flush()
    atexit._run_exitfuncs()  # which end child processes
    os._exit(code)
  return code


def check() -> int:
  """The command oat-jax-check."""
  return _command("oat_jax.export.loader")


def evaluate() -> int:
  """The command oat-jax-evaluate."""
  return _command("oat_jax.evaluate.run", CONTINUES)


def serve() -> int:
  """The command oat-jax-serve."""
  return _command("oat_jax.serve.run")


def _command(module: str, says: str = BEGINS_AGAIN) -> int:
  take_over()
  return leave(stoppable(lambda: importlib.import_module(module).main(), says))


def _imports(frame: FrameType | None) -> bool:
  """Whether a module is being imported there."""
  while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
    frame = frame.f_back
  return frame is not None


def _leave() -> None:
  os.write(2, b"stopped before it began\n")
  os._exit(130)


def _handle(handler: Any) -> None:
  with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
    signal.signal(signal.SIGINT, handler)
