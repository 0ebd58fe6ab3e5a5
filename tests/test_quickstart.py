"""The whole way in miniature, by the commands that a user types: demonstrations to report."""

import ast
import base64
import html
import io
import json
import re
import shutil

from matplotlib import image
import numpy as np
from PIL import Image
import pytest
import tiny

from oat_jax.evaluate import rollout
from oat_jax.export import loader
from oat_jax.study import page
from oat_jax.study import quickstart as study
from oat_jax.study import trained

pytest.importorskip("metaworld", reason="the extra `sim` is not installed")

TASKS = ("box-close", "coffee-pull", "disassemble", "stick-pull")
EVERYWHERE = {"overall", *TASKS}
MODELS = ("tokenizer", "policy", "regression")
# Small in compilation as well: all that is looked at here is that every part meets the next.
SMALL = [
  "--config=configs/quickstart.py:mini",
  "--config.tokenizer.model.encoder_layers=1",
  "--config.tokenizer.model.decoder_layers=1",
  "--config.policy.model.layers=1",
]


def command(file, *args, **changes):
  code, out, err = tiny.command(file, *args, **tiny.quick(), **changes)
  assert code == 0, err
  return out


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
  """(directory, what the command printed)."""
  out = tmp_path_factory.mktemp("quickstart") / "new" / "run"
  return out, command("launch/quickstart.py", *SMALL, f"--out={out}")


@pytest.fixture(scope="module")
def summary(quickstart):
  return json.loads((quickstart[0] / "report" / "summary.json").read_text())


def made(out):
  """{file: time of its last change} of what stages before the report leave behind."""
  patterns = ("data/*tfrecord*", "*/checkpoints/**/*", "*/metrics.jsonl", "*/*/evaluation.json")
  files = [path for pattern in patterns for path in out.glob(pattern) if path.is_file()]
  assert len(files) > 10
  return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in files}


def check_rate(value, n):
  assert set(value) == {"rate", "k", "n", "low", "high"}
  assert value["n"] == n and 0 <= value["k"] <= n
  assert value["rate"] == value["k"] / n
  assert 0 <= value["low"] <= value["rate"] <= value["high"] <= 1
  assert value["low"] < value["high"]


def check_rates(by_task, budgets=None):
  """One goal a task, of each number of tokens in `budgets` if there are any."""
  assert set(by_task) == EVERYWHERE
  for task, found in by_task.items():
    assert budgets is None or set(found) == budgets
    for value in found.values() if budgets else [found]:
      check_rate(value, len(TASKS) if task == "overall" else 1)


def test_every_stage_runs_and_says_so(quickstart):
  out, printed = quickstart
  stages = re.findall(r"== (\d)/6 (\w+)", printed)
  assert [stage for _, stage in stages] == ["collect", *MODELS, "evaluate", "report"]
  for run in MODELS:
    assert (out / run / "checkpoints" / "20").is_dir()
  assert f"see {out}/report/report.html" in printed


def test_the_summary_has_every_field_that_was_promised(summary):
  check_rate(summary["expert_success"], len(TASKS))
  check_rates(summary["success"], {"1", "8"})
  check_rates(summary["ceiling_by_task"], {"1", "8"})
  assert summary["ceiling"] == summary["ceiling_by_task"]["overall"]
  check_rates(summary["regression_success"], {"1", "8"})
  assert summary["replan"] == 8
  assert set(summary["success_other_replan"]) == {"16"}
  check_rates(summary["success_other_replan"]["16"], {"1", "8"})
  every_K = {str(K) for K in range(1, 9)}
  assert set(summary["reconstruction_mse"]) == every_K
  assert all(0 < value < 10 for value in summary["reconstruction_mse"].values())
  assert set(summary["token_accuracy"]) == every_K
  assert all(0 <= value <= 1 for value in summary["token_accuracy"].values())
  assert 1 <= summary["code_usage"] <= 1000
  assert set(summary["input_wait"]) == set(MODELS)
  assert all(0 <= value < 1 for value in summary["input_wait"].values())
  assert set(summary["act_ms"]) == {"1", "8"}
  for value in summary["act_ms"].values():
    assert 0 < value["p50"] <= value["p95"]
  assert {"oat_jax", "python", "jax", "metaworld"} <= set(summary["versions"])
  assert summary["versions"]["metaworld"].startswith("3.")


def test_the_seconds_are_those_of_the_stages(summary):
  assert set(summary["seconds"]) >= {"collect", *MODELS, "evaluate"}
  assert all(value > 0 for value in summary["seconds"].values())
  assert summary["seconds_total"] == pytest.approx(sum(summary["seconds"].values()), abs=0.1)


def read(out):
  return (out / "report" / "report.html").read_text()


def tables(text):
  """{title above it, or its first head: {row's first cell: the other cells}} of a page."""
  plain = lambda cell: html.unescape(re.sub(r"<[^>]+>", " ", cell)).strip()
  found = {}
  for title, table in re.findall(r"(?:<h3>([^<]+)</h3>)?<table[^>]*>(.+?)</table>", text):
    rows = [
      [plain(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
      for row in re.findall(r"<tr>(.+?)</tr>", table)
    ]
    found[title or " ".join(rows[0])] = {first: cells for first, *cells in rows}
  return found


def test_the_report_is_one_file_that_needs_nothing_else(quickstart):
  text = read(quickstart[0])
  assert len(text) < 2_000_000 and text.startswith("<!doctype html>")
  assert not re.search(r"https?:|<script|<link|<iframe|@import|url\(|srcset", text)
  sources = re.findall(r'<img src="([^"]*)"', text)
  assert len(sources) == text.count("<img") >= 4 + 2 + 1 + 3  # cells of the figures
  for source in sources:
    kind, _, data = source.removeprefix("data:image/").partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
      assert picture.format == kind.upper() and min(picture.size) >= 300
      assert len(np.unique(np.asarray(picture.convert("L")))) > 10
  assert "viewport" in text and "@media print" in text


def test_the_report_says_what_its_numbers_are(quickstart, summary):
  text = read(quickstart[0])
  assert summary["what"] in text and "not comparable" in summary["what"]
  best = summary["success"]["overall"]["8"]
  assert f"{100 * best['rate']:.0f}&thinsp;%" in text
  assert f"{best['k']} of {best['n']} goals" in text
  shown = tables(text)
  cell = lambda x: f"{100 * x['rate']:.0f} % {100 * x['low']:.0f}–{100 * x['high']:.0f}"
  for title, rates in (
    ("Success, 8 of 32 steps executed", summary["success"]),
    ("Success, 16 of 32 steps executed", summary["success_other_replan"]["16"]),
    ("The expert's chunks, 8 of 32 steps executed", summary["ceiling_by_task"]),
  ):
    assert shown[title].pop("tokens K") == list(rates)
    assert shown[title] == {
      K: [re.sub(" +", " ", cell(by_k[K])) for by_k in rates.values()] for K in rates["overall"]
    }
  assert set(shown["MLP without tokens"]) == {"steps R", "8", "16"}
  errors = shown["tokens K held-out MSE policy's token accuracy"]
  for K, value in summary["reconstruction_mse"].items():
    assert errors[K] == [f"{value:.4f}", f"{100 * summary['token_accuracy'][K]:.0f} %"]
  assert set(shown["stage minutes"]) == {"stage", *summary["seconds"], "total"}
  for name, version in summary["versions"].items():
    assert f"{name} {version}" in text


def test_the_figures_of_the_report_are_pictures(quickstart):
  report = quickstart[0] / "report"
  for name in ("chunk", "anytime", "reconstruction", "training"):
    pixels_HWC = image.imread(report / f"{name}.png")
    assert 300 < min(pixels_HWC.shape[:2]) and max(pixels_HWC.shape[:2]) < 3000
    shades = np.unique(pixels_HWC[::5, ::5].reshape(-1, pixels_HWC.shape[-1]), axis=0)
    assert len(shades) > 10, name


def test_the_report_shows_an_episode_of_each_ending(quickstart, summary):
  """After 20 steps of training nothing succeeds, and the page says so."""
  out, _ = quickstart
  text, best = read(out), summary["success"]["overall"]["8"]
  if "No pictures of episodes: cameras need off-screen OpenGL" in text:
    pytest.skip("no off-screen OpenGL")
  rows = json.loads((out / "evaluation" / "policy" / "evaluation.json").read_text())["episodes"]
  rows = [row for row in rows if (row["replan"], row["num_tokens"]) == (8, 8)]
  assert best["k"] == 0, "expected failures only"
  assert not (out / "report" / "success.png").exists()
  assert "No success</span>: no episode of this setting ended so" in text
  (seen,) = re.findall(
    r"Failure</span>: (\S+), goal of seed (\d+), not solved in (\d+) steps", text
  )
  assert any(seen == (row["task"], str(row["seed"]), str(row["steps"])) for row in rows)
  frames = re.findall(r'src="data:image/jpeg;base64,[^"]+" alt="step (\d+)"', text)
  assert frames == ["0", "6", "11", "17", "23", "29", "34", "40"]
  with Image.open(out / "report" / "failure.png") as strip:
    assert strip.size == (8 * 320, 320)


def test_a_report_without_a_failure_says_so(quickstart, summary):
  best = summary["success"]["overall"]["8"]
  won = best | {"rate": 1.0, "k": best["n"]}
  success = summary["success"] | {"overall": {"1": won, "8": won}}
  cells = {"chunk": 4, "anytime": 2, "reconstruction": 1, "training": 3}
  make = lambda why: page.quickstart(
    summary | {"success": success}, quickstart[0] / "report", cells, {}, why, 40
  )
  text = make("")
  assert "No failure</span>: no episode of this setting ended so" in text
  assert "No success</span>: those that were acted again did not end so again" in text
  text = make("libEGL & libOSMesa are not there")
  assert "No pictures of episodes: libEGL &amp; libOSMesa are not there" in text
  assert "No failure" not in text and "--stages=report" in text


def test_goals_were_never_demonstrated_and_are_the_same_for_all(quickstart):
  goals = {}
  for name in ("policy", "regression", "ceiling"):
    content = json.loads((quickstart[0] / "evaluation" / name / "evaluation.json").read_text())
    settings = {}
    for row in content["episodes"]:
      key = (row["method"], row["num_tokens"], row["replan"])
      settings.setdefault(key, []).append((row["task"], row["seed"]))
    goals |= {(name, *key): sorted(pairs) for key, pairs in settings.items()}
  # K=1 and 8 at two intervals, the floor at two; the ceiling for both K and the expert at one.
  assert len(goals) == 2 * 2 + 2 + 3
  first, *others = goals.values()
  assert [task for task, _ in first] == sorted(TASKS)
  assert all(pairs == first for pairs in others)
  collected = json.loads((quickstart[0] / "data" / "collection.json").read_text())
  attempts = max(n["attempts"] for n in collected["totals"].values())
  assert all(seed > attempts for _, seed in first)


def test_a_second_call_reuses_everything(quickstart):
  out, _ = quickstart
  strips = lambda: [path.stat().st_mtime_ns for path in sorted(out.glob("report/*ure.png"))]
  before, shown = made(out), strips()
  printed = command("launch/quickstart.py", *SMALL, f"--out={out}")
  assert made(out) == before and strips() == shown
  assert printed.count("is done: 20 steps") == 3
  assert printed.count("evaluated already") == 4 + 2 + 3  # settings of policy, regression, ceiling


def test_the_report_can_be_made_again_alone_where_nothing_renders(quickstart, summary):
  out, _ = quickstart
  before = made(out)
  shutil.rmtree(out / "report")
  gl = {"MUJOCO_GL": "nonsense"}
  printed = command("launch/quickstart.py", *SMALL, f"--out={out}", "--stages=report", **gl)
  assert re.findall(r"== \d/6 (\w+)", printed) == ["report"]
  again = json.loads((out / "report" / "summary.json").read_text())
  times = ("seconds", "seconds_total")
  assert {k: v for k, v in again.items() if k not in times} == {
    k: v for k, v in summary.items() if k not in times
  }
  assert len(list((out / "report").glob("*.png"))) == 4
  assert re.search("No pictures of episodes: .*MUJOCO_GL.*nonsense", read(out))
  assert tables(read(out))["Success, 8 of 32 steps executed"]
  assert made(out) == before


def test_the_ceiling_runs_the_expert_through_the_tokenizer(quickstart, tmp_path):
  """The expert solves unseen goals; its chunks, through an untrained tokenizer, do not."""
  args = [f"--workdir={quickstart[0] / 'tokenizer'}", "--ceiling", "--num_tokens=8", "--replan=16"]
  command("launch/evaluate.py", *args, "--episodes=1", "--max_steps=250", f"--out={tmp_path}")
  content = json.loads((tmp_path / "evaluation.json").read_text())
  assert set(content["success"]) == {"expert", "ceiling"}
  check_rates({task: by_k["0"] for task, by_k in content["success"]["expert"]["16"].items()})
  check_rates(content["success"]["ceiling"]["16"], {"8"})
  assert content["success"]["expert"]["16"]["overall"]["0"]["k"] >= 3
  assert content["success"]["ceiling"]["16"]["overall"]["8"]["k"] <= 1
  assert "## ceiling, 16 steps executed" in (tmp_path / "evaluation.md").read_text()
  assert not (quickstart[0] / "tokenizer" / "report").exists()


def test_an_evaluation_that_was_stopped_goes_on(quickstart, tmp_path, monkeypatch):
  run, calls = rollout.run, []

  def evaluate(out, **changes):
    settings = {"num_tokens": (1, 8), "replans": (8,), "episodes": 1, "max_steps": 16}
    settings |= {"temperature": 1.0, "out": str(tmp_path / out)} | changes
    workdir = quickstart[0] / "policy"
    rows = trained.evaluation(workdir, "metaworld/mt4", **settings).run()["episodes"]
    return [row | {"policy_ms": 0 < row["policy_ms"] < 1e4} for row in rows]

  def stops(*args, **settings):
    calls.append(settings["num_tokens"])
    if len(calls) == 2:
      raise KeyboardInterrupt
    return run(*args, **settings)

  whole = evaluate("whole")
  assert {(row["num_tokens"], row["tokens"], row["calls"]) for row in whole} == {
    (1, 1.0, 2),
    (8, 8.0, 2),
  }
  monkeypatch.setattr(rollout, "run", stops)
  with pytest.raises(KeyboardInterrupt):
    evaluate("parts")
  assert evaluate("parts") == whole and calls == [1, 8, 8]
  assert evaluate("parts", num_tokens=(8,)) == whole and len(calls) == 3
  with pytest.raises(
    ValueError, match=r"first_seeds \[100000\] there, \[50000\] now.*or --replace"
  ):
    evaluate("parts", seeds=(50_000,))
  evaluate("parts", seeds=(50_000,), replace=True)  # nothing is known about other goals
  assert calls == [1, 8, 8, 1, 8]


def test_its_export_is_evaluated_alike_here_and_through_a_server(quickstart, tmp_path):
  served = pytest.importorskip("served", reason="the extra `serve` is not installed")
  export, before = tmp_path / "export", quickstart[0] / "evaluation" / "policy"
  command("launch/export.py", f"--workdir={quickstart[0] / 'policy'}", f"--out={export}")
  known = json.loads((before / "evaluation.json").read_text())
  args = ["--num_tokens=8", "--replan=8", "--episodes=1"]
  args += [f"--max_steps={known['facts']['max_steps']}"]
  command("launch/evaluate.py", *args, f"--export={export}", f"--out={tmp_path / 'here'}")
  with served.serving(loader.load(export), max_batch=4) as (port, _, _):
    there = f"--server=127.0.0.1:{port}"
    command("launch/evaluate.py", *args, there, f"--out={tmp_path / 'there'}")
  plain = lambda content: [
    {name: value for name, value in row.items() if name != "policy_ms"}
    for row in content["episodes"]
    if (row["num_tokens"], row["replan"]) == (8, 8)
  ]
  found = [json.loads((tmp_path / f"{x}/evaluation.json").read_text()) for x in ("here", "there")]
  assert plain(known) == plain(found[0]) == plain(found[1]) and len(plain(known)) == len(TASKS)
  for content in found:
    assert content["facts"]["goals_never_demonstrated"] == "checked"
    assert content["facts"]["model"] == known["facts"]["model"]


def test_failed_episodes_become_videos(quickstart, tmp_path):
  """The first two of four, with every frame; what is executed is the average of chunks."""
  pytest.importorskip("imageio_ffmpeg", reason="the extra `sim` is not installed")
  av = pytest.importorskip("av", reason="the extra `convert` is not installed")
  args = [f"--workdir={quickstart[0] / 'regression'}", "--replan=8", "--episodes=1", "--videos=2"]
  args += ["--max_steps=6", "--ensemble=0.01", f"--out={tmp_path}"]
  code, out, err = tiny.command("launch/evaluate.py", *args)
  if code and "off-screen OpenGL" in err:
    pytest.skip(err)
  assert code == 0, err
  names = [f"{task}_seed100000_regression_R8_K0.mp4" for task in TASKS[:2]]
  assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == names
  for name in names:
    assert f"wrote {tmp_path}/videos/{name}" in out
    with av.open(str(tmp_path / "videos" / name)) as file:
      frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 1 + 6 and frames[0].shape == (256, 256, 3) and frames[0].std() > 10
  facts = json.loads((tmp_path / "evaluation.json").read_text())["facts"]
  assert facts["videos"]["camera"] == "corner2" and facts["videos"]["by"]
  assert facts["batch"] == 4 and facts["ensemble"] == 0.01 and facts["restarts"] == []


def test_what_cannot_be_rendered_is_an_error_before_anything_runs(quickstart, tmp_path):
  args = [f"--workdir={quickstart[0] / 'regression'}", "--episodes=1", f"--out={tmp_path / 'new'}"]
  refused = lambda *more, **gl: tiny.command("launch/evaluate.py", *args, *more, **gl)
  code, out, err = refused("--videos=1", MUJOCO_GL="nonsense")
  assert (code, out) == (1, "") and "MUJOCO_GL" in err and len(err.splitlines()) == 1, err
  code, out, err = refused("--videos=1", "--video_camera=corner9")
  assert (code, out) == (1, "") and ("no camera 'corner9'" in err or "OpenGL" in err), err
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("evaluate.num_tokens=(1,9)", "config.evaluate.num_tokens is 9; it must be in 1..8"),
    ("evaluate.replans=(8,33)", "config.evaluate.replans is 33; it must be in 1..32"),
    ("evaluate.episodes=0", "config.evaluate.episodes is 0; it must be at least 1"),
    ("policy.data.action_horizon=16", "config.policy.data.action_horizon is 16"),
    ("policy.model.layers=0", "config.policy: config.model.layers is 0; it must be at least 1"),
    ("suite=metaworld/mt5", "there is no suite 'metaworld/mt5'"),
  ],
)
def test_a_setting_of_a_late_stage_is_refused_before_the_first(flag, message, tmp_path):
  values = tiny.get_config("quickstart.py", "mini")
  name, _, value = flag.partition("=")
  values.update_from_flattened_dict({name: value if name == "suite" else ast.literal_eval(value)})
  with pytest.raises(ValueError, match=re.escape(message)):
    study.run(values, tmp_path / "out")
  assert not (tmp_path / "out").exists()
