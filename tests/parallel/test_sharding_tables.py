"""How every parameter of every shipped config is cut is written down; a change of it is seen."""

import difflib
import pathlib

import pytest
import sharding_tables

WRITTEN = pathlib.Path(__file__).with_name("sharding_tables.txt").read_text()


@pytest.mark.parametrize(
  ("name", "argument"), sharding_tables.CONFIGS, ids=lambda part: part.replace("/", "_")
)
def test_parameters_are_cut_as_written_down(name, argument):
  made = sharding_tables.table(name, argument)
  written = next(
    (part for part in WRITTEN.strip().split("\n\n") if part.startswith(f"{name}.py:{argument}\n")),
    "",
  )
  changed = difflib.unified_diff(written.splitlines(), made.splitlines(), "written", "now", n=0)
  assert made == written, "\n".join(changed)


def test_nothing_is_written_down_of_what_is_not_shipped():
  names = [part.splitlines()[0] for part in WRITTEN.strip().split("\n\n")]
  assert names == [f"{name}.py:{argument}" for name, argument in sharding_tables.CONFIGS]
