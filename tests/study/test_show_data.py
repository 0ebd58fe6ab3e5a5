"""The page says what the data are, the sheet holds their frames; any RLDS directory will do."""

import re

import cv2
import numpy as np
import pytest
from tensorflow_datasets import features as F
import tiny

from oat_jax.data import directory as directory_lib
from oat_jax.data import statistics as statistics_lib
from oat_jax.data import write
from oat_jax.study import contact_sheet
from oat_jax.study import dataset as dataset_lib
from oat_jax.study import show_data

LENGTHS = (90, 8, 20, 8)
TASKS = ("lift", "push", "lift", "")
# The first, middle and last frame of every episode, RGB; the second camera's are darker.
COLOURS = np.array([[230, 40, 40], [40, 200, 40], [40, 40, 220]])
CAMERAS = {"front": (1.0, 48, 64), "wrist_view": (0.5, 40, 40)}  # brightness, height, width


def actions(length, seed):
  """Two that vary, one that is constant, one of two values, one that hardly ever varies but far."""
  rng = np.random.default_rng(seed)
  x = rng.uniform([-0.02, -3], [0.01, 5], (length, 2))
  rare = np.where((np.arange(length) == 0) & (seed == 0), 40.0, rng.uniform(-1, 1, length))
  return np.column_stack([x, np.full(length, 0.5), np.arange(length) % 2, rare]).astype(np.float32)


def frame(step, length, brightness, height, width):
  third = COLOURS[0 if step == 0 else 2 if step == length - 1 else 1]
  return np.full((height, width, 3), third * brightness).astype(np.uint8)


def content(cameras=CAMERAS, lengths=LENGTHS, make=actions):
  for e, (length, task) in enumerate(zip(lengths, TASKS)):
    actions_LA = make(length, e)
    steps = []
    for i in range(length):
      observation = {"state": np.array([e, i, 0], np.float32), "embedding": np.zeros(9, np.float32)}
      observation |= {name: frame(i, length, *camera) for name, camera in cameras.items()}
      flags = {"is_first": i == 0, "is_last": i == length - 1, "is_terminal": False}
      flags |= {"reward": np.float32(0), "discount": np.float32(1), "language_instruction": task}
      steps.append({"observation": observation, "action": actions_LA[i]} | flags)
    yield {"steps": steps, "episode_metadata": {"file_path": str(e)}}


def make_dataset(out, episodes, cameras=(), action_dim=5):
  observation = {"state": F.Tensor(shape=(3,), dtype=np.float32)}
  observation["embedding"] = F.Tensor(shape=(9,), dtype=np.float32)
  observation |= {name: F.Image(shape=(None, None, 3), encoding_format="jpeg") for name in cameras}
  features = write.rlds_features(observation, action_dim, {"file_path": F.Text()})
  write.write(out, features, episodes, name="small_set", version="2.1.0")
  return out


@pytest.fixture(scope="module")
def with_cameras(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "with_cameras"
  return make_dataset(path, content(), CAMERAS)


@pytest.fixture(scope="module")
def without_cameras(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "without_cameras"
  return make_dataset(path, content({}), {})


@pytest.fixture(scope="module")
def shown(with_cameras):
  return dataset_lib.read(with_cameras)


def row(page, name, section=""):
  """The cells of the first line that begins with `name`, after the line of `section`."""
  lines = page[page.index(f"\n{section}") :].splitlines()
  line = next(line for line in lines if line.split()[:1] == [name])
  return re.split(r"\s{2,}", line.strip())


def test_the_page_says_what_the_data_are(shown, with_cameras):
  page = show_data.describe(shown)
  size = sum(path.stat().st_size for path in with_cameras.glob("*.tfrecord*"))
  assert page.startswith(f"small_set 2.1.0: tfrecord, {size / 1000:.3g} kB on disk\n{with_cameras}")
  assert row(page, "train", "splits") == ["train", "4", "1", f"{size / 1000:.3g} kB"]
  assert "train: 4 episodes, 126 steps\n" in page
  assert "min 8, median 14, max 90\n" in page

  every_LA = np.concatenate([actions(length, e) for e, length in enumerate(LENGTHS)])
  assert row(page, "action", "features")[-2:] == [f"{every_LA.min():.4g} .. 40", "action"]
  assert row(page, "observation/state")[1:] == ["numeric", "[3]", "float32", "0 .. 89", "state"]
  assert row(page, "observation/front")[1:] == ["image", "[?, ?, 3]", "uint8", "48x64", "camera"]
  assert row(page, "observation/embedding")[-1] == row(page, "reward")[-1] == "-"
  assert row(page, "language_instruction")[-2:] == ["3 distinct", "language"]
  assert row(page, "episode_metadata/file_path")[-1] == "-"

  for dim, x_L in enumerate(every_LA.T.astype(np.float64)):
    low, high = np.quantile(x_L, (0.01, 0.99))
    expected = [x_L.min(), low, x_L.mean(), high, x_L.max(), x_L.std()]
    cells = row(page, f"action_{dim}", "actions")
    tolerance = 1e-3 * np.abs(x_L).max()
    np.testing.assert_allclose(np.array(cells[1:7], float), expected, atol=tolerance)
    assert cells[7:] == [[], [], ["constant"], ["binary"], ["outliers"]][dim]
  assert row(page, "state_2", "state")[-1] == "constant"

  assert "languages  3 distinct in 'language_instruction'" in page
  assert page.endswith("\n        2  lift\n        1  (empty)\n        1  push")
  assert "skipped" not in page
  assert max(map(len, page.replace(str(with_cameras), "").splitlines())) <= 100


def test_a_part_of_a_split_is_shown(with_cameras):
  page = show_data.describe(dataset_lib.read(with_cameras, "train[:50%]"))
  assert f"train[:50%]: 2 episodes, {sum(LENGTHS[:2])} steps" in page
  assert row(page, "train", "splits")[1] == "4"


def test_steps_that_stand_still_are_counted(tmp_path):
  """Of 8 actions 5 repeat the one before; an episode's first one repeats nothing."""
  values = np.array([0, 0, 0, 1, 1, 1, 1, 2], np.float32)[:, None] * [1, -2] + 7
  episodes = content({}, (8, 8), lambda length, seed: values.astype(np.float32))
  data = make_dataset(tmp_path / "data", episodes, action_dim=2)
  page = show_data.describe(dataset_lib.read(data))
  assert "62.5 % of the steps repeat the action before them" in page


def test_a_standard_names_dimensions_and_knows_targets(tmp_path):
  """MetaWorld's: actions of zero are idle where the gripper stays, states have names."""
  features = write.rlds_features(
    {"state": F.Tensor(shape=(39,), dtype=np.float32)}, 4, {"task": F.Text()}
  )
  actions_LA = np.array([[1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, -1], [0, 0, 0, -1]], np.float32)
  steps = tiny.episode("lift", 0, length=4, action_dim=4)["steps"]
  for step, action in zip(steps, actions_LA):
    step |= {"action": action, "observation": {"state": np.arange(39, dtype=np.float32)}}
  record = {"steps": steps, "episode_metadata": {"task": "box-close"}}
  write.write(tmp_path / "data", features, [record], name="mt")
  shown = dataset_lib.read(tmp_path / "data", standard="metaworld")
  page = show_data.describe(shown)
  assert row(page, "gripper", "actions")[-1] == "binary, unscaled"
  assert row(page, "goal_z", "state")[-1] == "constant"
  assert "50.0 % of the steps are idle" in page  # the second and the fourth
  assert page.endswith("1  box-close")
  assert shown.statistics["actions"].mask.tolist() == [True, True, True, False]
  with pytest.raises(ValueError, match="standard 'metaworld' says which features are actions"):
    dataset_lib.read(tmp_path / "data", standard="metaworld", actions=["action"])


def numeric(*shape, dtype="float32"):
  return ("numeric", shape, dtype)


TEXT, IMAGE = ("text", (), ""), ("image", (8, 8, 3), "uint8")
CHOICES = {
  "parts of an action": (
    {
      "action/grip": numeric(1),
      "action/move": numeric(3),
      "observation/pose": numeric(7),
      "observation/natural_language_embedding": numeric(64),
      "observation/depth": numeric(48, 64, 1),
      "observation/natural_language_instruction": TEXT,
      "observation/image": IMAGE,
      "observation/depth_image": ("image", (8, 8, 1), "uint16"),
      "reward": numeric(),
    },
    ("action/grip", "action/move"),
    ("observation/pose",),
    "observation/natural_language_instruction",
    (("image", "observation/image"),),
  ),
  "one action beside others": (
    {
      "action": numeric(7),
      "action_dict/joint": numeric(7),
      "observation/joint": numeric(7),
      "language_instruction": TEXT,
      "language_instruction_2": TEXT,
      "left/rgb": IMAGE,
      "right/rgb": IMAGE,
    },
    ("action",),
    ("observation/joint",),
    "language_instruction",
    (("left_rgb", "left/rgb"), ("right_rgb", "right/rgb")),
  ),
  "other names, nothing observed": (
    {"joint_actions": numeric(6), "is_last": numeric(dtype="bool"), "note": TEXT},
    ("joint_actions",),
    (),
    "episode_metadata/task",
    (),
  ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_features_are_chosen_by_their_names(case, tmp_path):
  found, actions, states, task, cameras = CHOICES[case]
  found = {f"steps/{name}": directory_lib.Feature(name, *f) for name, f in found.items()}
  found["episode_metadata/task"] = directory_lib.Feature("episode_metadata/task", *TEXT)
  directory = directory_lib.Directory(tmp_path, "set", "", "tfrecord", found, {})
  choice = dataset_lib.choose(directory)
  assert (choice.actions, choice.states) == (actions, states)
  assert (choice.standard.task, choice.standard.cameras) == (task, cameras)


def test_without_an_action_the_numeric_features_are_listed(tmp_path):
  found = {"steps/torque": directory_lib.Feature("steps/torque", *numeric(7))}
  directory = directory_lib.Directory(tmp_path, "set", "", "tfrecord", found, {})
  with pytest.raises(ValueError, match="no numeric feature has 'action'.*--action among torque"):
    dataset_lib.choose(directory)
  assert dataset_lib.choose(directory, actions=["torque"]).actions == ("torque",)


def test_without_observed_numbers_no_state_is_shown(tmp_path):
  observation = {"image": F.Image(shape=(8, 8, 3), encoding_format="jpeg")}
  features = write.rlds_features(observation, 3, {"task": F.Text()})
  episode = tiny.episode("lift", 0)
  for step in episode["steps"]:
    step["observation"] = {"image": np.zeros((8, 8, 3), np.uint8)}
  write.write(tmp_path / "data", features, [episode], name="blind")
  shown = dataset_lib.read(tmp_path / "data")
  assert list(shown.statistics) == ["actions"]
  assert "\nstate" not in show_data.describe(shown)
  for name in statistics_lib.FORMATS:
    dataset_lib.write_statistics(tmp_path / "new" / name, shown, name)
    assert list(statistics_lib.read(tmp_path / "new" / name)) == ["actions"]


@pytest.mark.parametrize("name", statistics_lib.FORMATS)
def test_the_statistics_file_can_be_read_back(name, shown, tmp_path):
  path = tmp_path / "some" / "where.json"
  dataset_lib.write_statistics(path, shown, name)
  read = statistics_lib.read(path)
  assert set(read) == {"actions", "state"}
  for of, statistics in read.items():
    for field in ("mean", "std", "q01", "q99"):
      np.testing.assert_array_equal(
        getattr(statistics, field), getattr(shown.statistics[of], field)
      )


def test_a_remote_dataset_is_not_copied_unasked():
  with pytest.raises(ValueError, match="gs://bucket/set must be copied first.*--split"):
    dataset_lib.read("gs://bucket/set")


def test_what_cannot_be_read_is_skipped_and_listed(tmp_path):
  data = tiny.write_dataset(tmp_path / "data", episodes=2, bad=np.nan)
  with pytest.raises(ValueError, match="record 3: 'steps/action' is nan at step 19, dimension 0"):
    dataset_lib.read(data)
  page = show_data.describe(dataset_lib.read(data, on_error="skip"))
  assert "train: 3 episodes, 60 steps" in page
  assert row(page, "train", "splits")[1] == "4"
  reason = " ".join(page[page.index("skipped: 1 episodes") :].split())
  assert "record 3: 'steps/action' is nan at step 19" in reason


def draw(path, shown, episodes):
  contact_sheet.draw(path, shown, episodes)
  image = cv2.imread(str(path))
  assert image is not None
  return image[..., ::-1].astype(int)


def place(sheet, colour):
  """Where a colour appears: number of pixels, mean row and mean column."""
  rows, columns = np.nonzero((np.abs(sheet - colour) < 12).all(-1))
  return len(rows), *(float(x.mean()) if len(x) else -1 for x in (rows, columns))


def test_the_sheet_holds_the_frames_in_their_order(shown, tmp_path):
  """Frames side by side in time, cameras below each other, in the shape that they have."""
  sheet = draw(tmp_path / "new" / "sheet.png", shown, 1)
  (_, a_height, a_width), (_, b_height, b_width) = CAMERAS.values()
  front, wrist = ([place(sheet, colour * b) for colour in COLOURS] for b in (1.0, 0.5))
  for camera, height, width in ((front, a_height, a_width), (wrist, b_height, b_width)):
    pixels, rows, columns = map(np.array, zip(*camera))
    assert (pixels > 5000).all() and np.ptp(pixels) < 0.1 * pixels.max()
    assert np.ptp(rows) < 2 and (np.diff(columns) > 50).all()
    tall = np.nonzero((np.abs(sheet - COLOURS[0] * (1 if camera is front else 0.5)) < 12).all(-1))
    seen = np.ptp(tall[1]) / np.ptp(tall[0])
    assert abs(seen - width / height) < 0.05
  assert wrist[0][1] > front[0][1] + 50


def test_the_sheet_grows_with_its_episodes_up_to_all(shown, tmp_path):
  one, two, all_ = (draw(tmp_path / f"{n}.png", shown, n).shape for n in (1, 2, 99))
  assert one[1] == two[1] == all_[1]
  row = two[0] - one[0]
  assert all_[0] == pytest.approx(one[0] + (len(LENGTHS) - 1) * row, abs=3)


@pytest.mark.parametrize("action_dim, lengths", [(1, (1, 2)), (14, (40, 30))])
def test_a_sheet_without_cameras_holds_curves(action_dim, lengths, tmp_path):
  make = lambda length, seed: np.random.default_rng(seed).normal(size=(length, action_dim))
  episodes = content({}, lengths, lambda *args: make(*args).astype(np.float32))
  data = make_dataset(tmp_path / "data", episodes, action_dim=action_dim)
  sheet = draw(tmp_path / "sheet.png", dataset_lib.read(data), 2)
  assert place(sheet, [0x1F, 0x4E, 0x79])[0] > 100
  assert place(sheet, [0xD6, 0xE6, 0xF2])[0] > 10_000


def test_frames_of_several_sizes_are_listed_and_drawn(tmp_path):
  """A camera may have another size in every episode: the sheet needs no common one."""
  episodes = [
    *content({"front": (1.0, 48, 64)}, LENGTHS[:1]),
    *content({"front": (1.0, 64, 48)}, LENGTHS[:1]),
  ]
  shown = dataset_lib.read(make_dataset(tmp_path / "data", episodes, {"front": ()}))
  assert row(show_data.describe(shown), "observation/front")[-2] == "48x64, 64x48"
  sheet = draw(tmp_path / "sheet.png", shown, 2)
  rows, columns = np.nonzero((np.abs(sheet - COLOURS[0]) < 12).all(-1))
  upper = rows < sheet.shape[0] / 2
  shapes = [np.ptp(columns[half]) / np.ptp(rows[half]) for half in (upper, ~upper)]
  np.testing.assert_allclose(shapes, [64 / 48, 48 / 64], atol=0.05)


def test_a_place_that_takes_no_sheet_is_said(shown, tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "folder.png").mkdir()
  for name, problem in (("a.pdf", "ends in .png"), ("folder.png", "is a directory")):
    with pytest.raises(ValueError, match=problem):
      contact_sheet.draw(tmp_path / name, shown)
  with pytest.raises(OSError, match="sheet.png cannot be written"):
    contact_sheet.draw(tmp_path / "file" / "sheet.png", shown)
  with pytest.raises(OSError, match="statistics.json cannot be written"):
    dataset_lib.write_statistics(tmp_path / "file" / "statistics.json", shown, "openpi")
  with pytest.raises(ValueError, match="episodes is 0; it must be at least 1"):
    contact_sheet.draw(tmp_path / "sheet.png", shown, 0)


def test_the_command(without_cameras, tmp_path):
  out, file = tmp_path / "a" / "sheet.png", tmp_path / "b" / "statistics.json"
  args = (f"--out={out}", f"--statistics={file}", "--statistics_format=octo", "--episodes=1")
  code, printed, err = tiny.command("launch/show_data.py", f"--data={without_cameras}", *args)
  assert code == 0, err
  assert "train: 4 episodes, 126 steps" in printed and f"wrote {out}" in printed
  assert out.stat().st_size > 10_000
  assert statistics_lib.read(file)["actions"].count == sum(LENGTHS)
