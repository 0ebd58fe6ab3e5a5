"""Small datasets of other formats, written as the tools of those formats write them."""

import json

import cv2
import numpy as np


def images(seed, steps, height=16, width=24):
  """uint8 (steps, height, width, 3); noise, so that no two frames, rows or columns are equal."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (steps, height, width, 3), np.uint8)


def robomimic(path, lengths, *, mask=None, env_name="Lift", seed=0, rewards=None):
  """Returns {demo: {"actions", "rewards", "obs"}}; demo i has lengths[i] steps."""
  import h5py

  rng, content = np.random.default_rng(seed), {}
  with h5py.File(path, "w") as file:
    data = file.create_group("data")
    data.attrs["total"] = sum(lengths)
    env = {"env_name": env_name, "type": 1, "env_kwargs": {}}
    data.attrs["env_args"] = json.dumps(env, indent=4)
    for i, steps in enumerate(lengths):
      demo = data.create_group(f"demo_{i}")
      demo.attrs["num_samples"], demo.attrs["model_file"] = steps, "<mujoco/>"
      reward = np.zeros(steps)
      reward[-1:] = 1 if rewards is None else rewards[i]
      obs = {
        "agentview_image": images(seed + i, steps),
        "robot0_eef_pos": rng.normal(size=(steps, 3)),
        "object": rng.normal(size=(steps, 10)).astype(np.float32),
        "gripper_open": rng.integers(0, 2, steps),
      }
      content[f"demo_{i}"] = {
        "actions": rng.uniform(-1, 1, (steps, 7)), "rewards": reward, "obs": obs
      }  # fmt: skip
      demo.create_dataset("actions", data=content[f"demo_{i}"]["actions"])
      demo.create_dataset("states", data=rng.normal(size=(steps, 32)))
      demo.create_dataset("rewards", data=reward)
      demo.create_dataset("dones", data=np.zeros(steps, np.int64))
      for name, values in obs.items():
        demo.create_dataset(f"obs/{name}", data=values, compression="gzip")
        demo.create_dataset(f"next_obs/{name}", data=values, compression="gzip")
    for name, demos in (mask or {}).items():
      file[f"mask/{name}"] = np.array(demos, dtype="S8")
  return content


def libero(path, lengths, *, language="put the bowl on the plate", seed=0):
  """Returns {demo: {"actions", "obs"}}."""
  import h5py

  rng, content = np.random.default_rng(seed), {}
  path.parent.mkdir(parents=True, exist_ok=True)
  with h5py.File(path, "w") as file:
    data = file.create_group("data")
    if language is not None:
      problem = {"problem_name": "libero_kitchen", "domain_name": "robosuite"}
      data.attrs["problem_info"] = json.dumps(problem | {"language_instruction": language})
    data.attrs["env_args"], data.attrs["bddl_file_name"] = json.dumps({"type": 1}), "task.bddl"
    data.attrs["macros_image_convention"], data.attrs["num_demos"] = "opengl", len(lengths)
    for i, steps in enumerate(lengths):
      demo = data.create_group(f"demo_{i}")
      demo.attrs["num_samples"], demo.attrs["init_state"] = steps, rng.normal(size=47)
      poses = rng.normal(size=(steps, 6))
      obs = {
        "agentview_rgb": images(seed + i, steps, 16, 16),
        "eye_in_hand_rgb": images(seed + i + 50, steps, 16, 16),
        "ee_states": poses,
        "ee_pos": poses[:, :3],
        "ee_ori": poses[:, 3:],
        "gripper_states": rng.normal(size=(steps, 2)),
        "joint_states": rng.normal(size=(steps, 7)),
      }
      content[f"demo_{i}"] = {"actions": rng.uniform(-1, 1, (steps, 7)), "obs": obs}
      done = np.zeros(steps, np.uint8)
      done[-1:] = 1
      for name, values in (
        ("actions", content[f"demo_{i}"]["actions"]),
        ("states", rng.normal(size=(steps, 47))),
        ("robot_states", rng.normal(size=(steps, 9))),
        ("rewards", done),
        ("dones", done),
      ):
        demo.create_dataset(name, data=values)
      for name, values in obs.items():
        demo.create_dataset(f"obs/{name}", data=values)
  return content


def video(path, frames, fps, codec="libx264", options=None):
  """Encodes uint8 (frames, H, W, 3) with key frames and pixel format as LeRobot has them."""
  import av

  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=fps, options=options or {"g": "2", "crf": "30"})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
    container.mux(stream.encode())


def numbered(first, count, height=32, width=48):
  """Frames that say their number, even after lossy compression: 6 bits as dark or light blocks."""
  bits = (np.arange(first, first + count)[:, None] >> np.arange(6)) & 1
  blocks = np.repeat(bits * 200 + 20, width // 6, axis=1).astype(np.uint8)
  return np.broadcast_to(blocks[:, None, :, None], (count, height, width, 3))


def number(image):
  """The number of a frame that `numbered` made."""
  blocks = image.mean(axis=(0, 2)).reshape(6, -1).mean(axis=1)
  return int(((blocks > 120) << np.arange(6)).sum())


def png(image):
  return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


_STATE = {"dtype": "float32", "shape": [5], "names": ["a", "b", "c", "d", "e"]}
_INDICES = {"timestamp": "float32"} | dict.fromkeys(
  ("frame_index", "episode_index", "index", "task_index"), "int64"
)


def lerobot_features(cameras=("top",), image=False, **extra):
  frame = {"shape": [32, 48, 3], "names": ["height", "width", "channels"]}
  return {
    "observation.state": _STATE,
    "action": {"dtype": "float32", "shape": [4], "names": None},
    "observation.pose": {"dtype": "float64", "shape": [2, 3], "names": None},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    **{f"observation.images.{c}": {"dtype": "video", **frame} for c in cameras},
    **({"observation.image": {"dtype": "image", **frame}} if image else {}),
    **extra,
    **{key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in _INDICES.items()},
  }


def lerobot_table(number, steps, first, fps, tasks, seed=0):
  """One episode's columns, numpy (steps, ...); `first` is its first row of all."""
  rng = np.random.default_rng([seed, number])
  pictures = images(1000 + number, steps, 32, 48)
  return {
    "observation.state": rng.normal(size=(steps, 5)).astype(np.float32),
    "action": rng.normal(size=(steps, 4)).astype(np.float32),
    "observation.pose": rng.normal(size=(steps, 2, 3)),
    "observation.image": [{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pictures)],
    "pictures": pictures,
    "next.reward": np.eye(steps, dtype=np.float32)[-1] * (number % 2),
    "next.done": np.arange(steps) == steps - 1,
    "timestamp": (np.arange(steps) / fps).astype(np.float32),
    "frame_index": np.arange(steps),
    "episode_index": np.full(steps, number),
    "index": np.arange(first, first + steps),
    "task_index": np.full(steps, number % tasks),
  }  # fmt: skip


def arrow(episodes, features):
  """A table of several episodes with the types that LeRobot's have."""
  import pyarrow as pa

  columns = {}
  for key, facts in features.items():
    if facts["dtype"] == "video":
      continue
    parts = [episode[key] for episode in episodes]
    if facts["dtype"] == "image":
      kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
      columns[key] = pa.array([cell for part in parts for cell in part], kind)
      continue
    kind = pa.bool_() if facts["dtype"] == "bool" else pa.from_numpy_dtype(facts["dtype"])
    if len(facts["shape"]) == 2:
      kind = pa.list_(pa.list_(kind))
    elif facts["shape"] != [1]:
      kind = pa.list_(kind, facts["shape"][0])
    columns[key] = pa.array([row.tolist() for part in parts for row in part], kind)
  return pa.table(columns)


def lerobot(
  root, files, *, fps=10, cameras=("top",), image=False, tasks=2, splits=None, codec=None
):
  """Writes a v3.0 dataset: files[i] are the lengths of the episodes of parquet and video file i.

  Returns the episodes' columns. Frames of the videos are numbered from 0 in every file.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  features = lerobot_features(cameras, image)
  content, rows = [], []
  for i, lengths in enumerate(files):
    first = len(content)
    start = 0
    for steps in lengths:
      total = sum(row["length"] for row in rows)
      content.append(lerobot_table(len(content), steps, total, fps, tasks))
      place = {"data/chunk_index": 0, "data/file_index": i}
      for camera in cameras:
        prefix = f"videos/observation.images.{camera}"
        place |= {f"{prefix}/chunk_index": 0, f"{prefix}/file_index": i}
        place |= {f"{prefix}/from_timestamp": start / fps}
        place |= {f"{prefix}/to_timestamp": (start + steps) / fps}
      number = len(rows)
      rows.append(
        {"episode_index": number, "length": steps, "tasks": [f"task {number % tasks}"],
         "dataset_from_index": total, "dataset_to_index": total + steps, **place,
         "stats/action/mean": [0.0] * 4}
      )  # fmt: skip
      start += steps
    path = root / f"data/chunk-000/file-{i:03d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(arrow(content[first:], features), path, compression="snappy", row_group_size=7)
    for camera in cameras:
      path = root / f"videos/observation.images.{camera}/chunk-000/file-{i:03d}.mp4"
      video(path, numbered(0, start), fps, codec or "libx264")
  path = root / "meta/episodes/chunk-000/file-000.parquet"
  path.parent.mkdir(parents=True)
  pq.write_table(pa.Table.from_pylist(rows), path)
  words = {
    "task_index": list(range(tasks)),
    "__index_level_0__": [f"task {i}" for i in range(tasks)],
  }
  pq.write_table(pa.table(words), root / "meta/tasks.parquet")
  info = {
    "codebase_version": "v3.0", "robot_type": "so101", "fps": fps, "features": features,
    "total_episodes": len(rows), "total_frames": sum(row["length"] for row in rows),
    "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 500,
    "splits": splits or {"train": f"0:{len(rows)}"},
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
  }  # fmt: skip
  (root / "meta/info.json").write_text(json.dumps(info, indent=4))
  return content


def lerobot_v2(root, lengths, *, fps=10, tasks=2):
  """Writes a v2.1 dataset, an episode a file; returns the episodes' columns."""
  import pyarrow.parquet as pq

  features, content = lerobot_features(), []
  (root / "meta").mkdir(parents=True)
  for i, steps in enumerate(lengths):
    content.append(lerobot_table(i, steps, sum(lengths[:i]), fps, tasks))
    path = root / f"data/chunk-{i // 2:03d}/episode_{i:06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(arrow(content[-1:], features), path)
    camera = f"videos/chunk-{i // 2:03d}/observation.images.top"
    video(root / camera / f"episode_{i:06d}.mp4", numbered(i, steps), fps)
  info = {
    "codebase_version": "v2.1", "fps": fps, "features": features, "chunks_size": 2,
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
  }  # fmt: skip
  (root / "meta/info.json").write_text(json.dumps(info))
  lines = [
    {"episode_index": i, "tasks": [f"task {i % tasks}"], "length": n} for i, n in enumerate(lengths)
  ]
  (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  lines = [{"task_index": i, "task": f"task {i}"} for i in range(tasks)]
  (root / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return content


def read(out):
  """{split: [episode as numpy, its steps a list]} of a TFDS directory of TFRecord files."""
  import tensorflow_datasets as tfds

  from oat_jax.data import tfrecord

  builder = tfds.builder_from_directory(str(out))
  found = {}
  for split, info in builder.info.splits.items():
    found[split] = []
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
      file = tfrecord.TFRecordFile(path)
      assert len(file) == length
      for record in file:
        episode = builder.info.features.deserialize_example_np(bytes(record))
        found[split].append(episode | {"steps": list(episode["steps"])})
  return found


def column(episode, path):
  """One feature of all steps, stacked."""
  steps = episode["steps"]
  for name in path.split("/"):
    steps = [step[name] for step in steps]
  return np.stack(steps)
