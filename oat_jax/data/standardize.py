"""How well-known RLDS datasets become actions and states of named dimensions.

A name means the same in every dataset, so that a mixture can align dimensions by name:

  actions
    dx dy dz             displacement of the end effector in this step, in metres
    droll dpitch dyaw    its rotation in this step, in radians: about fixed x, then y, then z
    gripper              target; 1 open, 0 closed
  states
    x y z                position of the end effector, in metres
    roll pitch yaw       its orientation, in radians: about fixed x, then y, then z
    qx qy qz qw          the same as a quaternion
    rx ry rz             the same as a rotation vector: axis times angle, in radians
    gripper              opening; 1 open, 0 closed
    finger_0 finger_1    positions of the two fingers, in metres; both 0 is closed

All are along the axes of the robot's base, unless a function below says otherwise; there are also
each dataset's source, quirks and length of a step. Commands without a unit, in [-1, 1], are
multiplied by their controller's documented gains: bare, these names would be false for them, and
other names would align with nothing. So a displacement is the one asked for, before the
controller's own limits; only `bridge_v2` has the one reached.

Axis letters: L steps of an episode, A action dims, S state dims.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Features = Mapping[str, np.ndarray]  # path below steps/ -> float32 (L, size), one episode
Array = np.ndarray
Arrays = tuple[Array, Array]  # actions float32 (L, A), states float32 (L, S)


class Standard(NamedTuple):
  """How one dataset's features become actions and states.

  name: what `get` knows it by; what is read, for `plain`. The index cache keeps what `convert`
    makes under it: another function needs another name.
  features: the numeric features to read, as paths below `steps/`.
  convert: makes actions and states of the features of ONE episode of at least one step. What is
    finite stays finite. ValueError where a feature is missing or not of the documented size.
  action_names, state_names: A and S names; () where the width decides.
  cameras: (camera, path of its image feature below `steps/`). Where a copy of the dataset holds
    others, say so: `standard._replace(cameras=...)`.
  task: path of the text that names the task, below `steps/` or starting with `episode_metadata/`.
  absolute: names of actions that are targets, not displacements: idle means unchanged, not zero.
  unscaled: names of gripper-like actions that normalisation may leave as they are.
  restore: standardised actions (..., A) to what the dataset's own controller takes: the inverse, up
    to rounding, of convert's change of units and signs. None where there is none.
  """

  name: str
  features: tuple[str, ...]
  convert: Callable[[Features], Arrays]
  action_names: tuple[str, ...]
  state_names: tuple[str, ...]
  cameras: tuple[tuple[str, str], ...]
  task: str
  absolute: tuple[str, ...]
  unscaled: tuple[str, ...]
  restore: Callable[[Array], Array] | None


def plain(
  action: str | Sequence[str] = "action",
  state: Sequence[str] = ("observation/state",),
  task: str = "",
  cameras: Sequence[tuple[str, str]] = (),
) -> Standard:
  """Actions and states as the dataset has them, concatenated in order; their width decides."""
  actions = (action,) if isinstance(action, str) else tuple(action)
  states = tuple(state)
  if not actions or not states:
    raise ValueError(f"action is {actions}, state is {states}; each needs at least one feature")

  def convert(features: Features) -> Arrays:
    return (
      _join(*(_read(features, path) for path in actions)),
      _join(*(_read(features, path) for path in states)),
    )

  return Standard(
    name=f"{'+'.join(actions)} and {'+'.join(states)}",
    features=tuple(dict.fromkeys(actions + states)),
    convert=convert,
    action_names=(),
    state_names=(),
    cameras=tuple((camera, path) for camera, path in cameras),
    task=task,
    absolute=(),
    unscaled=(),
    restore=lambda actions: actions,
  )


def bridge_v2(actions_LA: Array, states_LS: Array) -> Arrays:
  """BridgeData V2 (arXiv 2308.12952): WidowX 250, teleoperated, 5 steps/s.

  Published at rail.eecs.berkeley.edu/datasets/bridge_release as `bridge_dataset`; not Open
  X-Embodiment's `bridge`. The action is metres, radians and an absolute gripper, 1 open, at times
  between, along the base's axes (`action2transform_local` of rail-berkeley/bridge_data_robot on
  GitHub). The state is xyz, roll, pitch, yaw relative to the gripper's default orientation, and the
  opening, at times a little above 1. What features.json says of both (joints) is wrong.

  The recorded motion runs ahead of the arm, and the first step's is a dummy of zeros. As in Octo
  (2405.12213) and OpenVLA (2406.09246), it is replaced by that from this step's measured pose to
  the next one's, but orientations are composed, not subtracted. The last step, after which nothing
  was measured, keeps its command. Camera 0 is over the shoulder, the others vary; a dummy has a
  false has_image_<camera> in the episode_metadata. Many instructions are empty.
  """
  poses_LS = states_LS.astype(np.float64)
  rotations = _from_euler(poses_LS[:, 3:6])
  turns = _to_euler(_multiply(rotations[1:], rotations[:-1] * [1, -1, -1, -1]))
  reached = np.concatenate([np.diff(poses_LS[:, :3], axis=0), turns], axis=1)
  return _join(np.concatenate([reached, actions_LA[-1:, :6]]), actions_LA[:, 6:]), states_LS


def droid(velocities: Array, targets: Array, poses: Array, closed: Array) -> Arrays:
  """DROID (arXiv 2403.12945), RLDS 1.0.1: Franka Panda, teleoperated, 15 steps/s.

  Published at gs://gresearch/robotics/droid. `action_dict/cartesian_velocity` is what was commanded
  along the base's axes in units of 0.075 m and 0.15 rad a step (max_lin_delta and max_rot_delta of
  droid/robot_ik/robot_ik_solver.py, which shortens vectors longer than 1). Beside it
  `action_dict/gripper_position` is absolute, 0 open and 1 closed, and is turned around. Both are
  what DROID's RobotEnv takes as cartesian velocity with gripper position.

  The top-level `action` and all joints are left out. Either exterior camera may be left or right of
  the robot; "left" is the left one of a stereo pair. Beside `language_instruction` there are `_2`
  and `_3`; any may be empty. Failures have "failure" in episode_metadata/file_path.
  """
  return _join(velocities * _DROID_GAINS, 1 - targets), _join(poses, 1 - closed)


def fractal(moves: Array, turns: Array, closing: Array, poses: Array, closed: Array) -> Arrays:
  """RT-1 (arXiv 2212.06817), Open X-Embodiment's `fractal20220817_data`: Google robot, 3 steps/s.

  Published at gs://gresearch/robotics; features as in the TFDS catalog. Commanded displacement in
  metres, roll, pitch and yaw in radians, along the base's axes. `gripper_closedness_action` says
  change: above 0.1 close, below -0.1 open, else leave. It becomes the last change asked for, and
  before the first one its opposite (open, where there is none), which looks ahead.

  The state is base_pose_tool_reached, xyz and a quaternion, and gripper_closed turned around.
  Actions for the base and terminate_episode are dropped; with them, and since an absolute gripper
  does not say when a change was asked for, there is no way back.
  """
  return _join(moves, turns, _latch(closing[:, 0])[:, None]), _join(poses, 1 - closed)


def _latch(closing_L: Array) -> Array:
  """Turns changes (above 0.1 close, below -0.1 open) into the gripper's target, 1 open."""
  asked_L = np.abs(closing_L) > 0.1
  if not asked_L.any():
    return np.ones_like(closing_L)
  open_L = (closing_L < 0).astype(closing_L.dtype)
  last_L = np.maximum.accumulate(np.where(asked_L, np.arange(len(closing_L)), -1))
  return np.where(last_L < 0, 1 - open_L[asked_L.argmax()], open_L[last_L])


def libero(actions_LA: Array, states_LS: Array) -> Arrays:
  """LIBERO (arXiv 2306.03310) as RLDS: simulated Panda, teleoperated, 20 steps/s.

  Published at huggingface.co/datasets/openvla/modified_libero_rlds (2406.09246, appendix E): the
  demonstrations replayed at 256x256, idle steps and failures removed, images rotated by 180
  degrees, so upright; those of LIBERO's HDF5 files and of its environments are upside down. For
  the action see `robomimic`. The state is xyz, rotation vector and both fingers, along the axes of
  the world. Pointing down is a rotation by about pi, where a rotation vector may change its sign.
  """
  return _osc_pose(actions_LA), states_LS


def robomimic(actions_LA: Array, positions: Array, quaternions: Array, fingers: Array) -> Arrays:
  """RoboMimic (arXiv 2108.03298), converted from its HDF5 files: simulated Panda, 20 steps/s.

  Published at robomimic.github.io. The action is that of robosuite's OSC_POSE with relative
  control: xyz in units of 0.05 m, a rotation vector in units of 0.5 rad, both along the axes of the
  world, with which the base is aligned, and a gripper, -1 open, +1 closed. A rotation vector is not
  three angles, so it is converted. The state is what the robot knows of itself. A state of the
  objects has another width in every task: for that, and for Transport's two arms, use `plain`.
  """
  return _osc_pose(actions_LA), _join(positions, quaternions, fingers)


def _osc_pose(actions_LA: Array) -> Array:
  motion = actions_LA[:, :6] * _OSC_GAINS
  return _join(motion[:, :3], _to_euler(_from_vector(motion[:, 3:])), (1 - actions_LA[:, 6:]) / 2)


def _restore_osc_pose(actions: Array) -> Array:
  vectors = _to_vector(_from_euler(actions[..., 3:6].astype(np.float64)))
  motion = np.concatenate([actions[..., :3], vectors], axis=-1)
  return _join(motion / _OSC_GAINS, 1 - 2 * actions[..., 6:])


def metaworld(actions_LA: Array, states_LS: Array) -> Arrays:
  """MetaWorld (arXiv 1910.10897) as launch/collect.py writes it: simulated Sawyer, 80 steps/s.

  The action moves the hand's target along the world's axes in units of 1 cm a step (action_scale of
  metaworld/sawyer_xyz_env.py), its orientation being fixed; then -1 opens and +1 closes the
  gripper. The state is the full observation: the hand and two objects, all that one step earlier,
  and the goal; which number of an object's quaternion is w depends on the task. Cameras are those
  the collection was asked for, `observation/image_<camera>`.
  """
  return _join(actions_LA[:, :3] / 100, (1 - actions_LA[:, 3:]) / 2), states_LS


def get(name: str) -> Standard:
  """Returns a known dataset's standard; ValueError lists the known ones."""
  if name not in STANDARDS:
    raise ValueError(f"there is no standard '{name}'; known are {', '.join(STANDARDS)}")
  return STANDARDS[name]


def _read(features: Features, path: str, size: int | None = None) -> Array:
  if path not in features:
    raise ValueError(f"there is no feature '{path}'; there are {', '.join(sorted(features))}")
  values = features[path]
  if size is not None and values.shape[1:] != (size,):
    raise ValueError(f"feature '{path}' has size {list(values.shape[1:])}, documented is [{size}]")
  return values


def _join(*parts: Array) -> Array:
  return np.concatenate(parts, axis=-1).astype(np.float32)


# Rotations are unit quaternions (..., 4), w first; angles are about fixed x, then y, then z.


def _multiply(p: Array, q: Array) -> Array:
  """Returns the rotation q followed by p."""
  scalar = p[..., :1] * q[..., :1] - (p[..., 1:] * q[..., 1:]).sum(-1, keepdims=True)
  vector = p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + np.cross(p[..., 1:], q[..., 1:])
  return np.concatenate([scalar, vector], axis=-1)


def _from_vector(vectors: Array) -> Array:
  half = np.linalg.norm(vectors, axis=-1, keepdims=True) / 2
  # np.sinc(x) is sin(pi x) / (pi x), and 1 at 0.
  return np.concatenate([np.cos(half), np.sinc(half / np.pi) * vectors / 2], axis=-1)


def _to_vector(rotations: Array) -> Array:
  rotations = np.where(rotations[..., :1] < 0, -rotations, rotations)  # the shorter way round
  sine = np.linalg.norm(rotations[..., 1:], axis=-1, keepdims=True)
  angle = 2 * np.arctan2(sine, rotations[..., :1])
  return rotations[..., 1:] * angle / np.maximum(sine, np.finfo(np.float64).tiny)


def _from_euler(angles: Array) -> Array:
  roll, pitch, yaw = (_from_vector(angles * axis) for axis in np.eye(3))
  return _multiply(yaw, _multiply(pitch, roll))


def _to_euler(rotations: Array) -> Array:
  w, x, y, z = np.moveaxis(rotations, -1, 0)
  roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
  pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1, 1))
  yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
  return np.stack([roll, pitch, yaw], axis=-1)


_DROID_GAINS = np.array([0.075] * 3 + [0.15] * 3)
_OSC_GAINS = np.array([0.05] * 3 + [0.5] * 3)
_OBJECTS = [f"object_{i}_{name}" for i in range(2) for name in "x y z q0 q1 q2 q3".split()]
_SCENE = ["x", "y", "z", "gripper", *_OBJECTS]  # MetaWorld's


def _standard(
  convert: Callable[..., Arrays],
  acted: Mapping[str, int],
  observed: Mapping[str, int],
  states: str,
  cameras: Mapping[str, str],
  restore: Callable[[Array], Array] | None,
  task: str = "language_instruction",
  actions: str = "dx dy dz droll dpitch dyaw gripper",
) -> Standard:
  """Makes the standard of a function of features of these sizes, in this order."""
  sizes = {**acted, **{f"observation/{path}": size for path, size in observed.items()}}
  return Standard(
    name=convert.__name__,
    features=tuple(sizes),
    convert=lambda features: convert(*(_read(features, *item) for item in sizes.items())),
    action_names=tuple(actions.split()),
    state_names=tuple(states.split()),
    cameras=tuple((name, f"observation/{path}") for name, path in cameras.items()),
    task=task,
    absolute=("gripper",),
    unscaled=("gripper",),
    restore=restore,
  )


_ALL = (
  _standard(
    bridge_v2,
    {"action": 7},
    {"state": 7},
    "x y z roll pitch yaw gripper",
    {f"{i}": f"image_{i}" for i in range(4)},
    lambda actions: actions,  # the controller takes these units
  ),
  _standard(
    droid,
    {"action_dict/cartesian_velocity": 6, "action_dict/gripper_position": 1},
    {"cartesian_position": 6, "gripper_position": 1},
    "x y z roll pitch yaw gripper",
    {f"exterior_{i}": f"exterior_image_{i}_left" for i in (1, 2)} | {"wrist": "wrist_image_left"},
    lambda actions: _join(actions[..., :6] / _DROID_GAINS, 1 - actions[..., 6:]),
  ),
  _standard(
    fractal,
    {"action/world_vector": 3, "action/rotation_delta": 3, "action/gripper_closedness_action": 1},
    {"base_pose_tool_reached": 7, "gripper_closed": 1},
    "x y z qx qy qz qw gripper",
    {"head": "image"},
    None,
    "observation/natural_language_instruction",
  ),
  _standard(
    libero,
    {"action": 7},
    {"state": 8},
    "x y z rx ry rz finger_0 finger_1",
    {"agentview": "image", "robot0_eye_in_hand": "wrist_image"},
    _restore_osc_pose,
  ),
  _standard(
    robomimic,
    {"action": 7},
    {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2},
    "x y z qx qy qz qw finger_0 finger_1",
    {name: f"{name}_image" for name in ("agentview", "robot0_eye_in_hand")},
    _restore_osc_pose,
    "episode_metadata/task",
  ),
  _standard(
    metaworld,
    {"action": 4},
    {"state": 39},
    " ".join([*_SCENE, *(f"previous_{name}" for name in _SCENE), "goal_x goal_y goal_z"]),
    {},
    lambda actions: _join(actions[..., :3] * 100, 1 - 2 * actions[..., 3:]),
    "episode_metadata/task",
    "dx dy dz gripper",
  ),
)
STANDARDS: dict[str, Standard] = {standard.name: standard for standard in _ALL}
