"""Writes RLDS datasets in TFDS layout as TFRecord, without TensorFlow.

The directory holds `features.json`, `dataset_info.json` and `NAME-SPLIT.tfrecord-00000-of-000NN`,
so that `tfds.builder_from_directory` opens it and `builder.info.features.deserialize_example_np`
decodes its records; a record is one episode (RLDS: arXiv 2111.02767).
"""

from collections.abc import Iterable, Mapping
import json
import os
import pathlib
import re
import shutil
import struct
from typing import Any, BinaryIO

import cv2
import numpy as np
from tensorflow_datasets import features as tfds_features
from tensorflow_datasets.core import example_serializer

from oat_jax.data import tfrecord

_JPEG_QUALITY = 95


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
    features: scalars and tensors of float32, int32, int64 and bool, `Text`,
      `Image(encoding_format="jpeg")`, and a `Dataset` of those for the steps.
    episode: values in the same structure, `steps` a list of dicts; images uint8 (H, W, 3) RGB.

  Raises:
    ValueError: a value is missing, unknown, or does not have its feature's shape or dtype.
  """
  encoded = features.encode_example(_prepare(features, episode, ""))
  specs: Any = features.get_serialized_info()
  serializer = example_serializer.ExampleSerializer(specs)
  # An Example is a map, whose order protobuf leaves open unless told: equal episodes, equal bytes.
  return serializer.get_tf_example(encoded).SerializeToString(deterministic=True)


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
  array = np.asarray(value)
  fits = len(array.shape) == len(feature.shape) and all(
    want in (None, got) for got, want in zip(array.shape, feature.shape)
  )
  if not fits or not np.can_cast(array.dtype, feature.np_dtype, "same_kind"):
    raise ValueError(
      f"episode '{path}' is {array.dtype}{list(array.shape)}; the features say"
      f" {np.dtype(feature.np_dtype)}{list(feature.shape)}"
    )
  if isinstance(feature, tfds_features.Image):
    quality = (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY)
    return cv2.imencode(".jpg", cv2.cvtColor(array, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
  return array.astype(feature.np_dtype)


def write(
  out: str | os.PathLike[str],
  features: tfds_features.FeaturesDict,
  episodes: Iterable[Mapping[str, Any] | bytes],
  *,
  name: str,
  version: str = "1.0.0",
  split: str = "train",
  description: str = "",
  shard_bytes: int = 64 << 20,
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
    ValueError: a bad name, no episodes, or an episode that does not fit the features.
  """
  if not re.fullmatch("[a-z][a-z0-9_]*", name):
    raise ValueError(
      f"dataset name '{name}': write small letters, digits and underscores, a letter first"
    )
  out = pathlib.Path(out).absolute()
  if out.exists() and any(out.iterdir()):
    raise FileExistsError(f"{out} is not empty; choose another directory or delete it")
  partial = out.with_name(out.name + ".writing")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    prefix = f"{name}-{split}.tfrecord"
    lengths, num_bytes = _write_shards(partial, features, episodes, shard_bytes)
    if not lengths:
      raise ValueError(f"no episodes to write into {out}")
    for i in range(len(lengths)):
      (partial / f"{i}.shard").rename(partial / f"{prefix}-{i:05d}-of-{len(lengths):05d}")
    features.save_config(os.fspath(partial))
    info = {
      "name": name,
      "version": version,
      "description": description,
      "fileFormat": "tfrecord",
      "releaseNotes": {version: description.partition("\n")[0]},
      "splits": [
        {
          "name": split,
          "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
          "numBytes": str(num_bytes),
          "shardLengths": [str(length) for length in lengths],
        }
      ],
    }
    (partial / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    partial.replace(out)
  except BaseException as error:
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(error, OSError) and error.filename is None:
      error.filename = os.fspath(partial)  # a full disk does not say which
    raise
  return sum(lengths)


def _write_shards(
  directory: pathlib.Path, features: Any, episodes: Iterable[Any], shard_bytes: int
) -> tuple[list[int], int]:
  """Writes 0.shard, 1.shard, ...; returns their numbers of records and the bytes of all records."""
  lengths, num_bytes = [], 0
  shard: BinaryIO | None = None
  try:
    for episode in episodes:
      record = episode if isinstance(episode, bytes) else serialize(features, episode)
      if shard is None or shard.tell() >= shard_bytes:
        if shard is not None:
          shard.close()
        shard = open(directory / f"{len(lengths)}.shard", "wb")
        lengths.append(0)
      length = struct.pack("<Q", len(record))
      for part in (length, record):
        shard.write(part)
        shard.write(struct.pack("<I", tfrecord.masked_crc(part)))
      lengths[-1] += 1
      num_bytes += len(record)
  finally:
    if shard is not None:
      shard.close()
  return lengths, num_bytes
