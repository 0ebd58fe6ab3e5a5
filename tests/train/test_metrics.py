"""metrics.jsonl: no step twice, whatever a kill left behind."""

import json
import sys
import types

import pytest
import tiny

from oat_jax.train import loop
from oat_jax.train import metrics


def rows(tmp_path):
  return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def write(tmp_path, steps, start=0):
  writer = metrics.Writer(tmp_path, 9, start)
  for step in steps:
    writer.log(step, {"loss": step / 2}, "train", ("loss",))
  writer.close()


def test_rows_behind_the_restored_step_are_dropped_and_written_anew(tmp_path):
  write(tmp_path, range(1, 6))
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 6, "train/lo')  # killed while writing
  write(tmp_path, range(4, 8), start=3)
  assert rows(tmp_path) == [{"step": i, "train/loss": i / 2} for i in range(1, 8)]


def test_a_broken_row_is_dropped_even_among_earlier_steps(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5}\n[]\n{"step": "x"\n\n')
  write(tmp_path, [2], start=1)
  assert rows(tmp_path) == [{"step": i, "train/loss": i / 2} for i in (1, 2)]


def test_the_console_shows_steps_values_and_time_left(tmp_path, capsys):
  writer = metrics.Writer(tmp_path, 9, 0)
  writer.log(3, {"loss": 1.5, "hidden": 2.0}, "train", ("loss",), rate=0.5)
  writer.close()
  line = capsys.readouterr().out
  assert "3/9]" in line and "loss 1.5 " in line and "0.5 steps/s, 0m12s left" in line
  assert "hidden" not in line


def test_a_reader_of_the_console_who_is_gone_ends_no_run(tmp_path, monkeypatch):
  class Gone:
    def write(self, text):
      raise BrokenPipeError(32, "Broken pipe")

    flush = write

  monkeypatch.setattr("sys.stdout", Gone())
  write(tmp_path, [1, 2])
  assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_tensorboard_events_are_written(tmp_path):
  write(tmp_path, [1])
  (events,) = (path for path in tmp_path.iterdir() if "tfevents" in path.name)
  assert b"train/loss" in events.read_bytes()


def test_other_processes_write_nothing(tmp_path, capsys):
  writer = metrics.Writer(tmp_path / "nowhere", 9, 0, active=False)
  writer.log(1, {"loss": 1.0}, "train", ("loss",))
  writer.close()
  assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_durations():
  spoken = [metrics.format_seconds(seconds) for seconds in (0, 59.9, 61, 3600, 90061)]
  assert spoken == ["0m00s", "0m59s", "1m01s", "1h00m", "25h01m"]


class Wandb(types.ModuleType):
  """As the package of that name: notes what runs begin, log and end."""

  def __init__(self):
    super().__init__("wandb")
    self.runs, self.logged, self.finished = [], [], 0

  def init(self, **settings):
    self.runs.append(settings)
    return types.SimpleNamespace(log=self.log, finish=self.finish)

  def log(self, row, step):
    self.logged.append((step, row))

  def finish(self):
    self.finished += 1


def test_weights_and_biases_gets_the_rows_and_a_resumed_run_is_the_same_one(tmp_path, monkeypatch):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  for start in (0, 3):
    (tmp_path / "run").mkdir(exist_ok=True)
    writer = metrics.Writer(tmp_path / "run", 9, start, True, "project", {"seed": 1})
    writer.log(start + 1, {"loss": 1.5}, "train", ("loss",))
    writer.close()
  first, second = wandb.runs
  assert first == second and first["project"] == "project" and first["resume"] == "allow"
  assert first["name"] == "run" and first["config"] == {"seed": 1} and len(first["id"]) == 8
  assert wandb.logged == [(1, {"train/loss": 1.5}), (4, {"train/loss": 1.5})]
  assert wandb.finished == 2


def test_weights_and_biases_that_is_not_installed_is_an_error_before_anything(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
  metrics.check_wandb("")
  with pytest.raises(
    ValueError, match=r"config.wandb is 'p', but wandb is not installed: pip inst"
  ):
    loop.train(tiny.run_config("tokenizer", tmp_path, wandb="p"), tmp_path / "run")
  assert not (tmp_path / "run").exists()
