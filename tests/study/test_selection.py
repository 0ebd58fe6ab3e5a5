"""A checkpoint is chosen on goals that are not reported, and the report says so."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import tiny

from oat_jax.envs import vector
from oat_jax.evaluate import evaluation
from oat_jax.evaluate import rollout
from oat_jax.evaluate import subject
from oat_jax.evaluate import video
from oat_jax.study import selection
from oat_jax.study import trained
from oat_jax.train import loop
from oat_jax.train import models

SUITE = "metaworld/mt4"
TASKS = ("box-close", "coffee-pull", "disassemble", "stick-pull")
SETTINGS = {"replans": (4, 8), "episodes": 2, "max_steps": 9}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A regression with the steps 1, 2 and 3."""
  root = tmp_path_factory.mktemp("selection")
  data = tiny.write_dataset(root / "data", episodes=2, tasks=TASKS, action_dim=4)
  data_config = {"validation_fraction": 0.5}
  how = {"steps": 3, "save_every": 1, "evaluate_every": 3, "keep": 3, "data": data_config}
  return loop.train(tiny.run_config("regression", data, **how), root / "policy")


@pytest.fixture
def simulated(monkeypatch):
  """Instead of running, a setting succeeds in as many episodes as the list says next."""
  plan, calls = [], []

  def run(env, act, pairs, *, replan, method, num_tokens, ensemble, limits, progress):
    calls.append((replan, pairs[0][1], len(pairs)))
    wins = plan.pop(0)
    rows = [
      rollout.Episode(method, num_tokens, replan, task, seed, b < wins, 9, 3, 0.0, 1.0)
      for b, (task, seed) in enumerate(pairs)
    ]
    return rollout.Outcome(rows, [np.zeros((9, 4))] * len(rows), [0, 1] * (len(rows) // 2))

  ms = {"mean": 1.5, "p50": 1.0, "p95": 2.0}
  latency = lambda each, budgets, stop: {str(K): ms for K in budgets}
  monkeypatch.setattr(subject, "latency_ms", latency)
  monkeypatch.setattr(rollout, "run", run)
  monkeypatch.setattr(vector, "VectorEnv", lambda *args, **settings: contextlib.nullcontext())
  return plan, calls


def test_the_best_step_is_reported_and_of_equals_the_later(workdir, simulated, tmp_path):
  plan, calls = simulated
  plan += [1, 3, 3, 5, 6]
  evaluate = lambda: selection.evaluate(
    workdir, SUITE, select=500, select_episodes=3, out=tmp_path, **SETTINGS
  )
  content = evaluate()
  assert calls == [(4, 500, 12)] * 3 + [(4, 100_000, 8), (8, 100_000, 8)]
  facts = content["facts"]
  assert facts["step"] == 3
  assert facts["checkpoint"]["chosen"] == "by success on selection goals"
  assert {step: rate["k"] for step, rate in facts["checkpoint"]["success"].items()} == {
    "1": 1,
    "2": 3,
    "3": 3,
  }
  text = (tmp_path / "evaluation.md").read_text()
  assert "Checkpoint of step 3, chosen: by success on selection goals of seeds 500..502" in text
  assert facts["restarts"][0] == {
    "setting": "regression R=4",
    "task": "coffee-pull",
    "seed": 100_000,
    "times": 1,
  }
  assert evaluate() == content and not plan  # all of it is known


def test_an_earlier_step_that_is_better_is_reported(workdir, simulated, tmp_path):
  simulated[0].extend([1, 4, 3, 5, 6])
  content = selection.evaluate(workdir, SUITE, select=500, out=tmp_path, **SETTINGS)
  assert content["facts"]["step"] == 2
  newest = trained.evaluation(workdir, SUITE, **SETTINGS)
  assert content["facts"]["model"] != newest.facts["model"]


def test_without_selection_the_report_says_newest(workdir, simulated, tmp_path):
  simulated[0].extend([1, 2])
  content = selection.evaluate(workdir, SUITE, out=tmp_path, **SETTINGS)
  assert content["facts"]["step"] == 3
  assert "Checkpoint of step 3, chosen: newest." in (tmp_path / "evaluation.md").read_text()


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"select": 99_998, "select_episodes": 3}, "overlap with"),
    ({"select": 200_001, "seeds": (100_000, 200_000)}, "overlap with"),
    ({"select": 500, "step": 2}, "leave out step"),
    ({"seeds": (5, 6)}, "overlap with"),
    ({"seeds": ()}, "need at least one value"),
    ({"ensemble": float("nan")}, "ensemble is nan"),
    ({"videos": -1}, "videos is -1"),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
  workdir, simulated, tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    selection.evaluate(workdir, SUITE, out=tmp_path / "new", **SETTINGS | changes)
  assert not simulated[1] and not (tmp_path / "new").exists()


def test_every_first_seed_gives_as_many_goals(workdir, simulated, tmp_path):
  simulated[0].extend([1, 1])
  content = selection.evaluate(workdir, SUITE, seeds=(700, 900), out=tmp_path, **SETTINGS)
  goals = [(row["task"], row["seed"]) for row in content["episodes"] if row["replan"] == 4]
  assert goals == [(task, seed) for seed in (700, 701, 900, 901) for task in TASKS]


def test_a_report_with_other_columns_is_refused_or_replaced(workdir, simulated, tmp_path):
  plan, calls = simulated
  plan += [1, 2, 3, 4]
  evaluate = lambda **how: selection.evaluate(workdir, SUITE, out=tmp_path, **SETTINGS, **how)
  evaluate()
  path = tmp_path / "evaluation.json"
  content = json.loads(path.read_text())
  for row in content["episodes"]:
    del row["calls"]
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="its episodes have the columns method, .*--replace"):
    evaluate()
  evaluate(replace=True)
  assert len(calls) == 4


def test_a_setting_whose_videos_are_missing_is_run_again(workdir, simulated, tmp_path, monkeypatch):
  plan, calls = simulated
  plan += [7, 8, 7]
  frames = lambda env, task, seed, actions_SA, camera, success: [task, seed, len(actions_SA)]
  monkeypatch.setattr(video, "encoder", lambda: None)
  monkeypatch.setattr(video, "replay", frames)
  made = []

  def write(path, frames):
    path.parent.mkdir(exist_ok=True)
    path.touch()
    made.append((path.name, *frames))

  monkeypatch.setattr(video, "write", write)
  monkeypatch.setattr(evaluation.Evaluation, "check_rendering", lambda self: None)
  evaluate = lambda videos: trained.evaluation(
    workdir, SUITE, out=tmp_path, videos=videos, **SETTINGS
  ).run()
  evaluate(0)
  assert not made
  # One of eight failed with R=4, none with R=8.
  evaluate(2)
  name = "stick-pull_seed100001_regression_R4_K0.mp4"
  assert made == [(name, "stick-pull", 100_001, 9)] and len(calls) == 3
  evaluate(2)
  assert len(calls) == 3


def test_what_a_policy_sees_is_rendered_and_noted(workdir, simulated, tmp_path, monkeypatch):
  made = []
  simulator = lambda *args, **settings: made.append(settings) or contextlib.nullcontext(Scene())
  Scene = type("Scene", (), {"start": lambda self, pairs: None})
  load = models.load
  seeing = lambda spec, size: dataclasses.replace(spec, cameras=(("corner2", *size),))
  monkeypatch.setattr(vector, "VectorEnv", simulator)
  monkeypatch.setenv("MUJOCO_GL", "egl")
  with_cameras = lambda *size: monkeypatch.setattr(
    models, "load", lambda *args: (t := load(*args))._replace(spec=seeing(t.spec, size))
  )
  with_cameras(8, 8)
  simulated[0].extend([1, 2])
  facts = trained.evaluation(workdir, SUITE, out=tmp_path, **SETTINGS).run()["facts"]
  quality = evaluation.QUALITY[False]
  assert facts["render"] == {"cameras": ["corner2"], "pixels": 8, "quality": quality, "by": "egl"}
  assert [(env["cameras"], env["image_size"]) for env in made] == [(("corner2",), 8)] * 2
  # Another renderer gives other pixels.
  monkeypatch.setenv("MUJOCO_GL", "osmesa")
  with pytest.raises(ValueError, match="render .*'by': 'egl'.* there, .*'by': 'osmesa'.* now"):
    trained.evaluation(workdir, SUITE, out=tmp_path, **SETTINGS)
  with_cameras(8, 12)
  with pytest.raises(ValueError, match="'corner2' at 8x12 pixels; the simulator renders squares"):
    trained.evaluation(workdir, SUITE, **SETTINGS)
