"""Frames of a video at given times, decoded forwards: a file is sought in only to go back."""

from collections.abc import Iterator
import pathlib
from typing import Any

import numpy as np

from oat_jax.data import sources

try:
  import av
  import av.error
except ImportError as error:
  raise sources.missing("av") from error


class Video:
  """The frames of one camera, one file after another; the last one stays open."""

  def __init__(self, tolerance: float):
    """`tolerance` in seconds; half the time between two frames at most."""
    self._tolerance = tolerance
    self._path: pathlib.Path | None = None
    self._container: Any = None
    self._frames: Iterator[Any] = iter(())
    self._frame: Any = None  # the one decoded last; it is the next one, if a time asks for it

  def frames(self, path: pathlib.Path, times_T: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the frame at each of the times, uint8 (H, W, 3) RGB.

    Args:
      path: the file.
      times_T: seconds since the beginning of the file, ascending.

    Raises:
      ValueError: the file is none, corrupt or ends too early, or no frame is within the tolerance
        of a time. The message names the frame, counted in `times_T`.
    """
    try:
      if not path.is_file():
        raise ValueError("there is no such file")
      self._go_to(path, float(times_T[0]))
      for t, time in enumerate(times_T.tolist()):
        while self._frame is None or self._frame.time < time - self._tolerance:
          last = None if self._frame is None else self._frame.time
          self._frame = next(self._frames, None)
          if self._frame is None:
            end = "holds no frame there" if last is None else f"ends with a frame at {last:.4f} s"
            raise ValueError(f"frame {t} should be at {time:.4f} s, but the video {end}")
        if self._frame.time > time + self._tolerance:
          raise ValueError(
            f"frame {t} should be at {time:.4f} s, the nearest is at {self._frame.time:.4f} s, off"
            f" by more than {self._tolerance} s"
          )
        if self._frame.is_corrupt:
          raise ValueError(f"frame {t} at {time:.4f} s is damaged; fetch the file again")
        yield self._frame.to_ndarray(format="rgb24")
    except (ValueError, av.error.FFmpegError) as error:
      self._close()
      problem = f"cannot be decoded ({error})" if isinstance(error, av.error.FFmpegError) else error
      raise ValueError(f"{path}: {problem}") from error

  def _go_to(self, path: pathlib.Path, time: float) -> None:
    """Makes the next frame decoded one at `time` or before it."""
    passed = self._frame is not None and self._frame.time > time + self._tolerance
    if self._container is not None and self._path == path and not passed:
      return
    self._close()
    self._path, self._container = path, av.open(str(path))
    if not self._container.streams.video:
      raise ValueError("there is no video stream in it; the file may be truncated")
    stream = self._container.streams.video[0]
    stream.thread_type = "AUTO"
    if time > 0:  # to the key frame before it
      self._container.seek(int(time / stream.time_base), stream=stream)
    self._frames = self._container.decode(stream)

  def _close(self) -> None:
    if self._container is not None:
      self._container.close()
    self._path, self._container, self._frames, self._frame = None, None, iter(()), None
