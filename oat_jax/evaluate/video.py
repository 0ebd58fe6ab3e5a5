"""Videos of episodes, from the actions that were executed in them."""

from collections.abc import Sequence
import itertools
import pathlib
import subprocess
from typing import Any

import numpy as np

FPS = 20  # slower than the simulators' control rates, so that one sees what goes wrong
SIZE = 256  # pixels


def encoder() -> str:
  """Returns the path of ffmpeg; ImportError, naming the extra, where it is not installed."""
  try:
    import imageio_ffmpeg
  except ImportError as error:
    raise ImportError(
      f"videos need imageio-ffmpeg ({error}); pip install 'oat-jax[sim]'"
    ) from error
  return imageio_ffmpeg.get_ffmpeg_exe()


def moments(steps: int, count: int) -> list[int]:
  """Returns up to `count` steps of an episode, evenly spaced, 0 and the last among them."""
  return np.unique(np.linspace(0, steps, count).round().astype(int)).tolist()


def replay(
  env: Any,
  task: str,
  seed: int,
  actions_SA: np.ndarray,
  camera: str,
  success: bool,
  at: Sequence[int] | None = None,
) -> list[np.ndarray]:
  """Returns the frames, uint8 (H, W, 3), of an episode whose actions are executed once more.

  Args:
    env: a `VectorEnv` that renders `camera`, with the horizon of the episode.
    task, seed: of the episode.
    actions_SA: as they were executed.
    camera: to look through.
    success: how the episode ended.
    at: steps to look at, rising from 0 to the last; every one if None.

  Raises:
    RuntimeError: the episode ends otherwise: what is seen would not be what was reported.
  """
  state = env.start([(task, seed)])
  frames = [state.observation[f"image_{camera}"][0, -1]]
  for begin, end in itertools.pairwise(range(len(actions_SA) + 1) if at is None else at):
    state = env.step(actions_SA[None, begin:end])  # it renders what is behind the last one only
    frames.append(state.observation[f"image_{camera}"][0, -1])
  ended, wanted = (int(state.steps[0]), bool(state.success[0])), (len(actions_SA), success)
  if ended != wanted:
    raise RuntimeError(
      f"task '{task}', seed {seed}: acted again, the episode stands at (steps, success) {ended}; "
      f"in the report it is {wanted}"
    )
  return frames


def write(path: pathlib.Path, frames: list[np.ndarray], fps: int = FPS) -> None:
  """Writes frames, uint8 (H, W, 3), as H.264 in an mp4 that is whole or not there.

  H and W must be even. RuntimeError, with ffmpeg's reason, where it fails.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(".partial")
  height, width, _ = frames[0].shape
  raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)]
  coded = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-f", "mp4", "-y", str(temporary)]
  done = subprocess.run(
    [encoder(), "-loglevel", "error", *raw, "-i", "-", *coded],
    input=b"".join(frame.tobytes() for frame in frames),
    capture_output=True,
  )
  if done.returncode:
    temporary.unlink(missing_ok=True)
    said = done.stderr.decode(errors="replace").strip()
    raise RuntimeError(f"ffmpeg wrote no {path}: {said.splitlines()[0] if said else 'no reason'}")
  temporary.replace(path)
