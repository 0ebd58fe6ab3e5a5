"""robomimic's and LIBERO's files come back, value by value, through tensorflow-datasets."""

import json

import cv2
import foreign
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="the extra `train` is not installed")
h5py = pytest.importorskip("h5py", reason="the extra `convert` is not installed")

from oat_jax.data import convert  # noqa: E402
from oat_jax.data import sources  # noqa: E402


def converted(name, path, out, language="", image_format="", **kwargs):
  options = sources.Options(language=language, image_format=image_format)
  report = convert.convert(name, path, out, options=options, progress=False, **kwargs)
  return foreign.read(out), report


def jpeg(images):
  """What is left of images after JPEG of quality 95."""
  parameters = (cv2.IMWRITE_JPEG_QUALITY, 95)
  files = [cv2.imencode(".jpg", image[..., ::-1], parameters)[1] for image in images]
  return np.stack([cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1] for file in files])


def assert_steps(episode, actions, rewards, success, language):
  steps = len(actions)
  np.testing.assert_array_equal(foreign.column(episode, "action"), np.float32(actions))
  np.testing.assert_array_equal(foreign.column(episode, "reward"), np.float32(rewards))
  np.testing.assert_array_equal(foreign.column(episode, "discount"), np.ones(steps, np.float32))
  numbers = np.arange(steps)
  np.testing.assert_array_equal(foreign.column(episode, "is_first"), numbers == 0)
  np.testing.assert_array_equal(foreign.column(episode, "is_last"), numbers == steps - 1)
  terminal = (numbers == steps - 1) & success
  np.testing.assert_array_equal(foreign.column(episode, "is_terminal"), terminal)
  assert {step["language_instruction"].decode() for step in episode["steps"]} == {language}
  assert bool(episode["episode_metadata"]["success"]) == success


@pytest.mark.parametrize("image_format", ["", "png"])
def test_robomimic_keeps_every_value(tmp_path, image_format):
  path = tmp_path / "image.hdf5"
  lengths = [3, 1, 4, 2, 5, 2, 2, 2, 2, 2, 6]  # demo_10 stands before demo_2 in the file
  mask = {"train": [f"demo_{i}" for i in (10, 2, 9, 0)], "valid": ["demo_3", "demo_1"]}
  mask |= {"20_percent": ["demo_2"]}
  content = foreign.robomimic(path, lengths, mask=mask, rewards=[1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0])
  found, report = converted("robomimic_hdf5", path, tmp_path / "out", image_format=image_format)
  want = {"train": [0, 2, 9, 10], "val": [1, 3]}
  assert {split: len(episodes) for split, episodes in found.items()} == {"train": 4, "val": 2}
  for split, numbers in want.items():
    for number, episode in zip(numbers, found[split], strict=True):
      demo = content[f"demo_{number}"]
      assert_steps(episode, demo["actions"], demo["rewards"], number not in (1, 10), "")
      obs = dict(demo["obs"])
      pictures = obs.pop("agentview_image")
      pictures = pictures if image_format == "png" else jpeg(pictures)
      got = foreign.column(episode, "observation/agentview_image")
      np.testing.assert_array_equal(got, pictures)
      obs["gripper_open"] = obs["gripper_open"][:, None]
      assert episode["steps"][0]["observation"].keys() == {*obs, "agentview_image"}
      for name, values in obs.items():
        got = foreign.column(episode, f"observation/{name}")
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, np.float32(values))
      metadata = {k: v for k, v in episode["episode_metadata"].items() if k != "success"}
      names = {"file": b"image.hdf5", "episode": f"demo_{number}".encode(), "task": b"Lift"}
      assert metadata == names
  apart = [words.partition(",")[0] for words in report["left_out"][1:]]
  assert apart == ["demo_4", "demo_5", "demo_6", "demo_7", "demo_8"]
  assert report["skipped"] == []


def test_robomimic_s_directory_keeps_what_all_files_have(tmp_path):
  """Tasks of a kitchen: what is observed of objects differs, and one file is broken."""
  root = tmp_path / "kitchen"
  root.mkdir()
  a = foreign.robomimic(root / "a.hdf5", [3, 2], env_name="CloseDrawer", mask={"valid": ["demo_1"]})
  b = foreign.robomimic(root / "b.hdf5", [4], env_name="TurnOffMicrowave", seed=7)
  with h5py.File(root / "b.hdf5", "a") as file:
    del file["data/demo_0/obs/object"]
    file["data/demo_0/obs/object"] = np.zeros((4, 12))
  (root / "c.hdf5").write_text("hello")
  with pytest.raises(ValueError, match="c.hdf5: not an HDF5 file"):
    converted("robomimic_hdf5", root, tmp_path / "out")
  found, report = converted("robomimic_hdf5", root, tmp_path / "out", on_error="skip")
  # A mask that names no demo to train on leaves the others of its own file out.
  pairs = [("train", b["demo_0"], b"TurnOffMicrowave"), ("val", a["demo_1"], b"CloseDrawer")]
  for split, demo, task in pairs:
    (episode,) = found[split]
    assert episode["episode_metadata"]["task"] == task
    observed = episode["steps"][0]["observation"].keys()
    assert observed == {"agentview_image", "robot0_eef_pos", "gripper_open"}
    np.testing.assert_array_equal(foreign.column(episode, "action"), np.float32(demo["actions"]))
    got = foreign.column(episode, "observation/robot0_eef_pos")
    np.testing.assert_array_equal(got, np.float32(demo["obs"]["robot0_eef_pos"]))
  assert report["left_out"][1:] == [
    "obs/object, which not all files have alike",
    "demo_0, which is neither in /mask/train nor in /mask/valid",
  ]
  foreign.robomimic(root / "c.hdf5", [2])
  with h5py.File(root / "c.hdf5", "a") as file:
    del file["data/demo_0/actions"]
    file["data/demo_0/actions"] = np.zeros((2, 12))
  with pytest.raises(ValueError, match="disagree in the width of their actions: {'a.hdf5': 7"):
    converted("robomimic_hdf5", root, tmp_path / "other")


@pytest.mark.parametrize("base", [False, True])
def test_robomimic_s_proprioception_is_that_of_the_environments(tmp_path, base):
  foreign.robomimic(tmp_path / "a.hdf5", [2])
  names = ("eef_pos", "eef_quat", "gripper_qpos")
  if base:
    names = ("base_pos", "base_quat", "base_to_eef_pos", "base_to_eef_quat", "gripper_qpos")
  size = lambda name: 2 if name == "gripper_qpos" else 3 + name.endswith("quat")
  parts = {
    f"robot0_{name}": np.random.default_rng(0).normal(size=(2, size(name))) for name in names
  }
  with h5py.File(tmp_path / "a.hdf5", "a") as file:
    del file["data/demo_0/obs/robot0_eef_pos"]
    for name, values in parts.items():
      file[f"data/demo_0/obs/{name}"] = values
  found, _ = converted("robomimic_hdf5", tmp_path / "a.hdf5", tmp_path / "out")
  got = foreign.column(found["train"][0], "observation/proprioception")
  np.testing.assert_array_equal(got, np.float32(np.concatenate(list(parts.values()), 1)))


def test_robomimic_without_mask_is_one_split_and_takes_a_language(tmp_path):
  foreign.robomimic(tmp_path / "a.hdf5", [2, 3])
  found, report = converted("robomimic_hdf5", tmp_path / "a.hdf5", tmp_path / "o", language="lift")
  assert report["splits"] == {"train": {"episodes": 2, "skipped": 0}}
  assert [len(e["steps"]) for e in found["train"]] == [2, 3]
  assert found["train"][0]["steps"][1]["language_instruction"] == b"lift"


def test_robomimic_success_is_done_where_there_are_no_rewards(tmp_path):
  foreign.robomimic(tmp_path / "a.hdf5", [2, 3])
  with h5py.File(tmp_path / "a.hdf5", "a") as file:
    for demo in file["data"].values():
      del demo["rewards"]
    file["data/demo_1/dones"][-1] = 1
  found, _ = converted("robomimic_hdf5", tmp_path / "a.hdf5", tmp_path / "out")
  assert [bool(e["episode_metadata"]["success"]) for e in found["train"]] == [False, True]
  assert foreign.column(found["train"][1], "reward").tolist() == [0, 0, 0]


def test_libero_has_the_published_names_and_upright_images(tmp_path):
  root = tmp_path / "libero_10"
  a = foreign.libero(root / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5", [3, 2], language=None)
  b = foreign.libero(root / "sub" / "b_demo.hdf5", [4], language='"open it"', seed=7)
  found, report = converted("libero_hdf5", root, tmp_path / "out", image_format="png")
  assert report["request"]["name"] == "libero_10"
  demos = [("turn on the stove", a["demo_0"]), ("turn on the stove", a["demo_1"])]
  demos += [("open it", b["demo_0"])]
  files = [e["episode_metadata"]["file"].decode() for e in found["train"]]
  assert files == ["KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"] * 2 + ["sub/b_demo.hdf5"]
  for (language, demo), episode in zip(demos, found["train"], strict=True):
    steps, obs = len(demo["actions"]), demo["obs"]
    assert_steps(episode, demo["actions"], np.arange(steps) == steps - 1, True, language)
    state = np.concatenate([obs["ee_pos"], obs["ee_ori"], obs["gripper_states"]], axis=1)
    want = {"state": np.float32(state), "joint_state": np.float32(obs["joint_states"])}
    want["image"] = np.rot90(obs["agentview_rgb"], 2, axes=(1, 2))
    want["wrist_image"] = np.rot90(obs["eye_in_hand_rgb"], 2, axes=(1, 2))
    assert episode["steps"][0]["observation"].keys() == want.keys()
    for name, values in want.items():
      np.testing.assert_array_equal(foreign.column(episode, f"observation/{name}"), values)


def test_libero_takes_one_file(tmp_path):
  foreign.libero(tmp_path / "close_it_demo.hdf5", [2], language=None)
  foreign.libero(tmp_path / "other_demo.hdf5", [2])
  path = tmp_path / "close_it_demo.hdf5"
  found, report = converted("libero_hdf5", path, tmp_path / "out")
  assert report["request"]["name"] == "close_it" and len(found["train"]) == 1
  assert found["train"][0]["steps"][0]["language_instruction"] == b"close it"


def nan(demo):
  demo["actions"][2, 5] = np.nan


def infinite(demo):
  demo["obs/robot0_eef_pos"][1, 0] = np.inf


def narrow(demo):
  del demo["actions"]
  demo["actions"] = np.zeros((3, 6))


def longer(demo):
  del demo["obs/object"]
  demo["obs/object"] = np.zeros((4, 10))


def absent(demo):
  del demo["obs/object"]


def additional(demo):
  demo["obs/robot1_eef_pos"] = np.zeros((3, 3))


def no_actions(demo):
  del demo["actions"]


def empty(demo):
  for name in ("actions", "rewards"):
    values = demo[name][:0]
    del demo[name]
    demo[name] = values


def words(demo):
  del demo["obs/object"]
  demo["obs/object"] = np.array([b"a", b"b", b"c"])


BAD = {
  nan: "'action' is nan at step 2, dimension 5",
  infinite: "'observation/robot0_eef_pos' is inf at step 1, dimension 0",
  narrow: r"/steps\[0\]/action' is float32\[6\]; the features say float32\[7\]",
  longer: "'observation/object' has 4 steps, 'action' has 3",
  absent: "no dataset 'obs/object'; found are: actions, dones",
  additional: "'obs' has robot1_eef_pos besides agentview_image, ",
  no_actions: "no dataset 'actions'; found are: dones",
  empty: "the episode has no steps",
  words: "'obs/object' is of dtype .*; it must hold numbers",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
def test_a_bad_demo_is_named_or_skipped(tmp_path, spoil):
  path = tmp_path / "a.hdf5"
  foreign.robomimic(path, [3, 3, 3])
  with h5py.File(path, "a") as file:
    spoil(file["data/demo_1"])
  with pytest.raises(ValueError, match=rf"{path}, episode demo_1: .*{BAD[spoil]}"):
    converted("robomimic_hdf5", path, tmp_path / "out")
  found, report = converted("robomimic_hdf5", path, tmp_path / "out", on_error="skip")
  assert [e["episode_metadata"]["episode"] for e in found["train"]] == [b"demo_0", b"demo_2"]
  assert report["splits"] == {"train": {"episodes": 2, "skipped": 1}}
  assert [(s["split"], s["file"], s["episode"]) for s in report["skipped"]] == [
    ("train", "a.hdf5", "demo_1")
  ]


def test_corrupt_chunks_are_found(tmp_path):
  path = tmp_path / "a.hdf5"
  foreign.robomimic(path, [30, 30])
  with h5py.File(path) as file:
    chunk = file["data/demo_1/obs/agentview_image"].id.get_chunk_info(0)
  data = bytearray(path.read_bytes())
  data[chunk.byte_offset + 40 : chunk.byte_offset + 200] = bytes(160)
  path.write_bytes(data)
  with pytest.raises(ValueError, match="demo_1: 'obs/agentview_image' cannot be read .*again"):
    converted("robomimic_hdf5", path, tmp_path / "out")


def test_a_file_that_does_not_open_is_named_or_skipped(tmp_path):
  for name in ("a", "b", "c"):
    foreign.libero(tmp_path / f"in/{name}_demo.hdf5", [2])
  bad = tmp_path / "in/b_demo.hdf5"
  bad.write_bytes(bad.read_bytes()[:5000])
  with pytest.raises(ValueError, match=f"{bad}: not an HDF5 file, or truncated"):
    converted("libero_hdf5", tmp_path / "in", tmp_path / "out")
  assert not list(tmp_path.glob("out*"))
  found, report = converted("libero_hdf5", tmp_path / "in", tmp_path / "out", on_error="skip")
  assert len(found["train"]) == 2
  (skipped,) = report["skipped"]
  assert (skipped["file"], skipped["episode"]) == ("b_demo.hdf5", "")
  assert "b_demo.hdf5: not an HDF5 file" in convert.describe(report)


def libero_pose(demo):
  del demo["obs/ee_ori"]
  demo["obs/ee_ori"] = np.zeros((2, 4))


def libero_image(demo):
  del demo["obs/agentview_rgb"]
  demo["obs/agentview_rgb"] = np.zeros((2, 16, 16, 3), np.float32)


@pytest.mark.parametrize(
  "spoil, message",
  [
    (libero_pose, r"'obs/ee_ori' has shape \[2, 4\]; it must be \(steps, 3\)"),
    (libero_image, r"'obs/agentview_rgb' is float32\[2, 16, 16, 3\]; it must be uint8"),
  ],
)
def test_libero_observations_of_another_shape_are_named(tmp_path, spoil, message):
  path = tmp_path / "a_demo.hdf5"
  foreign.libero(path, [2, 2])
  with h5py.File(path, "a") as file:
    spoil(file["data/demo_1"])
  with pytest.raises(ValueError, match=f"{path}, episode demo_1: {message}"):
    converted("libero_hdf5", path, tmp_path / "out")


def test_what_is_no_robomimic_file_is_said(tmp_path):
  def refused(path, message, error=ValueError):
    with pytest.raises(error, match=message):
      converted("robomimic_hdf5", path, tmp_path / "out")

  refused(tmp_path / "nothing.hdf5", "nothing.hdf5: no such file", FileNotFoundError)
  refused(tmp_path, "the directory holds no")
  (tmp_path / "text.hdf5").write_text("hello")
  refused(tmp_path / "text.hdf5", "text.hdf5: not an HDF5 file")
  with h5py.File(tmp_path / "other.hdf5", "w") as file:
    file.create_group("episodes")
  refused(tmp_path / "other.hdf5", "there is no group /data; found are: episodes")
  refused(tmp_path, "other.hdf5: there is no group /data")
  with h5py.File(tmp_path / "other.hdf5", "a") as file:
    file.create_group("data")
  refused(tmp_path / "other.hdf5", "/data holds no demo_0")
  foreign.robomimic(tmp_path / "a.hdf5", [2, 2], mask={"train": ["demo_0"], "valid": ["demo_0"]})
  refused(tmp_path / "a.hdf5", "must divide the demos: demo_0 is in both")
  foreign.robomimic(tmp_path / "a.hdf5", [2, 2], mask={"train": ["demo_0"], "valid": ["demo_5"]})
  refused(tmp_path / "a.hdf5", "must divide the demos: demo_5 is not in /data")
  foreign.robomimic(tmp_path / "raw.hdf5", [2])
  with h5py.File(tmp_path / "raw.hdf5", "a") as file:
    del file["data/demo_0/obs"]
    file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift"})
  refused(tmp_path / "raw.hdf5", "raw.hdf5, demo_0: there is no group 'obs'; found are: actions")
