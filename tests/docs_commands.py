"""What the docs tell a reader to type: found in pages and docstrings, and parsed without a run.

Called as a program it reads a JSON list of argument lists and prints {index: what is wrong}; every
one is parsed in a fork of a process that has imported once what all of them need.
"""

import ast
import functools
import importlib
import json
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a command line begins with, behind a prompt and variables.
HEAD = re.compile(
  r"(\$ )?([A-Z_]+=\S+ +)*"
  r"(python3?|pip|make|srun|mpirun|sbatch|launch/\w+\.sh|\.venv\S*/bin/\S+|oat-jax-\w+)(?=\s|$)"
)
MODULES = {"oat-jax-check": "oat_jax.export.loader"} | {
  f"oat-jax-{name}": f"oat_jax.{name}.run" for name in ("evaluate", "serve")
}
# What most commands import; nothing here starts threads, which would not outlive a fork.
SHARED = (
  *("ml_collections.config_flags", "oat_jax.train.config", "oat_jax.envs.collect"),
  *("oat_jax.data.sources", "oat_jax.data.convert", "oat_jax.study.dataset", *MODULES.values()),
)
# What "..." stands for: the flags of the command above.
ABOVE = {
  "launch/train.py": "--config=configs/tokenizer_oat.py:mt4 --config.data.path=DIR"
  " --workdir=W/tokenizer",
  "launch/sweep.py": "--config=configs/sweeps/tokenizer.py:mt4 --config.set.data.path=DIR"
  " --out=OUT",
}


class Snippet(NamedTuple):
  """A command line, or a block of Python code."""

  page: str  # path below the checkout
  line: int
  text: str
  language: str  # "shell" or "python"


def snippets() -> list[Snippet]:
  """Returns all, page by page, in reading order; ValueError for a line that is no command."""
  found = []
  for page in PAGES:
    found += _of_markdown(page)
  for folder in ("configs", "launch", "oat_jax", "examples"):
    for file in sorted((ROOT / folder).rglob("*.py")):
      text = ast.get_docstring(ast.parse(file.read_text()), clean=False) or ""
      found += _of_lines(file, text, 1, indented=True)
  for file in sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")]):
    head = "\n".join(line[2:] for line in file.read_text().split("\nset ")[0].splitlines())
    found += _of_lines(file, head, 1, indented=True)
  return found


def _of_markdown(page):
  text = page.read_text()
  found = []
  for block in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
    language, content = block.groups()
    line = text[: block.start(2)].count("\n") + 1
    if language == "python":
      found.append(Snippet(str(page.relative_to(ROOT)), line, content, "python"))
    else:
      found += _of_lines(page, content, line, indented=False)
  bare = re.sub(r"^```.*?^```", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.M | re.S)
  for span in re.finditer(r"`([^`]+)`", bare):
    command = " ".join(span[1].split())
    if HEAD.match(command) and not command.startswith("launch/"):  # names of files
      line = bare[: span.start()].count("\n") + 1
      found += [Snippet(str(page.relative_to(ROOT)), line, c, "shell") for c in split(command)]
  return sorted(found, key=lambda snippet: snippet.line)


def _of_lines(page, text, first, indented):
  """Commands of a block; where one stands without a prompt, every line must be one."""
  name, found, others = str(page.relative_to(ROOT)), [], []
  joined = re.sub(r"\\\n", lambda m: "\\\0", text)  # keeps count of lines
  number = first
  for line in joined.split("\n"):
    command = " ".join(line.replace("\\\0", " ").split())
    if HEAD.match(command) and (line.startswith("  ") or not indented):
      found += [Snippet(name, number, c, "shell") for c in split(command)]
    elif line.strip():
      others.append(f"{name}:{number}: {line.strip()}")
    number += 1 + line.count("\0")
  if found and others and not indented and not joined.startswith("$ "):
    raise ValueError(f"neither a command nor what one prints: {others[0]}")
  return found


def split(command: str) -> list[str]:
  """Returns the commands that a line means: those joined by &&, and one for each of a|b|c."""
  command = command.removeprefix("$ ")
  if " && " in command:
    return [one for part in command.split(" && ") for one in split(part)]
  several = re.search(r"(?<=[ =])(\w+(?:\|\w+)+)(?= |$)", command)
  if not several:
    return [command]
  return [command.replace(several[1], one, 1) for one in several[1].split("|")]


def arguments(text: str) -> list[str]:
  """Returns the words of a command line, without a comment, with ... filled in."""
  words = shlex.split(text, comments=True)
  while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
    words = words[1:]
  above = next((ABOVE[word].split() for word in words if word in ABOVE), [])
  return [word for one in words for word in (above if one == "..." else [one])]


def problems(commands: list[list[str]]) -> dict[str, str]:
  """Returns {command: what is wrong}: flags, settings, variants, files or targets do not exist."""
  environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'launch'}"}
  done = subprocess.run(
    [sys.executable, __file__],
    input=json.dumps(commands),
    env=environment | {"JAX_PLATFORMS": "cpu"},
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(done.stderr)
  return {" ".join(commands[int(i)]): error for i, error in json.loads(done.stdout).items()}


def _problem(argv):
  """Returns what is wrong with one command, "" if nothing."""
  program, *rest = argv
  name = program.rpartition("/")[2]
  if name == "pip" or argv[1:3] == ["-m", "pip"]:
    text = (ROOT / "setup.py").read_text()
    named = re.search(r"^EXTRAS = (\{.*?^\})", text, re.M | re.S)
    known = ast.literal_eval(named[1]) if named else {}
    wanted = re.findall(r"(?:oat-jax|\.)\[([\w,]+)\]", " ".join(rest))
    unknown = {extra for group in wanted for extra in group.split(",")} - set(known)
    return f"no extras {sorted(unknown)}" if unknown else ""
  if name == "make":
    done = subprocess.run(["make", "-n", *rest], capture_output=True, text=True)
    return done.stderr
  if name in ("srun", "mpirun", "sbatch") or name.endswith(".sh"):
    script = next((word for word in argv if word.startswith("launch/")), None)
    if script is None or not (ROOT / script).exists():
      return f"no script of launch/ in {argv}"
    rest = argv[argv.index(script) + 1 :]
    return _of_absl("launch/train.py", rest)
  if name in MODULES:
    return _of_argparse(MODULES[name], rest)
  if rest[:1] == ["-c"]:
    compile(rest[1], "-c", "exec")
    return ""
  if rest[:1] == ["-m"]:
    return "" if rest[1].startswith("robocasa.") else _of_argparse(rest[1], rest[2:])
  if rest[0] == "launch/serve.py":
    return _of_argparse("oat_jax.serve.run", rest[1:])
  if rest[0].startswith("examples/"):
    return "" if (ROOT / rest[0]).exists() else f"no file {rest[0]}"
  if rest == ["E/decode.py"]:  # which an export in numpy holds
    return ""
  return _of_absl(rest[0], rest[1:])


def _of_absl(script, args):
  """Parses the flags of a launch file, and the values of its config."""
  if not (ROOT / script).exists():
    return f"no file {script}"
  command = importlib.import_module("command")
  config = importlib.import_module("oat_jax.train.config")
  flags = importlib.import_module("absl.flags").FLAGS
  sys.argv = [script, *args]

  def run(main, positional="", **_):
    rest = flags(sys.argv)[1:]
    if len(rest) != bool(positional):
      raise ValueError(f"arguments {rest}")
    known = main.__globals__.get("SECTIONS", rest)
    if positional and rest[0] not in known:
      raise ValueError(f"{positional} {rest[0]} is not among {known}")
    if script == "launch/train.py":
      config.freeze(flags.config)

  command.run = run
  runpy.run_path(str(ROOT / script), run_name="__main__")
  return ""


def _of_argparse(module, args):
  argparse = importlib.import_module("argparse")
  parse = argparse.ArgumentParser.parse_args

  def parsed(self, argv=None, namespace=None):
    parse(self, argv, namespace)
    raise _Parsed

  argparse.ArgumentParser.parse_args = parsed
  try:
    importlib.import_module(module).main(args)
  except _Parsed:
    return ""
  return "no flags are parsed"


class _Parsed(Exception):
  pass


@functools.cache
def settings() -> set[str]:
  """Returns config.NAME of every setting of every shipped config."""
  found = set()

  def visit(values, where):
    for key, value in values.items():
      found.add(f"{where}.{key}")
      if hasattr(value, "items"):
        visit(value, f"{where}.{key}")

  for file in sorted((ROOT / "configs").rglob("*.py")):
    if file.name not in ("ladder.py", "paper.py"):  # parts of others
      visit(runpy.run_path(str(file))["get_config"](), "config")
  return found


def flags() -> set[str]:
  """Returns the flags of all commands, as they are spelled."""
  found = {"debug", "help"}
  for file in [*(ROOT / "launch").glob("*.py"), *(ROOT / "examples").glob("*.py")]:
    found |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"|add\w*\("--([\w-]+)"', file.read_text()))
  for module in MODULES.values():
    file = ROOT / f"{module.replace('.', '/')}.py"
    found |= set(re.findall(r'add\w*\("--([\w-]+)"()', file.read_text()))
  return {name for names in found for name in ([names] if isinstance(names, str) else names)}


if __name__ == "__main__":
  for module in SHARED:
    importlib.import_module(module)
  wrong = {}
  for i, argv in enumerate(json.load(sys.stdin)):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
      os.close(read)
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
      os.dup2(write, 2)
      try:
        text = _problem(argv)
      except SystemExit:
        text = " "  # argparse has said why
      except BaseException as error:
        text = f"{type(error).__name__}: {error}"
      os.write(write, text.encode())
      os._exit(bool(text))
    os.close(write)
    with os.fdopen(read) as said:
      error = said.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
      wrong[str(i)] = error.strip() or "refused"
  print(json.dumps(wrong))
