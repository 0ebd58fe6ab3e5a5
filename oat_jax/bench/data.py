"""The data path on generated datasets: index, windows of numbers, windows of images, memory.

Figures are windows or steps per CPU second of one process, and ratios within the run.
"""

from collections.abc import Mapping
import functools
import itertools
import os
import pathlib
import statistics
import tempfile
from typing import Any

import cv2
import numpy as np
from tensorflow_datasets import features as tfds_features

from oat_jax.bench import clock
from oat_jax.data import mixture
from oat_jax.data import pipeline
from oat_jax.data import rlds
from oat_jax.data import standardize
from oat_jax.data import windows as windows_lib
from oat_jax.data import write

CAMERAS = (("left", "observation/left"), ("right", "observation/right"))
STEPS, IMAGE, STATE, ACTION = 100, 84, 39, 4
T, C = 2, 32


def run(configs: Mapping[str, Any], scale: float = 1.0) -> dict[str, float]:
  """Windows of 2 observations of 39 numbers, 32 actions of 4, and 2 cameras of 84 x 84."""
  del configs
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    several = lambda count: max(4, round(count * scale))
    figures = _index(root, several(200), several(10_000))
    figures |= _numbers(root, several(300), several(10_000))
    return figures | _images(root, several(20), several(10_000))


def _index(root: pathlib.Path, episodes: int, long_episodes: int) -> dict[str, float]:
  """Building and opening the index of a dataset with images, and of a million steps without."""
  print(f"writing {episodes} episodes of {STEPS} steps with 2 cameras", flush=True)
  write_dataset(root / "images", episodes, cameras=True)
  write_dataset(root / "long", long_episodes, cameras=False)
  figures = {}
  for name, standard in (("images", _standard(CAMERAS)), ("long", _standard(()))):
    open_it = functools.partial(rlds.read, root / name, "train", standard, cache=root / "cache")
    build = clock.cost(open_it, 1, warm_up=0)
    opening = clock.cost(open_it, 1, warm_up=0)
    read = open_it()
    steps, size = len(read.actions_LA), _size(read.cache)
    figures[f"data_index_{name}_steps"] = steps
    figures[f"data_index_{name}_build_steps_per_cpu_s"] = steps / build.cpu_s
    figures[f"data_index_{name}_build_steps_per_wall_s"] = steps / build.wall_s
    figures[f"data_index_{name}_open_wall_ms"] = 1e3 * opening.wall_s
    figures[f"data_index_{name}_bytes_per_step"] = size / steps
    figures[f"data_index_{name}_share_of_shards"] = size / _size(root / name)
    count = functools.partial(read.statistics, np.arange(read.num_episodes))
    counted = clock.cost(count, 1, warm_up=0)
    figures[f"data_index_{name}_statistics_cpu_ms"] = 1e3 * counted.cpu_s
  return figures


def _numbers(root: pathlib.Path, repeats: int, batches: int) -> dict[str, float]:
  """Windows without images: the pipeline, and its two parts, the order and the gathering."""
  read = rlds.read(root / "long", "train", _standard(()), cache=root / "cache")
  windows = windows_lib.Windows(read, np.arange(read.num_episodes), T, C)
  figures = {}
  for batch_size in (64, 256):
    for threads in (0, 1, 2):
      stream = pipeline.make_pipeline(windows, batch_size=batch_size, seed=0, threads=threads)
      measured = clock.cost(lambda stream=stream: next(stream), repeats, warm_up=20)
      name = f"data_batch{batch_size}_threads{threads}"
      figures[f"{name}_windows_per_wall_s"] = batch_size / measured.wall_s
      figures[f"{name}_windows_per_cpu_s"] = batch_size / measured.cpu_s
  order = mixture.Order([len(windows)], [1], 0)
  places = np.arange(256)
  indices = order(places)
  parts = {"order": lambda: order(places), "gather": lambda: windows(indices)}
  for name, measured in clock.typical_costs(parts, repeats).items():
    figures[f"data_{name}_batch256_windows_per_cpu_s"] = 256 / measured.cpu_s
  stream = pipeline.make_pipeline(windows, batch_size=256, seed=0, threads=1)
  return figures | _growth("data", stream, batches)


def _images(root: pathlib.Path, repeats: int, batches: int) -> dict[str, float]:
  """Windows with images beside the decoder alone, on the same frames, taking turns."""
  read = rlds.read(root / "images", "train", _standard(CAMERAS), cache=root / "cache")
  windows = windows_lib.Windows(read, np.arange(read.num_episodes), T, C)
  rows = 64
  frames = _frames(read, 5 * repeats * rows)  # none comes twice: caches help neither side
  decode = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  per_window = T * len(CAMERAS)

  parts = itertools.cycle(np.array_split(np.arange(len(frames)), 5 * repeats))

  def decoder() -> None:
    for i in next(parts):
      decode(frames[i])

  streams = {n: pipeline.make_pipeline(windows, batch_size=rows, threads=n) for n in (0, 1, 2)}
  # Short blocks, taking turns: both of a pair see the same machine, whatever else it does.
  blocks: dict[Any, list[float]] = {"decoder": [], 0: []}
  for _ in range(repeats):
    for name, call in (("decoder", decoder), (0, lambda: next(streams[0]))):
      blocks[name].append(rows / clock.cost(call, 4, warm_up=1).cpu_s)
  shares = [mine / ceiling for ceiling, mine in zip(blocks["decoder"], blocks[0])]
  walls: dict[int, list[float]] = {1: [], 2: []}
  for _ in range(5):
    for n, values in walls.items():
      values.append(clock.cost(lambda n=n: next(streams[n]), repeats, warm_up=10).wall_s)
  decoded = statistics.median(blocks["decoder"])
  figures = {
    "data_images_decoder_images_per_cpu_s": per_window * decoded,
    "data_images_decoder_windows_per_cpu_s": decoded,
    "data_images_windows_per_cpu_s": statistics.median(blocks[0]),
    "data_images_pixels_per_cpu_s": statistics.median(blocks[0]) * per_window * IMAGE**2,
    "data_images_share_of_decoder": statistics.median(shares),
    "data_images_threads1_windows_per_wall_s": rows / statistics.median(walls[1]),
    "data_images_threads2_windows_per_wall_s": rows / statistics.median(walls[2]),
    "data_images_threads2_over_threads1": statistics.median(
      one / two for one, two in zip(walls[1], walls[2])
    ),
  }
  stream = pipeline.make_pipeline(windows, batch_size=4, seed=1, threads=1)
  return figures | _growth("data_images", stream, batches)


def _growth(name: str, stream: Any, batches: int) -> dict[str, float]:
  """Resident memory behind a tenth of the batches, and behind all of them."""
  resident = []
  for count in (batches // 10, batches - batches // 10):
    for _ in range(count):
      next(stream)
    resident.append(_resident())
  return {
    f"{name}_resident_mb_after_{batches // 10}_batches": resident[0] / 1e6,
    f"{name}_resident_mb_after_{batches}_batches": resident[1] / 1e6,
  }


def _resident() -> int:
  """Bytes of this process in memory, those of mapped files included."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def _size(folder: pathlib.Path | None) -> int:
  return sum(path.stat().st_size for path in pathlib.Path(folder or "").iterdir())


def _standard(cameras: Any) -> standardize.Standard:
  return standardize.plain(task="language_instruction", cameras=cameras)


def _frames(read: rlds.Episodes, windows: int) -> list[bytes]:
  """The stored bytes of the frames of random windows."""
  rng = np.random.default_rng(0)
  frames = []
  for step in rng.integers(0, len(read.actions_LA), windows):
    episode = int(np.searchsorted(read.starts_E, step, "right") - 1)
    for camera in read.cameras.values():
      for at in (max(step - 1, read.starts_E[episode]), step):
        frames.append(camera.records.read(episode, *camera.spans_L2[at].tolist()))
  return frames


def write_dataset(out: pathlib.Path, episodes: int, cameras: bool) -> None:
  """Episodes of smooth random motion; the long dataset repeats a few of them."""
  rng = np.random.default_rng(0)
  observation = {"state": tfds_features.Tensor(shape=(STATE,), dtype=np.float32)}
  if cameras:
    image = tfds_features.Image(shape=(IMAGE, IMAGE, 3), encoding_format="jpeg")
    observation |= {path.split("/")[1]: image for _, path in CAMERAS}
  features = write.rlds_features(observation, ACTION, {"name": tfds_features.Text()})
  record = lambda: write.serialize(features, _episode(rng, cameras))
  few = None if cameras else [record() for _ in range(8)]
  records = (few[i % 8] if few else record() for i in range(episodes))
  write.write(out, features, records, name="generated")


def _episode(rng: np.random.Generator, cameras: bool) -> dict[str, Any]:
  states_LS = rng.normal(size=(STEPS, STATE)).cumsum(0).astype(np.float32)
  scenes = {path.split("/")[1]: _scene(rng) for _, path in CAMERAS} if cameras else {}
  steps = [
    {
      "observation": {"state": states_LS[t], **{k: np.roll(v, t, 1) for k, v in scenes.items()}},
      "action": np.tanh(states_LS[t, :ACTION]),
      "language_instruction": "put the carrot on the plate",
      "is_first": t == 0,
      "is_last": t == STEPS - 1,
      "is_terminal": False,
      "reward": np.float32(0),
      "discount": np.float32(1),
    }
    for t in range(STEPS)
  ]
  return {"steps": steps, "episode_metadata": {"name": ""}}


def _scene(rng: np.random.Generator) -> np.ndarray:
  """An image with the detail of a photograph: about 3 KB as JPEG of quality 95."""
  coarse = cv2.resize(rng.integers(0, 256, (7, 7, 3), np.uint8), (IMAGE, IMAGE))
  noise = rng.integers(-6, 7, (IMAGE, IMAGE, 1))
  return np.clip(coarse + noise, 0, 255).astype(np.uint8)
