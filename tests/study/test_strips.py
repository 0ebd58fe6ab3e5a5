"""Strips show episodes of the report, chosen by a rule, and are made once."""

import json
from typing import Any

import numpy as np
from PIL import Image
import pytest

from oat_jax.evaluate import rollout
from oat_jax.study import strips

SETTING = ("autoregressive", 8, 8)


def row(task, seed, success, steps=300):
  return rollout.Episode("autoregressive", 8, 8, task, seed, success, steps, 1, 8.0, 1.0)


class _Evaluation:
  """Renders squares whose shade is the moment; `otherwise` are seeds that end otherwise again."""

  def __init__(self, rows, otherwise=()):
    self.known, self.otherwise = {SETTING: rows}, otherwise
    self.facts: dict[str, Any] = {"model": "a", "versions": {}, "suite": "metaworld/mt4"}
    self.calls = 0

  def replay(self, rows, moments, pixels):
    self.calls += 1
    shades = np.arange(moments, dtype=np.uint8) * 30
    frames = [np.full((pixels, pixels, 3), shade, np.uint8) for shade in shades]
    return {each: frames for each in rows if each.seed not in self.otherwise}


def fake(*args) -> Any:  # its type is not the one that is asked for
  return _Evaluation(*args)


ROWS = [
  *(row("box-close", seed, True, 80 + seed) for seed in range(4)),
  *(row("stick-pull", seed, True, 100 + 10 * seed) for seed in range(10, 15)),
  *(row("stick-pull", seed, False) for seed in (15, 16, 17)),
  row("box-close", 4, False),
]


def test_the_task_has_most_of_both_endings_and_the_success_is_a_typical_one():
  assert [each.seed for each in strips.candidates(ROWS)] == [12, 11, 15, 16]
  assert {each.task for each in strips.candidates(ROWS)} == {"stick-pull"}


def test_where_no_task_has_both_each_ending_is_shown_where_it_is():
  rows = [row("box-close", 1, True, 90), row("stick-pull", 2, False)]
  assert strips.candidates(rows) == rows
  assert strips.candidates(rows[:1]) == rows[:1]
  assert strips.candidates(rows[1:]) == rows[1:]


def test_strips_are_made_once_and_again_for_another_model(tmp_path):
  evaluation = fake(ROWS)
  first = strips.make(tmp_path, evaluation, SETTING)
  assert {name: strip.row.seed for name, strip in first.items()} == {"success": 12, "failure": 15}
  assert first["success"].steps[-1] == 220 and first["failure"].steps[-1] == 300
  for strip in first.values():
    shades = [np.unique(np.asarray(frame)).tolist() for frame in strip.frames]
    assert shades == [[30 * i] for i in range(strips.MOMENTS)]
  with Image.open(tmp_path / "failure.png") as picture:
    assert picture.size == (8 * 320, 320)
    assert json.loads(picture.info["oat_jax"])["row"]["seed"] == 15
  assert {n: s.row for n, s in strips.make(tmp_path, evaluation, SETTING).items()} == {
    n: s.row for n, s in first.items()
  }
  assert evaluation.calls == 1
  evaluation.facts["model"] = "b"
  strips.make(tmp_path, evaluation, SETTING)
  assert evaluation.calls == 2
  evaluation.known[SETTING] = [each._replace(steps=each.steps - 1) for each in ROWS]
  strips.make(tmp_path, evaluation, SETTING)
  assert evaluation.calls == 3


def test_an_ending_that_no_episode_has_is_left_out_and_not_looked_for_again(tmp_path):
  strips.make(tmp_path, fake(ROWS), SETTING)
  solved = fake([each for each in ROWS if each.success])
  solved.facts["model"] = "better"
  for _ in range(2):
    assert set(strips.make(tmp_path, solved, SETTING)) == {"success"}
  assert solved.calls == 1
  assert not (tmp_path / "failure.png").exists()  # it was of the model before


@pytest.mark.parametrize(("otherwise", "seeds"), [([15], {12, 16}), ([15, 16], {12})])
def test_an_episode_that_ends_otherwise_now_is_not_shown(tmp_path, otherwise, seeds):
  made = strips.make(tmp_path, fake(ROWS, otherwise), SETTING)
  assert {strip.row.seed for strip in made.values()} == seeds


def test_a_broken_file_is_made_anew(tmp_path):
  (tmp_path / "success.png").write_bytes(b"no picture")
  evaluation = fake(ROWS)
  assert len(strips.make(tmp_path, evaluation, SETTING)) == 2 and evaluation.calls == 1
