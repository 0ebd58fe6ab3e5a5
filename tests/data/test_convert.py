"""Whatever ends a conversion, its command goes on, and the dataset is the uninterrupted one's."""

import json
import os
import resource
import signal
import subprocess
import sys

import foreign
import numpy as np
import pytest
import tiny

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `train` is not installed")
h5py = pytest.importorskip("h5py", reason="the extra `convert` is not installed")

from oat_jax.data import convert  # noqa: E402
from oat_jax.data import rlds  # noqa: E402
from oat_jax.data import sources  # noqa: E402
from oat_jax.data import standardize  # noqa: E402
from oat_jax.data import windows as windows_lib  # noqa: E402

SMALL = 5_000  # bytes a shard: one or two of the episodes here


def convert_robomimic(path, out, on_error="raise", shard_bytes=SMALL, **kwargs):
  return convert.convert(
    "robomimic_hdf5",
    path,
    out,
    on_error=on_error,
    shard_bytes=shard_bytes,
    progress=False,
    **kwargs,
  )


@pytest.fixture(scope="module")
def robomimic(tmp_path_factory):
  """Eight demos in two splits, two of them bad, and what a conversion makes of them."""
  folder = tmp_path_factory.mktemp("robomimic")
  mask = {"train": [f"demo_{i}" for i in range(6)], "valid": ["demo_6", "demo_7"]}
  foreign.robomimic(folder / "lift.hdf5", [3, 4, 5, 2, 3, 9, 4, 2], mask=mask)
  with h5py.File(folder / "lift.hdf5", "a") as file:
    for demo in (2, 7):
      file[f"data/demo_{demo}/actions"][1, 0] = np.nan
  report = convert_robomimic(folder / "lift.hdf5", folder / "out", "skip")
  return folder / "lift.hdf5", tiny.listing(folder / "out"), report


def test_the_report_says_what_was_skipped_and_why(robomimic, tmp_path):
  path, files, report = robomimic
  assert json.loads(files["convert_report.json"]) == report
  assert report["splits"] == {
    "train": {"episodes": 5, "skipped": 1}, "val": {"episodes": 1, "skipped": 1}
  }  # fmt: skip
  reason = "'action' is nan at step 1, dimension 0"
  assert report["skipped"] == [
    {"split": "train", "file": "lift.hdf5", "episode": "demo_2", "reason": reason},
    {"split": "val", "file": "lift.hdf5", "episode": "demo_7", "reason": reason},
  ]
  info = json.loads(files["dataset_info.json"])
  shards = {split["name"]: split["shardLengths"] for split in info["splits"]}
  assert shards == {"train": ["2", "2", "1"], "val": ["1"]}
  words = convert.describe(report, most=1)
  assert "train: 5 episodes, 1 skipped" in words and "and 1 more, listed in" in words
  assert f"skipped lift.hdf5, episode demo_2: {reason}" in words and "left out: states" in words


# Kills a conversion, a forked child, before its first, second, ... deed in OUT.writing and lets the
# parent go on; the checksums stand for the writes between which they are made.
KILLS = """
import os, pathlib, signal, sys
import tiny
from oat_jax.data import convert
from oat_jax.data import tfrecord

DEEDS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")
path, folder = sys.argv[1:]
state = {"at": None, "count": 0}

def hook(event, args):
  if state["at"] is not None and event in DEEDS and ".writing" in str(args[0]):
    state["count"] += 1
    if state["count"] == state["at"]:
      os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
checksum = tfrecord.masked_crc
tfrecord.masked_crc = lambda data: hook("open", [".writing"]) or checksum(data)
run = lambda out: convert.convert(
  "robomimic_hdf5", path, out, on_error="skip", shard_bytes=5_000, progress=False)
want = pathlib.Path(folder, "want")
run(want)
for at in range(1, 1000):
  out = pathlib.Path(folder, f"out{at}")
  child = os.fork()
  if not child:
    state["at"] = at
    run(out)
    os._exit(0)
  status = os.waitpid(child, 0)[1]
  run(out)
  assert tiny.listing(out) == tiny.listing(want), at
  assert not list(out.parent.glob("*.writing")), at
  if status == 0:
    break
  assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
print(at)
"""


def test_killed_at_any_moment_the_same_command_makes_the_same_bytes(robomimic, tmp_path):
  path, files, _ = robomimic
  done = subprocess.run(
    [sys.executable, "-c", KILLS, path, tmp_path],
    env=tiny.environment(),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) > 30
  assert tiny.listing(tmp_path / "want") == files


def test_the_command_converts_is_killed_and_continues(robomimic, tmp_path):
  path, _, _ = robomimic
  out = tmp_path / "out"
  arguments = ("--from=robomimic_hdf5", f"--in={path}", f"--out={out}", "--on_error=skip")
  hook = tmp_path / "sitecustomize.py"  # kills the first command when it gives a shard its name
  hook.write_text(
    "import os, sys\n"
    "def hook(event, args):\n"
    "  if event == 'os.rename' and str(args[0]).endswith('.shard'):\n"
    "    os.kill(os.getpid(), 9)\n"
    "sys.addaudithook(hook)\n"
  )
  environment = tiny.environment()["PYTHONPATH"]
  code, _, _ = tiny.command(
    "launch/convert.py", *arguments, PYTHONPATH=f"{tmp_path}{os.pathsep}{environment}"
  )
  assert code == -signal.SIGKILL and not out.exists()
  assert len(list((tmp_path / "out.writing").glob("dataset/*.shard"))) == 2
  code, printed, err = tiny.command("launch/convert.py", *arguments)
  assert code == 0, err
  assert "val: 1 episodes, 1 skipped" in printed and f"{out} holds the dataset" in printed
  assert sorted(os.listdir(tmp_path)) == ["out", "sitecustomize.py"]
  code, again, _ = tiny.command("launch/convert.py", *arguments)
  assert (code, again) == (0, printed)
  code, _, err = tiny.command("launch/convert.py", *arguments[:3], "--name=other")
  assert code == 1 and "name 'lift' there, 'other' asked for" in err


def test_an_error_keeps_what_was_done_and_skip_goes_on(robomimic, tmp_path):
  path, files, _ = robomimic
  out = tmp_path / "out"
  with pytest.raises(ValueError, match="lift.hdf5, episode demo_2: .*--on_error=skip leaves it"):
    convert_robomimic(path, out)
  written = list((tmp_path / "out.writing").glob("dataset/*.shard"))
  assert len(written) == 1 and not out.exists()
  stamp = written[0].stat().st_ino
  convert_robomimic(path, out, "skip")
  assert tiny.listing(out) == files
  assert next(out.glob("*-train.tfrecord-00000-*")).stat().st_ino == stamp


def test_a_full_disk_is_named_and_the_same_command_continues(robomimic, tmp_path):
  path, files, _ = robomimic
  out = tmp_path / "out"
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (11_000, hard))
    with pytest.raises(OSError, match="out.writing/dataset/00002.train.shard"):
      convert_robomimic(path, out, "skip")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  convert_robomimic(path, out, "skip")
  assert tiny.listing(out) == files


def test_another_request_is_not_mixed_in(robomimic, tmp_path):
  path, _, _ = robomimic
  out = tmp_path / "out"
  with pytest.raises(ValueError, match="demo_2"):
    convert_robomimic(path, out)
  other = tmp_path / "other.hdf5"
  foreign.robomimic(other, [2, 2])
  before = tiny.listing(tmp_path / "out.writing")
  with pytest.raises(FileExistsError, match="episodes 8 there, 2 asked for; .* in '.*lift.hdf5'"):
    convert_robomimic(other, out)
  with pytest.raises(FileExistsError, match="language '' there, 'lift it' asked for"):
    convert_robomimic(path, out, "skip", options=sources.Options(language="lift it"))
  assert tiny.listing(tmp_path / "out.writing") == before
  convert_robomimic(path, out, "skip")
  done = tiny.listing(out)
  with pytest.raises(FileExistsError, match="in '.*lift.hdf5' there, '.*other.hdf5' asked for"):
    convert_robomimic(other, out)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "file").write_text("")
  with pytest.raises(FileExistsError, match="mine is not empty"):
    convert_robomimic(other, tmp_path / "mine")
  assert tiny.listing(out) == done


def test_episodes_of_other_features_are_not_mixed_in(tmp_path):
  path = tmp_path / "a.hdf5"
  foreign.robomimic(path, [2, 2, 2])
  with h5py.File(path, "a") as file:
    file["data/demo_2/actions"][0] = np.nan
  with pytest.raises(ValueError, match="demo_2"):
    convert_robomimic(path, tmp_path / "out")
  with h5py.File(path, "a") as file:
    del file["data/demo_0/obs/object"]
  with pytest.raises(FileExistsError, match="another request: features_sha256 '[^;]*$"):
    convert_robomimic(path, tmp_path / "out", "skip")


def test_bad_arguments_are_named(robomimic, tmp_path):
  path, _, _ = robomimic

  def refused(message, *args, error=ValueError, **kwargs):
    with pytest.raises(error, match=message):
      convert.convert(*args, tmp_path / "out", progress=False, **kwargs)

  known = "array_record, lerobot, libero_hdf5, robomimic_hdf5"
  refused(f"format is 'rosbag'; it must be one of: {known}", "rosbag", path)
  refused(f"format is '_hdf5'; it must be one of: {known}", "_hdf5", path)
  refused("on_error is 'ignore'", "robomimic_hdf5", path, on_error="ignore")
  gif = sources.Options(image_format="gif")
  refused("image format is 'gif'; .*: jpeg, png", "robomimic_hdf5", path, options=gif)
  refused("dataset name 'My-Data'", "robomimic_hdf5", path, name="My-Data")
  refused("no such file", "robomimic_hdf5", tmp_path / "no", error=FileNotFoundError)
  foreign.robomimic(tmp_path / "empty.hdf5", [0, 0])
  refused("no episodes to write", "robomimic_hdf5", tmp_path / "empty.hdf5", on_error="skip")
  assert sorted(os.listdir(tmp_path)) == ["empty.hdf5", "out.writing"]


def test_a_missing_package_is_an_error_that_says_what_to_install(tmp_path):
  (tmp_path / "h5py.py").write_text("raise ImportError('no h5py here')")
  (tmp_path / "a.hdf5").write_text("")
  path = os.pathsep.join([str(tmp_path), tiny.environment()["PYTHONPATH"]])
  flags = ("--from=robomimic_hdf5", f"--in={tmp_path}/a.hdf5", f"--out={tmp_path}/out")
  code, _, err = tiny.command("launch/convert.py", *flags, PYTHONPATH=path)
  assert code == 1 and err.splitlines() == [
    "ImportError: h5py is not installed; run pip install 'oat-jax[convert]'"
  ]


def test_what_is_converted_is_read_and_cut_into_windows(tmp_path):
  content = foreign.robomimic(tmp_path / "lift.hdf5", [3, 5])
  convert_robomimic(
    tmp_path / "lift.hdf5", tmp_path / "out", options=sources.Options(image_format="png")
  )
  standard = standardize.plain(
    "action",
    ["observation/robot0_eef_pos"],
    "episode_metadata/task",
    [("top", "observation/agentview_image")],
  )
  windows = windows_lib.Windows(rlds.read(tmp_path / "out", "train", standard), np.arange(2), 2, 4)
  batch = windows(np.array([1, 4]))
  for row, (demo, step) in enumerate((("demo_0", 1), ("demo_1", 1))):
    known = content[demo]
    last = len(known["actions"]) - 1
    acted = known["actions"][np.minimum(step + np.arange(4), last)].astype(np.float32)
    np.testing.assert_array_equal(batch["actions"][row], acted)
    seen = batch["observation"]
    np.testing.assert_array_equal(seen["image_top"][row], known["obs"]["agentview_image"][:2])
    position = known["obs"]["robot0_eef_pos"][:2].astype(np.float32)
    np.testing.assert_array_equal(seen["state"][row], position)
  assert windows.spec.task_names == ("Lift",)
