"""Known datasets: features as published, conventions by hand-computed values, and the way back."""

import functools
import operator
import pathlib

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `train` is not installed")

from oat_jax.data import rlds  # noqa: E402
from oat_jax.data import standardize  # noqa: E402
from oat_jax.data import tfrecord  # noqa: E402
from oat_jax.data import write  # noqa: E402
from oat_jax.envs import collect  # noqa: E402
from oat_jax.envs import env as env_lib  # noqa: E402

F = tfds.features
BRIDGE = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "bridge_dataset"
ENDS = {"is_first": np.bool_, "is_last": np.bool_, "is_terminal": np.bool_, "reward": np.float32}
RLDS = ENDS | {"discount": np.float32, "language_instruction": F.Text()}


def floats(*shape):
  return F.Tensor(shape=shape, dtype=np.float32)


def doubles(*shape):
  return F.Tensor(shape=shape, dtype=np.float64)


def image(height, width):
  return F.Image(shape=(height, width, 3), encoding_format="jpeg")


def bridge_v2():
  """bridge_dataset 1.0.0, with its images at the size of the sample that tests read."""
  observation = {f"image_{i}": image(64, 64) for i in range(4)} | {"state": floats(7)}
  has = {f"has_image_{i}": np.bool_ for i in range(4)}
  steps = {"action": floats(7), "language_embedding": floats(512), "observation": observation}
  metadata = has | {"file_path": F.Text(), "has_language": np.bool_, "episode_id": np.int32}
  return {"steps": F.Dataset(RLDS | steps), "episode_metadata": metadata}


def droid():
  """DROID 1.0.1."""
  cameras = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
  measured = {"cartesian_position": 6, "gripper_position": 1, "joint_position": 7}
  commanded = measured | {"cartesian_velocity": 6, "gripper_velocity": 1, "joint_velocity": 7}
  observation = {camera: image(180, 320) for camera in cameras}
  observation |= {name: doubles(size) for name, size in measured.items()}
  steps = {
    "observation": observation,
    "action_dict": {name: doubles(size) for name, size in commanded.items()},
    "action": doubles(7),
    "language_instruction_2": F.Text(),
    "language_instruction_3": F.Text(),
  }
  metadata = {"file_path": F.Text(), "recording_folderpath": F.Text()}
  return {"steps": F.Dataset(RLDS | steps), "episode_metadata": metadata}


def fractal():
  """fractal20220817_data 0.1.0."""
  action = {
    "base_displacement_vector": floats(2),
    "base_displacement_vertical_rotation": floats(1),
    "gripper_closedness_action": floats(1),
    "rotation_delta": floats(3),
    "terminate_episode": F.Tensor(shape=(3,), dtype=np.int32),
    "world_vector": floats(3),
  }
  observation = {
    "base_pose_tool_reached": floats(7),
    "gripper_closed": floats(1),
    "gripper_closedness_commanded": floats(1),
    "height_to_bottom": floats(1),
    "image": image(256, 320),
    "natural_language_embedding": floats(512),
    "natural_language_instruction": F.Text(),
    "orientation_box": floats(2, 3),
    "orientation_start": floats(4),
    "robot_orientation_positions_box": floats(3, 3),
    "rotation_delta_to_go": floats(3),
    "src_rotation": floats(4),
    "vector_to_go": floats(3),
    "workspace_bounds": floats(3, 3),
  }
  flags = ("already_success", "feasible", "has_aspects", "success", "undesirable")
  kinds = ("collection_mode", "data_type", "env", "location", "objects_family", "task_family")
  attributes = {kind: np.int64 for kind in kinds} | {f"{kind}_name": F.Text() for kind in kinds}
  return {
    "aspects": {flag: np.bool_ for flag in flags},
    "attributes": attributes,
    "steps": F.Dataset(ENDS | {"action": action, "observation": observation}),
  }


def libero():
  """openvla/modified_libero_rlds, libero_*_no_noops 1.0.0."""
  observation = {"image": image(256, 256), "wrist_image": image(256, 256)}
  observation |= {"state": floats(8), "joint_state": floats(7)}
  steps = RLDS | {"action": floats(7), "observation": observation}
  return {"steps": F.Dataset(steps), "episode_metadata": {"file_path": F.Text()}}


def robomimic():
  """A converted image dataset of one arm."""
  observation = {f"{name}_image": image(84, 84) for name in ("agentview", "robot0_eye_in_hand")}
  sizes = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2, "joint_pos": 7, "joint_vel": 7}
  observation |= {f"robot0_{name}": floats(size) for name, size in sizes.items()}
  observation |= {"object": floats(14)}
  metadata = {"file": F.Text(), "episode": F.Text(), "task": F.Text(), "success": np.bool_}
  return write.rlds_features(observation, 7, metadata)


def metaworld():
  return collect.features(env_lib.suite("metaworld/mt4"), ("corner2",), 32)


FAKES = (bridge_v2, droid, fractal, libero, robomimic, metaworld)
IMAGES = {"bridge_v2": (64, 64), "droid": (180, 320), "fractal": (256, 320), "libero": (256, 256)}
IMAGES["robomimic"] = (84, 84)
SIZES = {
  "bridge_v2": (7, 7),
  "droid": (6, 1, 6, 1),
  "fractal": (3, 3, 1, 7, 1),
  "libero": (7, 8),
  "robomimic": (7, 3, 4, 2),
  "metaworld": (4, 39),
}


def fake(feature, rng):
  """A random value of a feature, a Dataset being three steps."""
  if isinstance(feature, F.Dataset):
    return [fake(feature.feature, rng) for _ in range(3)]
  if isinstance(feature, F.FeaturesDict):
    return {name: fake(feature[name], rng) for name in feature}
  if isinstance(feature, F.Text):
    return "fold the towel"
  dtype = np.dtype(feature.np_dtype)
  if dtype.kind == "f":
    return rng.uniform(-1, 1, feature.shape).astype(dtype)
  return rng.integers(0, 2 if dtype.kind == "b" else 9, feature.shape).astype(dtype)


def get(tree, path):
  return functools.reduce(operator.getitem, path.split("/"), tree)


def random_features(standard, length, scale=1.0, seed=0):
  sizes = dict(zip(standard.features, SIZES[standard.name]))
  rng = np.random.default_rng(seed)
  return {
    path: (scale * rng.uniform(-1, 1, (length, n))).astype(np.float32) for path, n in sizes.items()
  }


EVERY = pytest.mark.parametrize("standard", standardize.STANDARDS.values(), ids=lambda s: s.name)


def test_all_are_tested():
  names = ["bridge_v2", "droid", "fractal", "libero", "robomimic", "metaworld"]
  assert list(standardize.STANDARDS) == names == [make.__name__ for make in FAKES]


@pytest.mark.parametrize("make", FAKES)
def test_published_features(make, tmp_path):
  """What a standard reads is what tfds decodes from a record of the published features."""
  standard = standardize.get(make.__name__)
  features = F.FeaturesDict(make())
  episode = fake(features, np.random.default_rng(0))
  steps = list(features.deserialize_example_np(write.serialize(features, episode))["steps"])
  values = {}
  for path in standard.features:
    values[path] = np.stack([get(step, path) for step in steps]).astype(np.float32)
    assert values[path].shape == (3, *get(features["steps"].feature, path).shape)
  actions_LA, states_LS = standard.convert(values)
  assert actions_LA.shape == (3, len(standard.action_names))
  assert states_LS.shape == (3, len(standard.state_names))
  below = features if standard.task.startswith("episode_metadata/") else features["steps"].feature
  assert isinstance(get(below, standard.task), F.Text)
  for _, path in standard.cameras:
    assert isinstance(get(features["steps"].feature, path), F.Image)
    assert get(steps[0], path).shape == (*IMAGES[standard.name], 3)

  write.write(tmp_path / "1.0.0", features, [episode], name=standard.name)
  data = rlds.read(tmp_path, standard=standard, cache=tmp_path / "cache")
  np.testing.assert_array_equal(np.asarray(data.actions_LA), actions_LA)
  np.testing.assert_array_equal(np.asarray(data.states_LS), states_LS)


@EVERY
def test_names(standard):
  for names in (standard.action_names, standard.state_names, [c for c, _ in standard.cameras]):
    assert len(set(names)) == len(names)
  motion = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
  assert [name for name in motion if name in standard.action_names] == list(standard.action_names)
  assert standard.absolute == standard.unscaled == ("gripper",)


@EVERY
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_any_finite_episode_stays_finite(standard, length, scale):
  actions_LA, states_LS = standard.convert(random_features(standard, length, scale))
  for array, names in ((actions_LA, standard.action_names), (states_LS, standard.state_names)):
    assert array.shape == (length, len(names)) and array.dtype == np.float32
    assert np.isfinite(array).all()


@EVERY
def test_features_of_another_size_are_refused(standard):
  for path in standard.features:
    features = random_features(standard, 2)
    size = features[path].shape[1]
    features[path] = np.zeros((2, size + 1), np.float32)
    message = rf"'{path}' has size \[{size + 1}\], documented is \[{size}\]"
    with pytest.raises(ValueError, match=message):
      standard.convert(features)
    del features[path]
    with pytest.raises(ValueError, match=f"no feature '{path}'; there are "):
      standard.convert(features)


def dataset_action(name, features):
  """What the dataset's controller takes, as recorded."""
  if name == "droid":
    paths = ("action_dict/cartesian_velocity", "action_dict/gripper_position")
    return np.concatenate([features[path] for path in paths], 1)
  return features["action"]


@pytest.mark.parametrize("name", ["droid", "libero", "robomimic", "metaworld"])
def test_restore_inverts_convert(name):
  standard = standardize.get(name)
  features = random_features(standard, 200)
  for path in features:
    features[path][:3] = [[0], [1], [-1]]
    features[path][3:6] = np.sign(features[path][3:6])
    features[path][6:9] *= 1e-6
  actions_LA, _ = standard.convert(features)
  expected_LA = dataset_action(name, features)
  restored_LA = standard.restore(actions_LA)
  assert restored_LA.dtype == np.float32
  np.testing.assert_allclose(restored_LA, expected_LA, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(standard.restore(actions_LA[0]), restored_LA[0])  # any leading axes
  stacked = standard.restore(actions_LA.reshape(2, 100, -1))
  np.testing.assert_array_equal(stacked.reshape(200, -1), restored_LA)


def test_what_the_bridge_controller_takes_is_a_standard_action():
  actions = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
  np.testing.assert_array_equal(standardize.get("bridge_v2").restore(actions), actions)


def test_fractal_has_no_way_back():
  assert standardize.get("fractal").restore is None


def test_bridge_has_the_motion_that_was_reached():
  states = np.zeros((3, 7), np.float32)
  states[:, :3] = [[0.1, 0, 0.2], [0.125, 0, 0.2], [0.125, -0.5, 0.25]]
  # A quarter turn about x, then one more about the base's z: seen from the base, that is all yaw.
  states[1, 3:6] = [np.pi / 2, 0, 0]
  states[2, 3:6] = [np.pi / 2, 0, np.pi / 2]
  states[:, 6] = [1.01, 0.5, 0.1]
  actions = np.zeros((3, 7), np.float32)
  actions[1, :6] = 9.0  # a command that is replaced
  actions[2] = [0.01, 0.02, 0.03, 0.1, 0.2, 0.3, 0]
  actions[:, 6] = [1, 0.56, 0]
  found, observed = standardize.get("bridge_v2").convert(
    {"action": actions, "observation/state": states}
  )
  expected = [
    [0.025, 0, 0, np.pi / 2, 0, 0, 1],
    [0, -0.5, 0.05, 0, 0, np.pi / 2, 0.56],
    [0.01, 0.02, 0.03, 0.1, 0.2, 0.3, 0],
  ]
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(observed, states)


def test_bridge_turns_across_half_a_turn_are_small():
  states = np.zeros((2, 7), np.float32)
  states[:, 5] = [3.1, -3.1]
  features = {"action": np.zeros((2, 7), np.float32), "observation/state": states}
  found, _ = standardize.get("bridge_v2").convert(features)
  np.testing.assert_allclose(found[0, 3:6], [0, 0, 2 * np.pi - 6.2], atol=1e-6)


def test_droid_units_and_gripper():
  features = {
    "action_dict/cartesian_velocity": [[1, -1, 0.2, 1, -1, 0.2], [0] * 6],
    "action_dict/gripper_position": [[0], [1]],
    "observation/cartesian_position": [[1, 2, 3, 4, 5, 6]] * 2,
    "observation/gripper_position": [[0.25], [1]],
  }
  features = {path: np.array(rows, np.float32) for path, rows in features.items()}
  actions, states = standardize.get("droid").convert(features)
  expected = [[0.075, -0.075, 0.015, 0.15, -0.15, 0.03, 1], [0] * 7]
  np.testing.assert_allclose(actions, expected, rtol=1e-6)
  np.testing.assert_array_equal(states, [[1, 2, 3, 4, 5, 6, 0.75], [1, 2, 3, 4, 5, 6, 0]])


@pytest.mark.parametrize(
  ("closing", "opened"),
  [
    ([0], [1]),
    ([1], [0]),
    ([0, 0, 0], [1, 1, 1]),
    ([0, 1, 0, 0, -1, 0], [1, 0, 0, 0, 1, 1]),
    ([0, 0, -1, 0, 1], [0, 0, 1, 1, 0]),
    ([0.1, -0.1, 0.11, -0.05, -0.2], [1, 1, 0, 0, 1]),
  ],
)
def test_fractal_gripper(closing, opened):
  standard = standardize.get("fractal")
  features = random_features(standard, len(closing))
  features["action/gripper_closedness_action"] = np.array(closing, np.float32)[:, None]
  actions, states = standard.convert(features)
  np.testing.assert_array_equal(actions[:, 6], opened)
  np.testing.assert_array_equal(actions[:, :3], features["action/world_vector"])
  np.testing.assert_array_equal(actions[:, 3:6], features["action/rotation_delta"])
  np.testing.assert_array_equal(states[:, 7:], 1 - features["observation/gripper_closed"])


@pytest.mark.parametrize("name", ["libero", "robomimic"])
def test_osc_pose_units_and_gripper(name):
  features = random_features(standardize.get(name), 3)
  commands = [[1, -1, 0.5, 0, 0, 0, -1], [0, 0, 0, 0, -1, 0, 1], [0, 0, 0, 1, 1, 1, 0]]
  features["action"] = np.array(commands, np.float32)
  actions, _ = standardize.get(name).convert(features)
  angles = Rotation.from_rotvec([0.5, 0.5, 0.5]).as_euler("xyz")  # about fixed axes
  expected = [[0.05, -0.05, 0.025, 0, 0, 0, 1], [0, 0, 0, 0, -0.5, 0, 0], [0, 0, 0, *angles, 0.5]]
  np.testing.assert_allclose(actions, expected, atol=1e-7)


def test_metaworld_units_and_gripper():
  actions = np.array([[1, -1, 0.5, -1], [0, 0, 0, 1], [0, 0, 0, 0.5]], np.float32)
  features = {"action": actions, "observation/state": np.zeros((3, 39), np.float32)}
  found, _ = standardize.get("metaworld").convert(features)
  expected = [[0.01, -0.01, 0.005, 1], [0, 0, 0, 0], [0, 0, 0, 0.25]]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  names = standardize.get("metaworld").state_names
  assert names[:5] == ("x", "y", "z", "gripper", "object_0_x") and names[18] == "previous_x"


def test_rotations_equal_scipy():
  angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (500, 3))
  angles[:, 1] /= 2
  angles[0] = 0
  quaternions = standardize._from_euler(angles)
  expected = Rotation.from_euler("xyz", angles)
  signs = np.sign((quaternions * expected.as_quat()[:, [3, 0, 1, 2]]).sum(-1, keepdims=True))
  np.testing.assert_allclose(signs * quaternions, expected.as_quat()[:, [3, 0, 1, 2]], atol=1e-12)
  np.testing.assert_allclose(standardize._to_euler(quaternions), angles, atol=1e-7)
  vectors = standardize._to_vector(quaternions)
  np.testing.assert_allclose(vectors, expected.as_rotvec(), atol=1e-12)
  back = standardize._from_vector(vectors)
  np.testing.assert_allclose(np.abs((back * quaternions).sum(-1)), 1, atol=1e-12)


def test_plain_concatenates_in_order():
  standard = standardize.plain(
    ("action/arm", "action/hand"), ["state", "action/hand"], "text", [("top", "observation/image")]
  )
  assert standard.features == ("action/arm", "action/hand", "state")
  assert standard.cameras == (("top", "observation/image"),) and standard.task == "text"
  assert (standard.action_names, standard.absolute) == ((), ())
  other = standardize.plain("action/arm", ["action/hand", "state"])
  assert other.features == standard.features and other.name != standard.name
  features = {path: np.full((2, i + 1), i, np.float32) for i, path in enumerate(standard.features)}
  actions, states = standard.convert(features)
  np.testing.assert_array_equal(actions, [[0, 1, 1]] * 2)
  np.testing.assert_array_equal(states, [[2, 2, 2, 1, 1]] * 2)
  assert standard.restore(actions) is actions
  del features["state"]
  with pytest.raises(ValueError, match="no feature 'state'; there are action/arm, action/hand"):
    standard.convert(features)
  with pytest.raises(ValueError, match="needs at least one feature"):
    standardize.plain(state=())


def test_unknown_names_list_the_known_ones():
  with pytest.raises(ValueError, match="no standard 'bridge'; known are bridge_v2, droid, "):
    standardize.get("bridge")


@pytest.mark.skipif(not BRIDGE.exists(), reason=f"the shared data is not at {BRIDGE}")
def test_real_bridge_episodes():
  builder = tfds.builder_from_directory(BRIDGE / "1.0.0")
  file = tfrecord.TFRecordFile(BRIDGE / "1.0.0" / builder.info.splits["train"].filenames[0])
  standard = standardize.get("bridge_v2")
  paths = {"action": ("action",), "observation/state": ("observation", "state")}
  for i in range(len(file)):
    steps = list(builder.info.features.deserialize_example_np(bytes(file[i]))["steps"])
    values = {
      path: np.stack([functools.reduce(operator.getitem, keys, step) for step in steps])
      for path, keys in paths.items()
    }
    commands_LA, poses_LS = values["action"], values["observation/state"]
    assert np.abs(commands_LA[0, :6]).max() < 1e-6  # the dummy
    actions_LA, states_LS = standard.convert(values)
    np.testing.assert_array_equal(states_LS, poses_LS)
    np.testing.assert_array_equal(actions_LA[:, 6], commands_LA[:, 6])
    np.testing.assert_array_equal(actions_LA[-1], commands_LA[-1])
    np.testing.assert_allclose(actions_LA[:-1, :3], np.diff(poses_LS[:, :3], axis=0), atol=1e-7)
    # The motion, followed from the first pose, ends at the last one.
    turned = Rotation.from_euler("xyz", poses_LS[0, 3:6])
    for angles in actions_LA[:-1, 3:6]:
      turned = Rotation.from_euler("xyz", angles) * turned
    end = Rotation.from_euler("xyz", poses_LS[-1, 3:6])
    assert (turned * end.inv()).magnitude() < 1e-5
