"""Camera frames against OpenCV's and Pillow's decoders; damaged, changed and resized ones."""

import io
import os
import re
import tracemalloc

import cv2
import made
import numpy as np
from PIL import Image
import pytest

from oat_jax.data import images

RNG = np.random.default_rng(0)
JPEG, PNG = made.image(RNG, 12, 16), made.image(RNG, 12, 16, ext=".png")
PIXELS = RNG.integers(0, 256, (20, 31, 3), np.uint8)


def save(pixels, **options):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, **options)
  return file.getvalue()


def exif(orientation):
  tags = Image.Exif()
  tags[0x0112] = orientation
  return tags


# Files as different encoders write them.
FILES = {
  "baseline": save(PIXELS, format="JPEG", quality=90),
  "progressive": save(PIXELS, format="JPEG", progressive=True, optimize=True),
  "subsampled": save(PIXELS, format="JPEG", subsampling="4:2:0"),
  "grey jpeg": save(PIXELS[..., 0], format="JPEG"),
  "long comment": save(PIXELS, format="JPEG", comment=b"\xff\xc0\x00\x11\x08" * 999),
  "turned": save(PIXELS, format="JPEG", exif=exif(6)),
  "opencv": cv2.imencode(".jpg", PIXELS)[1].tobytes(),
  "restarts": cv2.imencode(".jpg", PIXELS, (cv2.IMWRITE_JPEG_RST_INTERVAL, 2))[1].tobytes(),
  "png": save(PIXELS, format="PNG"),
  "grey png": save(PIXELS[..., 0], format="PNG"),
  "palette": save(np.array(Image.fromarray(PIXELS).quantize(16).convert("RGB")), format="PNG"),
}
FILES["fill bytes"] = FILES["baseline"][:2] + b"\xff" * 5 + FILES["baseline"][2:]


def inspect(*frames):
  """Inspects frames that lie in one record, behind other bytes."""
  payload = b"before" + b"|".join(frames)
  lengths = [len(frame) for frame in frames]
  starts = [6 + sum(lengths[:i]) + i for i in range(len(frames))]
  return images.inspect(memoryview(payload), starts, lengths)


@pytest.mark.parametrize("name", FILES)
def test_headers_and_pixels_are_those_of_other_decoders(name):
  data = FILES[name]
  height, width, known = images.header(memoryview(data))
  assert (height, width) == PIXELS.shape[:2]
  assert images.header(data[:known])[:2] == (height, width)
  mine = images.decode(memoryview(data))
  assert mine.dtype == np.uint8 and mine.shape == PIXELS.shape
  expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
  # PNG is exact; of JPEG the standard lets an inverse transform be off by one, colours by a little.
  tolerance = 0 if "jpeg" not in name and data[0] == 0x89 else 3
  assert np.abs(mine.astype(int) - expected).max() <= tolerance
  assert inspect(data) == (height, width)


def test_every_shorter_header_is_an_error():
  for data in (JPEG, PNG):
    known = images.header(data)[2]
    for end in range(known):
      with pytest.raises(ValueError, match="no bytes|neither JPEG nor PNG|truncated"):
        images.header(data[:end])


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "no bytes of an image"),
    (b"GIF89a and more", "neither JPEG nor PNG; the bytes begin with 47 49 46 38 39 61 20 61"),
    (b"\0" * 200, "neither JPEG nor PNG"),
    (JPEG[:10], "without a frame header: truncated or damaged"),
    (JPEG[:-2], "no end marker: it is cut off"),
    (JPEG[: len(JPEG) // 2], "cut off|truncated"),
    (PNG[:-1], "no end marker: it is cut off"),
    (PNG[:30], "no end marker: it is cut off"),
    (made.image(RNG, 16, 12), "the image is 16x12 (height x width), step 0's 12x16"),
    (made.image(RNG, 12, 15, ext=".png"), "the image is 12x15"),
  ],
)
def test_the_step_of_a_wrong_frame_is_named(data, message):
  pattern = message if "|" in message else re.escape(message)
  with pytest.raises(ValueError, match=f"^step 2: .*({pattern})"):
    inspect(JPEG, JPEG, data, JPEG)
  if "step 0's" not in message and "12x15" not in message:
    with pytest.raises(ValueError, match=f"^step 0: .*({pattern})"):
      inspect(data, JPEG)


def test_frames_of_one_episode_may_be_of_several_encoders():
  jpegs = [FILES[name] for name in FILES if FILES[name][0] == 0xFF]
  assert inspect(*jpegs, FILES["png"], *jpegs, FILES["palette"]) == PIXELS.shape[:2]
  # Bytes behind the end, as cameras' firmware adds them, do no harm.
  assert inspect(JPEG, JPEG + b"\0\0padding", PNG + b"\0") == (12, 16)


def test_bytes_that_do_not_decode_are_errors():
  for data in (b"", b"garbage", JPEG[:4], PNG[:40], PNG[:33] + bytes(30) + PNG[63:]):
    with pytest.raises(ValueError, match="no bytes of an image|does not decode"):
      images.decode(data)


@pytest.fixture(params=["tfrecord", "array_record"])
def made_in(request, tmp_path):
  """A directory of the format, the paths of its shards and its images, step by step."""
  features, payloads = made.small(".png")
  paths = made.write(tmp_path, features, [payloads[:2], payloads[2:]], request.param)
  stored = [
    data
    for payload in payloads
    for data in made.Example.FromString(payload)
    .features.feature["steps/observation/top"]
    .bytes_list.value
  ]
  return tmp_path, paths, np.stack([images.decode(data) for data in stored])


def test_any_frames_in_any_order(made_in):
  path, _, expected = made_in
  camera = made.read(path).cameras["top"]
  order = np.random.default_rng(0).integers(0, len(expected), 100)
  np.testing.assert_array_equal(camera(order), expected[order])
  assert camera(np.zeros(0, int)).shape == (0, 12, 16, 3)
  assert camera.size == (12, 16) and camera.feature == "steps/observation/top"


def test_a_repeated_first_frame_is_decoded_once(made_in, monkeypatch):
  path, _, expected = made_in
  camera, calls, decode = made.read(path).cameras["top"], [], images.decode
  monkeypatch.setattr(images, "decode", lambda data: calls.append(0) or decode(data))
  steps = np.array([4, 4, 4, 5, 4])  # episode 2 begins at step 4
  np.testing.assert_array_equal(camera(steps), expected[steps])
  assert len(calls) == 3


def test_frames_are_resized_by_area(made_in):
  path, _, expected = made_in
  camera = made.read(path, image_size=(6, 4)).cameras["top"]
  assert camera.size == (6, 4)
  # Whole blocks of 2 x 4 pixels: area interpolation is their mean.
  means = expected.reshape(-1, 6, 2, 4, 4, 3).mean((2, 4))
  np.testing.assert_allclose(camera(np.arange(len(expected))), means, atol=0.51)
  assert made.read(path, image_size=(30, 20)).cameras["top"](np.arange(2)).shape == (2, 30, 20, 3)


def test_a_frame_that_passes_the_check_of_headers_but_not_the_decoder_is_named(tmp_path):
  def damage(features):
    images_of = features["steps/observation/top"].bytes_list.value
    images_of[1] = images_of[1][:33] + bytes(len(images_of[1]) - 45) + images_of[1][-12:]

  features, payloads = made.small(".png")
  paths = made.write(tmp_path, features, [payloads[:2], made.replaced(payloads[2:], 2, damage)])
  episodes = made.read(tmp_path)
  good = [step for step in range(15) if step != 11]
  assert len(episodes.cameras["top"](np.array(good))) == 14
  message = f"{re.escape(str(paths[1]))}: record 2: step 1: 'steps/observation/top': .*not decode"
  with pytest.raises(ValueError, match=message):
    episodes.cameras["top"](np.array([3, 11]))


def test_a_shard_that_changed_since_it_was_indexed_is_an_error(made_in):
  path, paths, expected = made_in
  camera = made.read(path).cameras["top"]
  whole = paths[1].read_bytes()
  paths[1].write_bytes(whole[:1000] + whole[1001:] + b"\0")
  with pytest.raises(ValueError, match=f"{re.escape(str(paths[1]))}: .*changed since it was index"):
    camera(np.array([4]))
  np.testing.assert_array_equal(camera(np.arange(4)), expected[:4])
  paths[0].unlink()
  with pytest.raises(
    FileNotFoundError, match="00000-of-00002: a shard of split 'train' is missing"
  ):
    made.read(path)


def test_a_shard_overwritten_while_it_is_open_is_an_error(tmp_path):
  features, payloads = made.small(".png")
  (path,) = made.write(tmp_path, features, [payloads])
  camera = made.read(tmp_path).cameras["top"]
  before = camera(np.array([0]))
  stat = os.stat(path)
  with open(path, "r+b") as file:  # the same file to whoever has it open
    file.seek(stat.st_size // 2)
    file.write(bytes(2000))
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  with pytest.raises(ValueError, match="changed since it was indexed"):
    camera(np.arange(15))
  assert before.any()


def test_cameras_of_different_sizes_need_one_size(tmp_path):
  features, payloads = made.small()
  payloads += made.small(size=(10, 16))[1]
  paths = made.write(tmp_path, features, [payloads[:3], payloads[3:]])
  first, second = (re.escape(f"{s} in {p}") for s, p in (("12x16", paths[0]), ("10x16", paths[1])))
  with pytest.raises(
    ValueError, match=f"'top' has .* 2 sizes.*{first}: record 0; {second}: record 2"
  ):
    made.read(tmp_path)
  camera = made.read(tmp_path, image_size=(8, 8)).cameras["top"]
  assert camera(np.arange(30)).shape == (30, 8, 8, 3)


def test_a_thumbnail_does_not_hide_that_a_jpeg_is_cut_off():
  ramp = np.arange(30 * 40 * 3).reshape(30, 40, 3).astype(np.uint8)
  data = cv2.imencode(".jpg", ramp)[1].tobytes()
  thumbnail = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
  whole = data[:2] + thumbnail + data[2:]
  assert images.inspect(whole, [0], [len(whole)]) == (30, 40)
  with pytest.raises(ValueError, match="step 0: the image has no end marker"):
    images.inspect(whole, [0], [len(whole) - 40])


def test_long_headers_are_not_compared_at_once():
  data = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
  other = cv2.imencode(".jpg", np.zeros((8, 16, 3), np.uint8))[1].tobytes()
  comment = b"\xff\xfe" + (60_000).to_bytes(2, "big") + bytes(59_998)
  frames = [each[:2] + comment + each[2:] for each in [data] * 50 + [other]]
  starts = np.cumsum([0, *map(len, frames)])[:-1].tolist()
  lengths = list(map(len, frames))
  tracemalloc.start()
  assert images.inspect(b"".join(frames), starts[:50], lengths[:50]) == (8, 8)
  assert tracemalloc.get_traced_memory()[1] < 8e6  # the frames once, as they are joined, and little
  tracemalloc.stop()
  with pytest.raises(ValueError, match="step 50: the image is 8x16 .*, step 0's 8x8"):
    images.inspect(b"".join(frames), starts, lengths)
