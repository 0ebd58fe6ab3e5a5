"""How a launch file runs: a user's error is one line and exit code 1, with --debug a traceback.

Launch files import this first: from then on Ctrl-C is one line and exit code 130.
"""

from collections.abc import Callable
import pathlib
import runpy
import sys
from typing import Any

from oat_jax import console

console.take_over()  # before what takes long to import

from absl import app  # noqa: E402
from absl import flags  # noqa: E402
from absl import logging  # noqa: E402
from ml_collections import config_flags as ml_flags  # noqa: E402

# Of commands that keep nothing of what they had done.
BEGINS_AGAIN = console.BEGINS_AGAIN
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
# The command that trains a run.
TRAIN = (sys.executable, str(pathlib.Path(__file__).with_name("train.py")))
_USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError, ArithmeticError)


def run(main: Callable[..., Any], positional: str = "", stopped: str = console.CONTINUES) -> None:
  """Parses the flags and calls `main`; the file's docstring is what --help shows.

  Args:
    main: called without arguments, or with the one that `positional` names.
    positional: the name of the one argument that is not a flag, for error messages.
    stopped: said at Ctrl-C, where the KeyboardInterrupt itself says nothing.
  """

  def guarded(argv: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)  # libraries narrate their progress at INFO
    try:
      wanted = 1 if positional else 0
      if len(argv) > 1 + wanted:
        extra = argv[1 + wanted]
        raise ValueError(f"unexpected argument '{extra}'; settings are given as --name=value")
      if len(argv) < 1 + wanted:
        raise ValueError(f"the argument {positional.upper()} is missing; see --help")
      return console.leave(console.stoppable(lambda: main(*argv[1:]), stopped))
    except _USER_ERRORS as error:
      if _DEBUG.value:
        raise
      # What a user can mend is a ValueError, an OSError, an ImportError; others may be our fault.
      ours = isinstance(error, RuntimeError | ArithmeticError)
      _print(error, " (--debug shows where)" if ours else "")
      return 1

  app.run(guarded, flags_parser=_parse)


def integers(flag: flags.FlagHolder[list[str]]) -> tuple[int, ...]:
  """Returns the whole numbers of a list flag; ValueError, naming the flag, for anything else."""
  try:
    return tuple(int(text) for text in flag.value)
  except ValueError as error:
    given = ",".join(flag.value)
    raise ValueError(f"--{flag.name}={given}: expected whole numbers, e.g. 1,2,4") from error


def mesh(text: str) -> tuple[int, ...]:
  """Returns the sizes of a mesh, `1,256,1`; ValueError, naming the flag, for anything else."""
  parts = text.split(",")
  if len(parts) != 3 or not all(part.strip().lstrip("-").isdigit() for part in parts):
    raise ValueError(f"--mesh={text}: expected sizes of data,fsdp,tensor, e.g. 1,256,1")
  return tuple(int(part) for part in parts)


def with_config(argv: list[str]) -> list[str]:
  """Adds to compare.py's arguments the config of what is compared, where none is named.

  It must be known before flags are parsed, because --config.NAME=VALUE changes its values.
  """
  named = any(arg.partition("=")[0] == "--config" for arg in argv)
  seen = [
    arg.partition("=")[2] or after
    for arg, after in zip(argv, [*argv[1:], ""])
    if arg.partition("=")[0] == "--observations"
  ]
  if named and seen:
    sys.exit("ValueError: --observations chooses the config; leave it or --config out")
  if named or "--help" in argv:
    return argv
  variant = seen[-1] if seen else "state"
  file = f"compare_policies.py:{variant}" if "policies" in argv else "compare.py:mt4"
  return [argv[0], f"--config=configs/{file}", *argv[1:]]


def default_out(file: str) -> str:
  """Returns where results of a config FILE[:ARGUMENT] go, e.g. runs/policies_state."""
  path, _, argument = file.partition(":")
  stem = pathlib.Path(path).stem.removeprefix("compare_")
  return f"runs/{stem}_{argument}" if argument else f"runs/{stem}"


def load_config(source: str) -> Any:
  """Returns the values of a config FILE[:ARGUMENT]."""
  file, _, argument = source.partition(":")
  if not pathlib.Path(file).is_file():
    raise ValueError(f"there is no config {file}; paths are those of the checkout")
  get_config = runpy.run_path(file)["get_config"]
  return get_config(argument) if argument else get_config()


def config_flags(flag: flags.FlagHolder[Any]) -> tuple[str, list[str]]:
  """Returns FILE[:ARGUMENT] of a config flag, and each --NAME.KEY=VALUE that was given."""
  own = flags.FLAGS[flag.name]
  changes = ml_flags.get_override_values(own)
  return ml_flags.get_config_filename(own), [f"--{flag.name}.{k}={v}" for k, v in changes.items()]


def _parse(argv: list[str]) -> list[str]:
  """Parses the flags; --help exits with 0, and an error of a config file is no traceback."""
  try:
    return flags.FLAGS(argv)
  except SystemExit:  # of --help, to which absl gives the exit code 1
    sys.exit(0)
  except (flags.Error, AttributeError, *_USER_ERRORS) as error:
    if "--debug" in argv:
      raise
    _print(error)
    sys.exit(1)


def _print(error: BaseException, hint: str = "") -> None:
  """Prints an error as one line, without what it was raised from."""
  name = type(error).__name__
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
  text = f"{name}: {text}"
  if "Traceback" in text:  # of a config file, inside absl's message
    text = text.strip().splitlines()[-1]
  print(" ".join(text.split()) + hint, file=sys.stderr)
