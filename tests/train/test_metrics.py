"""metrics.jsonl: no step twice, whatever a kill left behind."""

import json

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
