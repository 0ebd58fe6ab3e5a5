"""Demonstrations of scripted experts, written as a standard RLDS dataset.

Every attempt is a function of (task, seed) alone and leaves one small file in OUT.partial, so the
dataset does not depend on the number of processes, and a killed collection continues where it was.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
from tensorflow_datasets import features as tfds_features
import tqdm

from oat_jax.data import shards
from oat_jax.data import write
from oat_jax.envs import env as env_lib
from oat_jax.envs import process

_FILE = "collection.json"
_REQUEST = "request.json"


def collect(
  suite_name: str,
  episodes: int,
  out: str | os.PathLike[str],
  *,
  seed: int = 0,
  noise: float = 0.0,
  cameras: tuple[str, ...] = (),
  image_size: int = 128,
  processes: int | None = None,
  progress: bool = True,
) -> dict[str, dict[str, int]]:
  """Collects `episodes` successes of the scripted expert for every task of a suite.

  A task's attempts have seeds `seed`, `seed` + 1, ... until there are enough successes; only those
  are kept. An episode ends at its first success: that step has `is_last`, `is_terminal` and reward
  1. The action stored is the one executed, clip(clip(expert) + noise * standard normal). Beside the
  dataset lies collection.json with the totals.

  Args:
    suite_name: a registered suite.
    episodes: successes per task.
    out: the dataset's directory; a finished one of the same request is left as it is.
    seed: first episode seed of every task.
    noise: standard deviation of the Gaussian noise on the actions, which lie in [-1, 1].
    cameras: cameras to store as `image_<camera>`.
    image_size: pixels.
    processes: simulator processes; one per core by default.
    progress: whether to show a progress bar.

  Returns:
    task -> {"attempts", "successes"}.

  Raises:
    ValueError: bad arguments.
    FileExistsError: `out` holds something else, or the beginnings of another collection.
    BlockingIOError: another process is collecting into `out`.
    RuntimeError: the expert does not succeed, or a simulator process died.
  """
  suite = env_lib.suite(suite_name)
  _check(episodes=episodes, seed=seed, noise=noise)
  request = {
    "suite": suite.name,
    "tasks": list(suite.tasks),
    "episodes": episodes,
    "seed": seed,
    "noise": float(noise),
    "cameras": list(cameras),
    "image_size": image_size if cameras else None,
    "max_steps": suite.max_steps,
  }
  out = pathlib.Path(out).absolute()
  processes = process.count(processes)
  totals = _finished(out, request)
  if totals is not None:
    print(f"{out} holds this collection already: {_words(totals)}")
    return totals
  versions = env_lib.versions(suite.name)
  # A missing simulator or camera is an error here, before anything is written.
  env_lib.make(suite.name, suite.tasks[0], cameras, image_size).close()
  with _claim(out, {**request, "versions": versions}) as partial:
    totals = _attempt_all(partial, request, processes, progress)
    _assemble(out, partial, request, versions, totals)
  return totals


def features(
  suite: env_lib.Suite, cameras: tuple[str, ...], image_size: int
) -> tfds_features.FeaturesDict:
  """Returns the features of a collected dataset."""
  image = tfds_features.Image(shape=(image_size, image_size, 3), encoding_format="jpeg")
  observation = {
    "state": tfds_features.Tensor(shape=(suite.state_dim,), dtype=np.float32),
    "proprioception": tfds_features.Tensor(shape=(suite.proprioception_dim,), dtype=np.float32),
    **{f"image_{camera}": image for camera in cameras},
  }
  metadata = {
    "task": tfds_features.Text(),
    "seed": np.int64,
    "success": np.bool_,
    "noise": np.float32,
  }
  return write.rlds_features(observation, suite.action_dim, metadata)


def demonstrate(env: env_lib.Env, seed: int, noise: float) -> dict[str, Any]:
  """Lets the expert act in episode `seed` and returns it in RLDS's structure, successful or not."""
  expert = env.expert()
  if expert is None:
    raise ValueError(f"task '{env.task}' of suite {env.suite.name} has no scripted expert")
  rng = np.random.default_rng([seed, *env.task.encode()])
  observation, _ = env.reset(seed=seed)
  steps, success = [], False
  while not success and len(steps) < env.suite.max_steps:
    noise_A = noise * rng.standard_normal(env.suite.action_dim)
    action_A = np.clip(expert.act(observation) + noise_A, -1, 1).astype(np.float32)
    steps.append(
      {
        "observation": observation,
        "action": action_A,
        "language_instruction": env.suite.instructions[env.task],
        "is_first": not steps,
        "is_last": False,
        "is_terminal": False,
        "reward": np.float32(0),
        "discount": np.float32(1),
      }
    )
    observation, _, _, _, info = env.step(action_A)
    success = info["success"]
  steps[-1].update(is_last=True, is_terminal=success, reward=np.float32(success))
  metadata = {
    "task": env.task,
    "seed": np.int64(seed),
    "success": success,
    "noise": np.float32(noise),
  }
  return {"steps": steps, "episode_metadata": metadata}


class Demonstrator:
  """What a simulator process holds: an environment per task, and where the attempts' files go."""

  def __init__(self, folder: str, request: dict[str, Any]):
    self._folder = pathlib.Path(folder)
    self._request = request
    self._envs: dict[str, env_lib.Env] = {}
    suite = env_lib.suite(request["suite"])
    self._features = features(suite, tuple(request["cameras"]), request["image_size"] or 1)

  def attempt(self, task: str, seed: int) -> bool:
    """Attempts an episode, leaves its file, and returns whether it succeeded."""
    if task not in self._envs:
      image_size = self._request["image_size"] or 1
      self._envs[task] = env_lib.make(
        self._request["suite"], task, tuple(self._request["cameras"]), image_size
      )
    episode = demonstrate(self._envs[task], seed, self._request["noise"])
    success = episode["episode_metadata"]["success"]
    record = write.serialize(self._features, episode) if success else b""
    path = self._folder / task / f"{seed:08d}.{'record' if success else 'failed'}"
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_bytes(record)
    scratch.replace(path)
    return success


def _attempt_all(
  partial: pathlib.Path, request: dict[str, Any], processes: int, progress: bool
) -> dict[str, dict[str, int]]:
  """Runs the attempts that are missing and returns attempts and successes per task.

  A seed is handed out only while successes and attempts under way cannot reach the number asked
  for, so none is wasted and the set of attempts is the same for any number of processes.
  """
  tasks, wanted = request["tasks"], request["episodes"]
  done = {task: _attempted(partial / task) for task in tasks}
  running: dict[str, set[int]] = {task: set() for task in tasks}

  def successes(task: str) -> int:
    return sum(done[task].values())

  def next_attempt() -> tuple[str, int] | None:
    for task in tasks:
      if successes(task) + len(running[task]) < wanted:
        number = request["seed"]
        while number in done[task] or number in running[task]:
          number += 1
        return task, number
    return None

  total = wanted * len(tasks)
  start = sum(map(successes, tasks))
  bar = tqdm.tqdm(total=total, initial=start, unit="episode", disable=not progress)
  workers: list[process.Worker] = []
  busy: dict[process.Worker, tuple[str, int]] = {}

  def hand_out(worker: process.Worker) -> bool:
    found = next_attempt()
    if found is None:
      return False
    task, number = found
    worker.submit([process.Call("attempt", found, f"task '{task}', seed {number}")])
    running[task].add(number)
    busy[worker] = found
    return True

  try:
    for _ in range(min(processes, total - start)):
      workers.append(process.Worker(f"{__name__}:Demonstrator", os.fspath(partial), request))
      hand_out(workers[-1])
    while busy:
      for worker in process.wait(list(busy)):
        task, number = busy.pop(worker)
        success = worker.result()
        running[task].remove(number)
        done[task][number] = success
        bar.update(int(success))
        bar.set_postfix_str(", ".join(f"{t} {successes(t)}/{len(done[t])}" for t in tasks))
        _check_expert(task, successes(task), len(done[task]), request["noise"])
      for worker in workers:
        if worker not in busy:
          hand_out(worker)
  except BaseException as error:
    process.close(workers, now=True)
    if isinstance(error, OSError) and error.filename is None:
      error.filename = os.fspath(partial)  # a full disk does not say which
    raise
  finally:
    bar.close()
  process.close(workers)
  return {task: {"attempts": len(done[task]), "successes": successes(task)} for task in tasks}


def _assemble(
  out: pathlib.Path,
  partial: pathlib.Path,
  request: dict[str, Any],
  versions: dict[str, str],
  totals: dict[str, dict[str, int]],
) -> None:
  """Makes the dataset from the attempts' files and moves it to `out`."""
  suite = env_lib.suite(request["suite"])
  cameras = tuple(request["cameras"])

  def records() -> Iterator[bytes]:
    for task in request["tasks"]:
      for path in sorted((partial / task).glob("*.record")):
        yield path.read_bytes()

  collection = {"request": request, "totals": totals, "versions": versions}
  description = (
    f"Scripted experts in {suite.name}, {_words(totals)}. Observed is the full state; goals are"
    f" seeds {request['seed']} onwards; Gaussian noise of {request['noise']} on the actions, those"
    " executed being stored."
    f" {json.dumps(versions)}"
  )
  whole = partial / "dataset"
  shutil.rmtree(whole, ignore_errors=True)
  write.write(
    whole,
    features(suite, cameras, request["image_size"] or 1),
    records(),
    name=suite.name.replace("/", "_"),
    description=description,
  )
  (whole / _FILE).write_text(json.dumps(collection, indent=2) + "\n")
  whole.replace(out)
  shutil.rmtree(partial)


def _check(*, episodes: int, seed: int, noise: float) -> None:
  if episodes < 1:
    raise ValueError(f"episodes is {episodes}; it must be at least 1")
  if seed < 0:
    raise ValueError(f"seed is {seed}; it must not be negative")
  if not 0 <= noise < np.inf:
    raise ValueError(
      f"noise is {noise}; it is a standard deviation: zero or a finite positive number"
    )


def _check_expert(task: str, successes: int, attempts: int, noise: float) -> None:
  if attempts >= 50 and successes < attempts / 50:
    raise RuntimeError(
      f"task '{task}': the expert succeeded in {successes} of {attempts} attempts at noise"
      f" {noise}; lower the noise"
    )


def _attempted(folder: pathlib.Path) -> dict[int, bool]:
  """Returns seed -> success of the attempts on file; deletes what a kill left half-written."""
  found = {}
  for path in folder.iterdir():
    if path.suffix in (".record", ".failed"):
      found[int(path.stem)] = path.suffix == ".record"
    else:
      path.unlink()
  return found


def _finished(out: pathlib.Path, request: dict[str, Any]) -> dict[str, dict[str, int]] | None:
  """Returns the totals of a finished collection of this request, None if there is none."""
  if not out.exists():
    return None
  if not out.is_dir():
    raise FileExistsError(f"{out} is a file; --out must be a directory")
  if not any(out.iterdir()):
    return None
  if not (out / _FILE).exists():
    raise FileExistsError(f"{out} holds something that is not a collection; choose another --out")
  collection = json.loads((out / _FILE).read_text())
  shards.check_same(out, collection["request"], request)
  return collection["totals"]


@contextlib.contextmanager
def _claim(out: pathlib.Path, request: dict[str, Any]) -> Iterator[pathlib.Path]:
  """Yields OUT.partial, locked for this process and belonging to this request."""
  partial = out.with_name(out.name + ".partial")
  partial.mkdir(parents=True, exist_ok=True)
  busy = BlockingIOError(
    f"another process is collecting into {out}; wait for it, or choose another --out"
  )
  # The system drops the lock when its holder dies, so a killed collection locks nobody out.
  with open(partial / "lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if not os.path.samestat(os.fstat(lock.fileno()), os.stat(partial / "lock")):
        raise busy
    except OSError:
      raise busy from None
    if _finished(out, {k: v for k, v in request.items() if k != "versions"}) is not None:
      shutil.rmtree(partial)
      raise FileExistsError(f"{out} was just finished by another process")
    path = partial / _REQUEST
    if path.exists():
      shards.check_same(partial, json.loads(path.read_text()), request)
    else:
      scratch = path.with_suffix(".writing")
      scratch.write_text(json.dumps(request, indent=2) + "\n")
      scratch.replace(path)
    for task in request["tasks"]:
      (partial / task).mkdir(exist_ok=True)
    yield partial


def _words(totals: dict[str, dict[str, int]]) -> str:
  return ", ".join(
    f"{task} {n['successes']} of {n['attempts']} attempts" for task, n in totals.items()
  )
