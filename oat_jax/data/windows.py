"""Windows over episodes: the observations up to a step, and the chunk of actions from it on.

Axis letters: L all steps concatenated, E episodes, W windows, and B, T, C, A, S as in `batch`.
"""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import hashlib
from typing import Any, NamedTuple

import numpy as np

from oat_jax import batch as batch_lib
from oat_jax.data import normalization
from oat_jax.data import rlds


class Options(NamedTuple):
  """Which steps of a dataset begin a window.

  stride: every so many steps of an episode, from its first on.
  execute_horizon: how many actions R of a chunk a policy executes before it plans again. A window's
    first R actions are all real, but for the first window of an episode that is shorter. 1 takes
    every step.
  idle_below: leaves out windows of whose first R actions none moves anything: displacements at most
    this large, targets (`absolute`) that change by at most this, in the dataset's units. None keeps
    them.
  absolute: names of the actions that are targets, e.g. a gripper's opening.
  """

  stride: int = 1
  execute_horizon: int = 1
  idle_below: float | None = None
  absolute: tuple[str, ...] = ()


class Layout(NamedTuple):
  """What the batches of all datasets of a mixture agree on."""

  action_names: tuple[str, ...]  # A
  state_names: tuple[str, ...]  # S
  task_names: tuple[str, ...]
  dataset_names: tuple[str, ...]
  cameras: tuple[tuple[str, int, int], ...] = ()  # name, height, width
  language_dim: int = 0  # E


def layout(
  datasets: Sequence[rlds.Episodes],
  action_names: Sequence[str] = (),
  state_names: Sequence[str] = (),
  action_dim: int | None = None,
  dataset_names: Sequence[str] = (),
) -> Layout:
  """Returns the layout that holds all datasets.

  Args:
    datasets: of the mixture, in order.
    action_names, state_names: the dimensions wanted, in order. All that any dataset has, in order
      of first appearance, if empty.
    action_dim: A, filled up by dimensions that no dataset has; the number of names if None.
    dataset_names: of the datasets, in order; numbers if empty.

  Raises:
    ValueError: a dataset has dimensions that the names leave out or more than `action_dim`, a name
      is there twice or in no dataset, or the datasets' cameras or embeddings of instructions
      disagree.
  """
  dims = {}
  for kind, given in (("action", action_names), ("state", state_names)):
    have = [getattr(episodes, f"{kind}_names") for episodes in datasets]
    known = tuple(dict.fromkeys(name for names in have for name in names))
    dims[kind] = tuple(given) or known
    wrong = [name for name in given if name not in known or list(given).count(name) > 1]
    if wrong:
      raise ValueError(
        f"{kind} dimension '{wrong[0]}' is named twice, or no dataset has it: {', '.join(known)}"
      )
    for names in have:
      unknown = [name for name in names if name not in dims[kind]]
      if unknown:
        raise ValueError(
          f"a dataset's {kind} dimension '{unknown[0]}' is not among those wanted: "
          f"{', '.join(dims[kind])}"
        )
  width = len(dims["action"])
  if action_dim is not None:
    if action_dim < width:
      raise ValueError(f"the data's actions have {width} dimensions, action_dim is {action_dim}")
    dims["action"] += tuple(f"unused_{i}" for i in range(width, action_dim))
  return Layout(
    dims["action"],
    dims["state"],
    tuple(sorted({name for episodes in datasets for name in episodes.task_names})),
    tuple(dataset_names) or tuple(map(str, range(len(datasets)))),
    _cameras(datasets),
    _language_dim(datasets),
  )


def _language_dim(datasets: Sequence[rlds.Episodes]) -> int:
  found = [0 if each.language_RD is None else each.language_RD.shape[1] for each in datasets]
  for i, size in enumerate(found):
    if size != found[0]:
      raise ValueError(
        f"instructions are embedded as {size} numbers in dataset {i}, as {found[0]} in dataset 0; "
        "name features of one size for all datasets (config.data.language), or for none"
      )
  return found[0]


def _cameras(datasets: Sequence[rlds.Episodes]) -> tuple[tuple[str, int, int], ...]:
  sizes: dict[str, tuple[int, int]] = {}
  for i, episodes in enumerate(datasets):
    for name, camera in episodes.cameras.items():
      known = sizes.setdefault(name, camera.size)
      if known != camera.size:
        raise ValueError(
          f"camera '{name}' is {camera.size[0]}x{camera.size[1]} in dataset {i}, before it was "
          f"{known[0]}x{known[1]}; give image_size (config.data.image_size)"
        )
  for i, episodes in enumerate(datasets):
    missing = [name for name in sizes if name not in dict(episodes.standard.cameras)]
    if missing:
      raise ValueError(
        f"dataset {i} has no camera '{missing[0]}', others have; name its feature, or '' for black"
      )
  return tuple((name, *size) for name, size in sizes.items())


class Windows:
  """A window for steps of the chosen episodes, gathered a batch at a time."""

  def __init__(
    self,
    episodes: rlds.Episodes,
    episode_ids: np.ndarray,
    observation_steps: int,
    action_horizon: int,
    target: Layout | None = None,
    dataset: int = 0,
    options: Options | None = None,
  ):
    """Indexes the windows, in the order of `episode_ids` and of time.

    Args:
      episodes: the dataset.
      episode_ids: int, distinct numbers of the episodes to use.
      observation_steps: T, the last of which is the window's own step.
      action_horizon: C, from the window's own step on.
      target: the layout of the batches; dimensions that this dataset lacks are zero, and false in
        `action_dim_mask`. The dataset's own if None.
      dataset: the dataset's number in the mixture.
      options: which steps begin a window; every one if None.

    Raises:
      ValueError: no, repeated or unknown episodes, options that leave no window, or a dimension
        that the layout lacks.
    """
    target, options = target or layout([episodes]), options or Options()
    ids = np.asarray(episode_ids, np.int64)
    if not len(ids) or len(np.unique(ids)) != len(ids):
      raise ValueError(f"windows need distinct episodes, at least one, not {ids.tolist()[:8]}")
    if ids.min() < 0 or ids.max() >= episodes.num_episodes:
      raise ValueError(
        f"episodes {ids.min()} to {ids.max()} were asked for, but the dataset has "
        f"{episodes.num_episodes}, from 0 on"
      )
    self.spec = batch_lib.BatchSpec(
      observation_steps=observation_steps,
      action_horizon=action_horizon,
      action_dim=len(target.action_names),
      state_dim=len(target.state_names),
      task_names=target.task_names,
      num_datasets=len(target.dataset_names),
      action_names=target.action_names,
      dataset_names=target.dataset_names,
      cameras=target.cameras,
      language_dim=target.language_dim,
    )
    self._episodes, self._ids, self._dataset = episodes, ids, dataset
    self._actions = _columns(episodes.action_names, target.action_names)
    self._states = _columns(episodes.state_names, target.state_names)
    number = {name: i for i, name in enumerate(target.task_names)}
    self._tasks = np.array([number[name] for name in episodes.task_names], np.int32)
    self._action_dim_mask_A = np.isin(np.arange(self.spec.action_dim), self._actions)
    self._step_W = _begins(episodes, ids, options)
    if not len(self._step_W):
      raise ValueError(f"no step of the {len(ids)} episodes begins a window; loosen {options}")

  def __len__(self) -> int:
    return len(self._step_W)

  @property
  def episode_W(self) -> np.ndarray:
    """The episode of each window, int64."""
    return np.searchsorted(self._episodes.starts_E, self._step_W, "right") - 1

  def __call__(self, indices_B: np.ndarray) -> dict[str, Any]:
    """Returns the batch (see `oat_jax.batch`) of the windows at int (B,) positions.

    Before an episode's start its first observation is repeated, behind its end its last action;
    observation_mask and action_mask are false there.

    Raises:
      IndexError: an index is negative or not below `len(self)`.
      ValueError: an image does not decode; the message names file, record, step and feature.
    """
    indices_B = np.asarray(indices_B, np.int64)
    bad = indices_B[(indices_B < 0) | (indices_B >= len(self))]
    if len(bad):
      raise IndexError(f"window {bad[0]} was asked for; there are {len(self)}, from 0 on")
    spec, data, rows = self.spec, self._episodes, len(indices_B)
    step_B = self._step_W[indices_B]
    episode_B = np.searchsorted(data.starts_E, step_B, "right") - 1
    first_B1, end_B1 = (data.starts_E[episode_B + i][:, None] for i in (0, 1))
    observed_BT = step_B[:, None] + np.arange(1 - spec.observation_steps, 1)
    acted_BC = step_B[:, None] + np.arange(spec.action_horizon)
    seen_BT = np.maximum(observed_BT, first_B1)
    images = {}
    for name, height, width in spec.cameras:
      shape = (rows, spec.observation_steps, height, width, 3)
      camera = data.cameras.get(name)
      images[f"image_{name}"] = (
        np.zeros(shape, np.uint8) if camera is None else camera(seen_BT.ravel()).reshape(shape)
      )
    language = {}
    if spec.language_dim and data.language_RD is not None and data.language_rows_L is not None:
      language["language"] = data.language_RD[data.language_rows_L[step_B]]
    acted = np.minimum(acted_BC, end_B1 - 1)
    return {
      "observation": {
        **images,
        "state": _place(data.states_LS[seen_BT], self._states, spec.state_dim),
        "task": self._tasks[data.tasks_L[step_B]],
        **language,
      },
      "observation_mask": observed_BT >= first_B1,
      "actions": _place(data.actions_LA[acted], self._actions, spec.action_dim),
      "action_mask": acted_BC < end_B1,
      "action_dim_mask": np.tile(self._action_dim_mask_A, (rows, 1)),
      "dataset": np.full(rows, self._dataset, np.int32),
    }

  def without_images(self) -> "Windows":
    """Returns the same windows, whose batches hold neither frames nor language."""
    other = copy.copy(self)
    other.spec = dataclasses.replace(self.spec, cameras=(), language_dim=0)
    return other

  def digest(self) -> str:
    """Returns 16 hex digits of which steps of which dataset, as it is read, the windows are."""
    spec = dataclasses.replace(self.spec, cameras=(), language_dim=0)
    names = (self._episodes.action_names, self._episodes.state_names)
    known = repr((self._episodes.fingerprint, spec, names, self._dataset))
    return hashlib.sha256(known.encode() + self._step_W.tobytes()).hexdigest()[:16]

  def own_statistics(self) -> dict[str, normalization.Statistics]:
    """Returns the statistics of the dataset's own dimensions, before they are placed."""
    return self._episodes.statistics(self._ids)

  def statistics(
    self, own: Mapping[str, normalization.Statistics] | None = None
  ) -> dict[str, normalization.Statistics]:
    """Returns the statistics of "actions" (A,) and "state" (S,) over all steps of the episodes.

    Dimensions that the dataset lacks are constant zeros, so normalising leaves them zero.

    Args:
      own: the dataset's own dimensions' statistics, of a file; computed from the episodes if None.

    Raises:
      ValueError: a group is missing in `own`, or has another number of dimensions.
    """
    own = own or self.own_statistics()
    places = {
      "actions": (self._actions, self.spec.action_dim),
      "state": (self._states, self.spec.state_dim),
    }
    out = {}
    for name, (columns, width) in places.items():
      if name not in own or len(own[name].min) != len(columns):
        got = f"{len(own[name].min)} dimensions" if name in own else "none"
        raise ValueError(f"statistics of '{name}': {got}; the dataset has {len(columns)}")
      out[name] = normalization.place(own[name], columns, width)
    return out


def _begins(episodes: rlds.Episodes, ids: np.ndarray, options: Options) -> np.ndarray:
  """Returns the steps, int64 (W,), that begin a window."""
  for name in ("stride", "execute_horizon"):
    if getattr(options, name) < 1:
      raise ValueError(f"{name} is {getattr(options, name)}; it must be at least 1")
  moved = None
  if options.idle_below is not None:
    moved = np.cumsum(np.append(0, _moving(episodes, options)))  # up to each step
  # In blocks: of a hundred million steps only the result is to be held at once.
  blocks = np.array_split(ids, -(-len(ids) // 4096))
  return np.concatenate([_begins_of(episodes.starts_E, block, options, moved) for block in blocks])


def _begins_of(
  starts_E: np.ndarray, ids: np.ndarray, options: Options, moved: np.ndarray | None
) -> np.ndarray:
  lengths = np.diff(starts_E)[ids]
  within_W = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  left_W = np.repeat(lengths, lengths) - within_W
  step_W = np.repeat(starts_E[ids], lengths) + within_W
  keep_W = within_W % options.stride == 0
  keep_W &= (left_W >= options.execute_horizon) | (within_W == 0)
  if moved is not None:
    keep_W &= moved[step_W + np.minimum(left_W, options.execute_horizon)] > moved[step_W]
  return step_W[keep_W]


def _moving(episodes: rlds.Episodes, options: Options) -> np.ndarray:
  """Returns bool (L,): which actions move something."""
  unknown = [name for name in options.absolute if name not in episodes.action_names]
  if unknown:
    raise ValueError(
      f"absolute names '{unknown[0]}'; the actions are {', '.join(episodes.action_names)}"
    )
  actions_LA = episodes.actions_LA
  moving_L = np.zeros(len(actions_LA), bool)
  for dim, name in enumerate(episodes.action_names):
    x_L = np.array(actions_LA[:, dim])
    if name in options.absolute:
      x_L[1:] -= actions_LA[:-1, dim]
      x_L[episodes.starts_E[:-1]] = 0
    moving_L |= np.abs(x_L) > options.idle_below
  return moving_L


def _columns(names: tuple[str, ...], wanted: tuple[str, ...]) -> np.ndarray:
  """Returns where each of a dataset's dimensions lies in the layout."""
  missing = [name for name in names if name not in wanted]
  if missing:
    raise ValueError(f"the layout has no dimension '{missing[0]}'; it has {', '.join(wanted)}")
  return np.array([wanted.index(name) for name in names], np.int64)


def _place(values: np.ndarray, columns: np.ndarray, width: int) -> np.ndarray:
  """Spreads the last axis over the columns of a wider one, zeros elsewhere."""
  if len(columns) == width and (columns == np.arange(width)).all():
    return values
  out = np.zeros((*values.shape[:-1], width), values.dtype)
  out[..., columns] = values
  return out
