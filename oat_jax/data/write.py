"""Writes RLDS datasets in TFDS layout as TFRecord, without TensorFlow.

The directory holds `features.json`, `dataset_info.json` and `NAME-SPLIT.tfrecord-00000-of-000NN`,
so that `tfds.builder_from_directory` opens it and `builder.info.features.deserialize_example_np`
decodes its records; a record is one episode (RLDS: arXiv 2111.02767).

Long work, which a kill may interrupt, and several splits: `shards.writing`.
"""

from collections.abc import Iterable, Mapping
import os
from typing import Any

import cv2
import numpy as np
from tensorflow_datasets import features as tfds_features
from tensorflow_datasets.core import example_serializer

from oat_jax.data import shards

_JPEG_QUALITY = 95
_MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


def rlds_features(
  observation: Mapping[str, Any], action_dim: int, metadata: Mapping[str, Any]
) -> tfds_features.FeaturesDict:
  """Returns RLDS's standard features.

  Args:
    observation: name -> feature of one step's observation: a tfds feature, or a numpy dtype for a
      scalar.
    action_dim: A; actions are float32 (A,).
    metadata: name -> feature of `episode_metadata`.
  """
  return tfds_features.FeaturesDict(
    {
      "steps": tfds_features.Dataset(
        {
          "observation": tfds_features.FeaturesDict(dict(observation)),
          "action": tfds_features.Tensor(shape=(action_dim,), dtype=np.float32),
          "language_instruction": tfds_features.Text(),
          "is_first": np.bool_,
          "is_last": np.bool_,
          "is_terminal": np.bool_,
          "reward": np.float32,
          "discount": np.float32,
        }
      ),
      "episode_metadata": tfds_features.FeaturesDict(dict(metadata)),
    }
  )


def serialize(features: tfds_features.FeaturesDict, episode: Mapping[str, Any]) -> bytes:
  """Returns the record (a tf.train.Example) of one episode.

  Args:
    features: scalars and tensors of float32, int32, int64 and bool, `Text`, `Image` with encoding
      "jpeg" (quality 95) or "png", and a `Dataset` of those for the steps.
    episode: values in the same structure, `steps` an iterable of dicts, taken one by one; images
      uint8 (H, W, 3) RGB, or bytes encoded already, which are stored as they are.

  Raises:
    ValueError: a value is missing, unknown, or does not have its feature's shape or dtype.
  """
  encoded = features.encode_example(_prepare(features, episode, ""))
  specs: Any = features.get_serialized_info()
  serializer = example_serializer.ExampleSerializer(specs)
  # An Example is a map, whose order protobuf leaves open unless told: equal episodes, equal bytes.
  return serializer.get_tf_example(encoded).SerializeToString(deterministic=True)


def image_encoding(data: bytes) -> str | None:
  """Returns "jpeg" or "png", as the first bytes of an encoded image say; None for others."""
  return next((name for name, magic in _MAGIC.items() if data.startswith(magic)), None)


def decode_image(data: bytes) -> np.ndarray | None:
  """Returns (H, W, C) of an encoded image, colours as RGB; None where it cannot be decoded."""
  flat = np.frombuffer(data, np.uint8)
  image: Any = cv2.imdecode(flat, cv2.IMREAD_UNCHANGED) if len(flat) else None
  if image is None:
    return None
  image_HWC = image.reshape(*image.shape[:2], -1)  # grey images come without an axis for channels
  return cv2.cvtColor(image_HWC, cv2.COLOR_BGR2RGB) if image_HWC.shape[-1] == 3 else image_HWC


def _prepare(feature: Any, value: Any, path: str) -> Any:
  """Checks a value against its feature and encodes images, which tfds does only with TensorFlow."""
  if isinstance(feature, tfds_features.Dataset):
    return [_prepare(feature.feature, step, f"{path}[{i}]") for i, step in enumerate(value)]
  if isinstance(feature, tfds_features.FeaturesDict):
    if set(value) != set(feature):
      raise ValueError(
        f"episode '{path or '/'}' has {sorted(value)}; the features say {sorted(feature)}"
      )
    return {name: _prepare(feature[name], value[name], f"{path}/{name}") for name in feature}
  if isinstance(feature, tfds_features.Text):
    return value
  if isinstance(feature, tfds_features.Image):
    return _prepare_image(feature, value, path)
  return _check(feature, np.asarray(value), path).astype(feature.np_dtype)


def _prepare_image(feature: Any, value: Any, path: str) -> bytes:
  encoding = feature.encoding_format
  if encoding not in _MAGIC:
    raise ValueError(f"episode '{path}' is encoded as {encoding}; known are {', '.join(_MAGIC)}")
  if isinstance(value, bytes):
    image_HWC = decode_image(value) if image_encoding(value) == encoding else None
    if image_HWC is None:
      raise ValueError(
        f"episode '{path}' is {len(value)} bytes beginning with {value[:8]!r}, which are no"
        f" {encoding} image"
      )
    _check(feature, image_HWC, path)
    return value
  image_HWC = np.ascontiguousarray(_check(feature, np.asarray(value), path))
  if image_HWC.shape[-1] == 3:
    image_HWC = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR)
  quality = (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY) if encoding == "jpeg" else ()
  return cv2.imencode(f".{encoding}", image_HWC, quality)[1].tobytes()


def _check(feature: Any, array: np.ndarray, path: str) -> np.ndarray:
  fits = len(array.shape) == len(feature.shape) and all(
    want in (None, got) for got, want in zip(array.shape, feature.shape)
  )
  if not fits or not np.can_cast(array.dtype, feature.np_dtype, "same_kind"):
    raise ValueError(
      f"episode '{path}' is {array.dtype}{list(array.shape)}; the features say"
      f" {np.dtype(feature.np_dtype)}{list(feature.shape)}"
    )
  return array


def write(
  out: str | os.PathLike[str],
  features: tfds_features.FeaturesDict,
  episodes: Iterable[Mapping[str, Any] | bytes],
  *,
  name: str,
  version: str = "1.0.0",
  split: str = "train",
  description: str = "",
  shard_bytes: int = shards.SHARD_BYTES,
) -> int:
  """Writes a dataset of one split into `out` and returns its number of episodes.

  Everything goes into OUT.writing, which becomes OUT only when it is whole; what a killed writer
  left there is replaced.

  Args:
    out: the directory to make; it may exist if it is empty.
    features: see `serialize`.
    episodes: episodes, or records that `serialize` made.
    name: the dataset's name: small letters, digits and underscores.
    version: three numbers with dots.
    split: the split's name.
    description: what the data are and how they were made.
    shard_bytes: a shard is closed when it has grown to this size.

  Raises:
    FileExistsError: `out` is not empty.
    BlockingIOError: another process is writing it.
    ValueError: a bad name, no episodes, or an episode that does not fit the features.
  """
  with shards.writing(
    out, name=name, version=version, description=description, shard_bytes=shard_bytes
  ) as writer:
    for episode in episodes:
      writer.add(split, episode if isinstance(episode, bytes) else serialize(features, episode))
    writer.finish(features)
  return writer.counts[split]
