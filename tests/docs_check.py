"""Runs every command of the docs, scaled down, where it can be run; `make docs-check`.

Pages are run from top to bottom, each in a folder of its own in which DIR, W, E and the like are
real: a small dataset, a tokenizer and a policy of two steps, an export. What cannot be run here is
in LISTED of docs_tables.py, with the reason and what runs it instead; test_docs.py checks that it
parses.
"""

import argparse
import ast
import builtins
import collections
import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import docs_commands
from docs_commands import ROOT
from docs_tables import BEFORE
from docs_tables import FILES
from docs_tables import LISTED
from docs_tables import MISSING
from docs_tables import NAMES
from docs_tables import POLICY
from docs_tables import PREAMBLE
from docs_tables import SMALLER
from docs_tables import WORDS
import tiny

SECONDS = 1200  # of a command, on a machine that others use too


class Result(NamedTuple):
  snippet: docs_commands.Snippet
  outcome: str  # ok, FAILED, skipped, listed or again
  seconds: float = 0.0
  why: str = ""


def bare(text: str) -> str:
  """Returns a command without its comment."""
  return re.sub(r"\s+#.*", "", text).strip()


def listed(text: str) -> tuple[str, str, str] | None:
  """Returns the row of LISTED that fits."""
  return next((row for row in LISTED if re.search(row[0], bare(text))), None)


def smaller(argv: list[str]) -> list[str]:
  """Returns the words of a command, with what makes it small."""
  name = next((word for word in argv[:2] if word in SMALLER), "")
  rest = " ".join(argv[argv.index(name) + 1 :]) if name else ""
  more = next((more for held, more in SMALLER.get(name, [("", "")]) if re.search(held, rest)), "")
  for word, flags in WORDS.items():
    more = more.replace(word, flags)
  if "--methods=" in more and "--methods" in rest:
    more = re.sub(r"--methods=\S+", "", more)
  argv = [re.sub(r"^--in=FILE$", f"--in={FILES.get(_flag(argv, 'from'))}", word) for word in argv]
  if "launch/convert.py" in argv[:2]:  # DIR is what the page's other commands train on
    argv = [re.sub(r"^--out=DIR$", "--out=CONVERTED", word) for word in argv]
  if "--config=configs/" in more:  # in the place of the one that was named, before its changes
    argv = [word for word in argv if not word.startswith(("--config=", "--observations="))]
    config, *others = more.split()
    at = argv.index(name) + 1
    return [*argv[:at], config, *argv[at:], *others]
  return argv + more.split()


def _flag(argv, name):
  return next((word.partition("=")[2] for word in argv if word.startswith(f"--{name}=")), "")


class Page:
  """The folder in which one page's commands are run, and the servers that it started."""

  def __init__(self, made: pathlib.Path, name: str):
    self.folder = made.parent / re.sub(r"\W", "_", name)
    shutil.rmtree(self.folder, ignore_errors=True)
    shutil.copytree(made, self.folder, symlinks=True)
    self.servers: list[subprocess.Popen] = []
    self.ports = {"8000": _free_port(), "50051": _free_port()}
    self.environment = _environment(self.folder)

  def run(self, argv: list[str]) -> tuple[int, str]:
    """Returns (exit code, what it said); a server is started, and goes on."""
    argv = [self._here(word) for word in argv]
    if argv[0] in docs_commands.MODULES:
      argv = ["python", "-m", docs_commands.MODULES[argv[0]], *argv[1:]]
    if argv[0] == "python":
      argv[0] = sys.executable
    self._clear(argv)
    if "launch/serve.py" in argv or "oat_jax.serve.run" in argv:
      return self._serve(argv)
    server = _flag(argv, "server")
    if server and not self.servers:
      self.run(["python", "launch/serve.py", "--export=E", "--port=8000"])
    done = subprocess.run(
      argv, cwd=self.folder, env=self.environment, timeout=SECONDS,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout

  def _here(self, word):
    for port, free in self.ports.items():
      word = re.sub(rf"(?<=[:=]){port}\b", str(free), word)
    return word.replace("HOST", "127.0.0.1")

  def _clear(self, argv):
    """Removes what the command is about to write: another run's would be refused or reused."""
    file = argv[1]
    gone = [_flag(argv, "out")] if _flag(argv, "out") != "runs/quickstart" else []
    if file == "launch/sweep.py":  # its commands go on from one another
      gone = []
    if file == "launch/quickstart.py" and not _flag(argv, "stages"):
      gone = ["runs/quickstart"]
    if file == "launch/train.py":
      gone.append(_flag(argv, "workdir"))
    if file == "launch/evaluate.py" and _flag(argv, "workdir"):
      gone.append(f"{_flag(argv, 'workdir')}/report")
    for path in gone:
      path = self.folder / path if path else None
      if path and path.is_symlink():
        path.unlink()
      elif path and path.is_dir():
        shutil.rmtree(path)

  def _serve(self, argv):
    self.close()  # one at a time: they share a port
    process = subprocess.Popen(
      argv, cwd=self.folder, env=self.environment,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = ""
    for line in process.stdout or ():
      said += line
      if line.startswith("ready after"):
        self.servers.append(process)
        return 0, said
    return process.wait() or 1, said

  def close(self) -> list[int]:
    """Ends the servers by Ctrl-C; returns their exit codes."""
    for process in self.servers:
      process.send_signal(signal.SIGINT)
    codes = []
    for process in self.servers:
      process.communicate(timeout=60)
      codes.append(process.returncode)
    self.servers = []
    return codes


def _environment(folder):
  path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(folder)])
  quick = tiny.quick()
  quick |= {"OAT_JAX_CACHE": str(folder.parent / "cache"), "JAX_PLATFORMS": "cpu"}
  quick |= {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
  quick |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "MPLBACKEND": "agg"}
  return os.environ | {"PYTHONPATH": path} | quick


def _free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def block(text: str) -> str:
  """Returns the program of a Python block; ValueError for a name that nothing defines."""
  known, free = set(dir(builtins)), []
  for statement in ast.parse(text).body:
    names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
    free += [n.id for n in names if isinstance(n.ctx, ast.Load) and n.id not in known]
    known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    if isinstance(statement, ast.Import | ast.ImportFrom):
      known |= {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
  if unknown := set(free) - set(NAMES):
    raise ValueError(f"nothing defines {sorted(unknown)}; NAMES in docs_tables.py may")
  return PREAMBLE + "".join(f"{n} = {NAMES[n]}\n" for n in NAMES if n in free) + text


def make(root: pathlib.Path) -> pathlib.Path:
  """Returns a folder with what the docs' placeholders stand for."""
  import foreign

  made = root / "made"
  if (made / "whole").exists():
    return made
  made.mkdir(parents=True)
  for name in ("launch", "configs", "examples", "oat_jax"):
    (made / name).symlink_to(ROOT / name)
  page = Page.__new__(Page)
  page.folder, page.ports, page.servers = made, {}, []
  page.environment = _environment(made)
  commands = ["python launch/collect.py --suite=metaworld/mt4 --noise=0.05 --out=DIR", *POLICY]
  for command in [*commands, "python launch/export.py --workdir=W/policy --out=E"]:
    code, said = page.run(smaller(docs_commands.arguments(command)))
    if code:
      raise RuntimeError(f"{command}\n{said}")
  (made / "runs/data").mkdir(parents=True)
  (made / "runs/quickstart").mkdir()
  (made / "runs/data/mt4").symlink_to("../../DIR")
  (made / "runs/quickstart/data").symlink_to("../../DIR")
  (made / "runs/quickstart/tokenizer").symlink_to("../../W/tokenizer")
  (made / "TOKEN").write_text("0123456789abcdef\n")
  for name in ("lift/ph/image.hdf5", "lift/image_128.hdf5", "DIRECTORY/CloseDrawer.hdf5"):
    (made / name).parent.mkdir(parents=True, exist_ok=True)
    foreign.robomimic(made / name, [34, 34, 34])
  foreign.libero(made / "libero_10/one_demo.hdf5", [34, 34])
  foreign.lerobot(made / "svla_so101_pickplace", [[12, 9], [8]])
  sys.path.insert(0, str(ROOT / "tests/data"))
  import made as rlds

  features, records = rlds.small()
  rlds.write(made / "bridge/1.0.0", features, {"train": [records]}, "array_record")
  bridge = ROOT.parent / "shared/data/bridge_dataset"
  if bridge.exists():
    (made / "bridge_dataset").symlink_to(bridge)
  (made / "my_package").mkdir()
  shutil.copy(ROOT / "tests/examples/linear_tokenizer.py", made / "my_package/my_tokenizer.py")
  lift = (
    "python launch/convert.py --from=robomimic_hdf5 --in=lift/ph/image.hdf5 --out=runs/data/lift"
  )
  page.run(lift.split())
  (made / "whole").touch()
  return made


_seen: dict[str, bool] = {}
_lock = threading.Lock()


def run_page(made, name, found, say):
  """Runs a page's snippets; returns their results."""
  results, page = [], Page(made, name)
  for snippet in found:
    result = _run(page, snippet)
    say(result)
    results.append(result)
  for code in page.close():
    if code:
      results.append(Result(found[-1], "FAILED", 0, f"the server ended with {code} at Ctrl-C"))
      say(results[-1])
  return results


def _run(page, snippet):
  row = listed(snippet.text)
  if row:
    return Result(snippet, "listed", 0, f"{row[1]}: {row[2]}")
  begin = time.monotonic()
  try:
    if snippet.language == "python":
      code, said = page.run(["python", "-c", block(snippet.text)])
    else:
      argv = smaller(docs_commands.arguments(snippet.text))
      if "bridge_dataset" in " ".join(argv) and not (page.folder / "bridge_dataset").exists():
        return Result(snippet, "skipped", 0, "the dataset is not here")
      once = " ".join(argv)
      if re.search(r"compare|benchmark|plan|--stages", once):  # nothing on a page needs its results
        with _lock:
          again, _seen[once] = once in _seen, True
        if again:
          return Result(snippet, "again", 0, "")
      before = [more for held, more in BEFORE.items() if held in once]
      for command in [command for more in before for command in more]:
        page.run(smaller(docs_commands.arguments(command)))
      code, said = page.run(argv)
  except (ValueError, subprocess.TimeoutExpired) as error:
    code, said = 1, str(error)
  seconds = time.monotonic() - begin
  if code == 0 and "Traceback" not in said:
    return Result(snippet, "ok", seconds)
  outcome = "skipped" if MISSING.search(said) else "FAILED"
  return Result(snippet, outcome, seconds, said.strip()[-1500:])


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", default="", help="pages whose names have this pattern")
  parser.add_argument("--folder", help="keep what is made here, for another call")
  parser.add_argument("--jobs", type=int, default=2, help="pages at a time")
  settings = parser.parse_args()
  pages = collections.defaultdict(list)
  for snippet in docs_commands.snippets():
    if re.search(settings.only, snippet.page):
      pages[snippet.page].append(snippet)
  total, count, begin = sum(map(len, pages.values())), 0, time.monotonic()

  def say(result):
    nonlocal count
    with _lock:
      count += 1
      s = result.snippet
      text = bare(s.text if s.language == "shell" else s.text.splitlines()[0])
      print(f"{count:>3}/{total} {result.outcome:<7} {result.seconds:4.0f} s  "
            f"{s.page}:{s.line} {text[:90]}", flush=True)  # fmt: skip
      if result.outcome == "FAILED":
        print(result.why, flush=True)

  temporary = tempfile.TemporaryDirectory(prefix="docs_check_")
  with contextlib.nullcontext(settings.folder) if settings.folder else temporary as folder:
    print("making what the placeholders stand for", flush=True)
    made = make(pathlib.Path(folder))
    with concurrent.futures.ThreadPoolExecutor(settings.jobs) as pool:
      # Long pages first, so that none is left alone at the end.
      order = sorted(pages.items(), key=lambda page: -len(page[1]))
      parts = pool.map(lambda page: run_page(made, *page, say), order)
      results = [result for part in parts for result in part]
  table = collections.Counter(result.outcome for result in results)
  print(f"\n{time.monotonic() - begin:.0f} s: " + ", ".join(f"{n} {k}" for k, n in table.items()))
  for result in results:
    if result.outcome in ("FAILED", "skipped"):
      s = result.snippet
      print(f"{result.outcome} {s.page}:{s.line} {bare(s.text)}\n    {result.why[-300:]}")
  return int(table["FAILED"] > 0)


if __name__ == "__main__":
  sys.exit(main())
