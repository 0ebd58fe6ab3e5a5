"""The docs name what exists: commands, flags, settings, files. `make docs-check` runs them."""

import ast
import re

import docs_check
import docs_commands
from docs_commands import ROOT
import pytest

SNIPPETS = docs_commands.snippets()
SHELL = [snippet for snippet in SNIPPETS if snippet.language == "shell"]
# Flags of other programs that pages name.
FOREIGN = {"no-deps", "camera_height", "camera_width"}
# Of a policy or tokenizer by its dotted path, or named in a config file of one's own.
OWN = {"config.NAME", "config.KEY", "config.extra_axes.dropout"}


def spans(page):
  """Inline code of a page, without its blocks."""
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
  return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def test_commands_are_found():
  pages = {snippet.page for snippet in SHELL}
  assert {"README.md", "docs/export.md", "launch/train.py", "configs/paper_libero.py"} <= pages
  assert {"oat_jax/serve/run.py", "launch/slurm.sbatch", "launch/tpu_vm.sh"} <= pages
  assert len(SHELL) > 120


def test_every_command_parses_and_names_what_exists():
  """As docs_check.py would run it; what it does not run, as it is written."""
  commands = {docs_check.bare(snippet.text): snippet for snippet in SHELL}
  argvs = [docs_commands.arguments(text) for text in commands]
  argvs = [a if docs_check.listed(t) else docs_check.smaller(a) for t, a in zip(commands, argvs)]
  assert docs_commands.problems(argvs) == {}


def test_what_does_not_parse_is_found():
  wrong = {
    "python launch/nope.py": "no file",
    "python launch/train.py --config=configs/tokenizer_oat.py:nope --workdir=W": "variant 'nope'",
    "python launch/train.py --config=configs/tokenizer_oat.py --config.nope=3 --workdir=W": "nope",
    "python launch/collect.py --out=DIR --episode=3": "episode",
    "python launch/benchmark.py nope --out=F": "not among",
    "oat-jax-serve --export=E --nope=3": "unrecognized arguments: --nope=3",
    "make nope": "nope",
    "pip install oat-jax[nope]": "no extras",
  }
  found = docs_commands.problems([text.split() for text in wrong])
  assert {text for text, says in wrong.items() if says in found.get(text, "")} == set(wrong)


def test_what_is_not_run_is_listed_with_what_runs_it():
  used = {docs_check.listed(snippet.text) for snippet in SNIPPETS} - {None}
  assert used == set(docs_check.LISTED)  # no row for what no page says any more
  for _, reason, by in docs_check.LISTED:
    assert reason and (ROOT / by).exists(), by
  for snippet in SHELL:  # docs_check.py runs it, or has it in its list
    program, *rest = docs_commands.arguments(snippet.text)
    runs = program in ("python", *docs_commands.MODULES)
    assert docs_check.listed(snippet.text) or runs, snippet


BLOCKS = [snippet for snippet in SNIPPETS if snippet.language == "python"]


@pytest.mark.parametrize("snippet", BLOCKS, ids=lambda s: f"{s.page}:{s.line}")
def test_names_of_a_python_block_are_defined(snippet):
  if not docs_check.listed(snippet.text):
    compile(docs_check.block(snippet.text), snippet.page, "exec")


@pytest.mark.parametrize("page", docs_commands.PAGES, ids=lambda page: page.name)
def test_links_pictures_and_files_exist(page):
  text = page.read_text()
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if "://" in target:
      continue
    path, _, heading = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), target
    if heading:
      titles = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
      assert heading in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
  for span in spans(page):
    named = re.fullmatch(
      r"((?:oat_jax|launch|configs|tests|examples|docs)/[\w/.-]+?)(:[\w,]+)?", span
    )
    assert named is None or (ROOT / named[1]).exists(), span


@pytest.mark.parametrize("page", docs_commands.PAGES, ids=lambda page: page.name)
def test_flags_and_settings_exist(page):
  settings, flags = docs_commands.settings() | OWN, docs_commands.flags() | FOREIGN
  for span in spans(page):
    for name in re.findall(r"(?<![\w/.])config(?:\.\w+)+", span):
      assert name in settings or name.endswith((".py", ".json")), span
    if span.startswith("--"):
      name = re.match(r"--([\w-]+)", span)
      assert name and (name[1] in flags or name[1].removeprefix("no") in flags), span


def messages():
  """What docs/faq.md quotes, without the error's class."""
  text = (ROOT / "docs/faq.md").read_text()
  return [re.sub(r"^\w+Error: ", "", m) for m in re.findall(r"^> `(.+)`$", text, re.M)]


def templates():
  """Texts in the code as (pattern, characters that are fixed), without quotes and line ends."""
  found = []
  for file in [*(ROOT / "oat_jax").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
    for node in ast.walk(ast.parse(file.read_text())):
      parts = node.values if isinstance(node, ast.JoinedStr) else [node]
      fixed = [part.value if isinstance(part, ast.Constant) else None for part in parts]
      texts = [t.replace("`", "").rstrip("\n ") if isinstance(t, str) else None for t in fixed]
      size = sum(len(text or "") for text in texts)
      if size >= 20 and all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
        end = fixed[-1] or ""
        between = texts if end.endswith(("\n", "\n  ")) else fixed
        escaped = [re.escape(t.replace("`", "")) if isinstance(t, str) else ".+?" for t in between]
        found.append(("".join(escaped), size))
  return found


def test_errors_of_the_faq_are_printed_like_that():
  said = [(re.compile(pattern), size) for pattern, size in templates()]
  quoted = [text.replace("`", "") for text in messages()]
  printed = lambda text: any(5 * size > len(text) and p.search(text) for p, size in said)
  assert [text for text in quoted if not printed(text)] == [] and len(quoted) > 25
