r"""Evaluates an export in a simulator, in this process or through a server; JSON and Markdown.

Examples:
  oat-jax-evaluate --export=E --suite=metaworld/mt4 --num-tokens=1,8 --episodes=25 --out=OUT
  oat-jax-evaluate --server=ws://127.0.0.1:8000 --suite=libero/10 --replan=16 --out=OUT

A server (oat-jax-serve) is for simulators that want other packages than jax does: it runs in the
one environment, this command in the other. Both ways write the same report: evaluation.json, with a
row an episode, evaluation.md, and videos/. Settings (K, R) that it holds already are not run again.
In a checkout launch/evaluate.py does the same, and evaluates working directories.
"""

import argparse
from collections.abc import Sequence
import contextlib
import importlib
import os
import pathlib
import sys
from typing import Any

from oat_jax.evaluate import evaluation


def evaluate(
  export: str | os.PathLike | None,
  server: str | None,
  suite_name: str,
  out: str | os.PathLike,
  *,
  token_file: str | os.PathLike | None = None,
  **settings: Any,
) -> dict[str, Any]:
  """Evaluates an export, and returns the content of evaluation.json.

  Args:
    export: its directory, to act in this process; or None.
    server: the address of what serves it; or None.
    suite_name, out, settings: as `Evaluation` takes them.
    token_file: with the server's token.

  Raises:
    ValueError, OSError, RuntimeError, ImportError: both or neither of the two are given, or as
      `Exported`, `Remote` and `Evaluation` raise them.
  """
  if bool(export) == bool(server):
    raise ValueError("--export=DIR acts here, --server=ADDRESS by a server: give one of them")
  try:
    module = importlib.import_module(f"oat_jax.evaluate.{'exported' if export else 'remote'}")
  except ImportError as error:
    how = "'oat-jax[sim]'" if export else "websockets msgpack, or 'oat-jax[serve]'"
    raise ImportError(f"this needs more ({error}): pip install {how}") from error
  with contextlib.ExitStack() as stack:
    if export:
      subject = module.Exported(export)
    else:
      token = pathlib.Path(token_file).read_text().strip() if token_file else ""
      subject = stack.enter_context(module.Remote(str(server), token))
    return evaluation.Evaluation(subject, suite_name, out, **settings).run()


def main(argv: Sequence[str] | None = None) -> int:
  """The command oat-jax-evaluate; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="oat-jax-evaluate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--export", help="directory that launch/export.py wrote")
  add("--server", help="address of oat-jax-serve, e.g. ws://127.0.0.1:8000")
  add("--token-file", help="file with the server's token")
  add("--suite", required=True, help="of tasks, e.g. metaworld/mt4")
  add("--out", required=True, help="directory of the report")
  add("--num-tokens", type=_integers, default=(1, 2, 4, 8), help="prefix lengths K (1,2,4,8)")
  add("--replan", type=_integers, default=(8, 16), help="steps R executed of each chunk (8,16)")
  add("--episodes", type=int, default=25, help="of each task and first seed (%(default)s)")
  add("--seeds", type=_integers, default=(evaluation.REPORTED_SEED,), help="first goal seeds")
  add("--ceiling", action="store_true", help="encode and decode the expert's own chunks")
  add("--stop", default="", help="or refinement: K tokens are spent on average")
  add("--ensemble", type=float, help="average overlapping chunks, weights exp(-ENSEMBLE * i)")
  add("--max-steps", type=int, help="control steps of an episode; the suite's by default")
  add("--processes", type=int, help="of the simulator; one per core by default")
  add("--videos", type=int, default=0, help="failed episodes of each setting to write as mp4")
  add("--video-camera", default="", help="of the videos; the suite's by default")
  add("--replace", action="store_true", help="give up another evaluation's report in OUT")
  add("--debug", action="store_true", help="show the traceback of an error")
  settings = vars(parser.parse_args(argv))
  debug, suite_name = settings.pop("debug"), settings.pop("suite")
  settings["replans"] = settings.pop("replan")
  try:
    evaluate(suite_name=suite_name, **settings)
  except KeyboardInterrupt:
    print("stopped; the same command continues", file=sys.stderr)
    return 130
  except (ValueError, OSError, ImportError, RuntimeError) as error:
    if debug:
      raise
    print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    return 1
  return 0


def _integers(text: str) -> tuple[int, ...]:
  try:
    return tuple(int(part) for part in text.split(","))
  except ValueError as error:
    raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, e.g. 1,8") from error


if __name__ == "__main__":
  sys.exit(main())
