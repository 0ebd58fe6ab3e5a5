"""Converts demonstrations of other formats to RLDS datasets, TFRecord in TFDS layout.

One episode at a time is read, checked and written. Whatever ends a conversion, the same command
goes on behind the last full shard, and the dataset has the bytes of an uninterrupted one.
"""

from collections import Counter
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Any

import tqdm

from oat_jax.data import shards
from oat_jax.data import sources
from oat_jax.data import write

REPORT = "convert_report.json"
_ON_ERROR = ("raise", "skip")
_OPTIONS = sources.Options()


def convert(
  source_name: str,
  path: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  name: str = "",
  on_error: str = "raise",
  options: sources.Options = _OPTIONS,
  shard_bytes: int = shards.SHARD_BYTES,
  progress: bool = True,
) -> dict[str, Any]:
  """Converts `path`, of format `source_name`, to a dataset in the directory `out`.

  Args:
    source_name: one of `sources.formats()`.
    path: a file or a directory, as the format has it.
    out: the directory to make; a finished one of the same request is left as it is.
    name: the dataset's name; from the source where empty.
    on_error: "raise" stops at the first episode with an error; "skip" leaves such episodes out.
    options: see `sources.Options`.
    shard_bytes: a shard is closed when it has grown to this size.
    progress: whether to show a progress bar.

  Returns:
    What convert_report.json in `out` says: `request`; `splits`, name -> {"episodes", "skipped"};
    `skipped`, a list of {"split", "file", "episode", "reason"}; `left_out`, a list of words about
    what no episode of the dataset has of the source.

  Raises:
    ValueError: bad arguments, a source that is not of its format, or a bad episode; the message
      names file, episode, step and feature.
    FileNotFoundError: there is nothing at `path`.
    FileExistsError: `out` holds something else, or the beginnings of another conversion.
    BlockingIOError: another process is writing `out`.
    OSError: writing failed, on a full disk for instance; the file is named.
  """
  if on_error not in _ON_ERROR:
    raise ValueError(f"on_error is '{on_error}'; it must be one of: {', '.join(_ON_ERROR)}")
  path, out = pathlib.Path(path).absolute(), pathlib.Path(out).absolute()
  source = sources.open_source(source_name, path, options)
  if source.broken and on_error == "raise":
    raise ValueError(f"{source.broken[0].reason}; --on_error=skip leaves it out")
  name = name or _tfds_name(source.name)
  request = {
    "from": source_name,
    "in": os.fspath(path),
    "name": name,
    **options._asdict(),
    "shard_bytes": shard_bytes,
    "episodes": len(source.keys),
    "episodes_sha256": _sha256(source.keys),
    "features_sha256": _sha256(source.features.to_json()),
  }
  report = _finished(out, request)
  if report is not None:
    return report
  with shards.writing(
    out,
    name=name,
    description=source.description,
    shard_bytes=shard_bytes,
    request=request,
  ) as writer:
    _write(writer, source, path, on_error, progress)
    report = _report(source, request, writer)
    writer.finish(source.features, {REPORT: json.dumps(report, indent=2)})
  return report


def describe(report: dict[str, Any], most: int = 20) -> str:
  """Returns a report in words, `most` skipped episodes at most."""
  lines = [
    f"{split}: {n['episodes']} episodes, {n['skipped']} skipped"
    for split, n in report["splits"].items()
  ]
  skipped = report["skipped"]
  lines += [f"skipped {_where(s['file'], s['episode'])}: {s['reason']}" for s in skipped[:most]]
  if len(skipped) > most:
    lines.append(f"and {len(skipped) - most} more, listed in {REPORT}")
  return "\n".join(lines + [f"left out: {words}" for words in report["left_out"]])


def _write(
  writer: shards.Writer, source: sources.Source, path: pathlib.Path, on_error: str, progress: bool
) -> None:
  """Adds all episodes that the writer does not have."""
  total, start = len(source.keys), writer.position
  with tqdm.tqdm(total=total, initial=start, unit="episode", disable=not progress) as bar:
    for key in source.keys[start:]:
      try:
        content = source.read(key)
        record = (
          content if isinstance(content, bytes) else write.serialize(source.features, content)
        )
      except ValueError as error:
        reason = str(error)
        if on_error == "raise":
          file = os.fspath(path if path.is_file() else path / key.file)
          raise ValueError(
            f"{_where(file, key.episode)}: {reason}; --on_error=skip leaves it out"
          ) from error
        writer.skip(**key._asdict(), reason=reason)
      else:
        writer.add(key.split, record)
      bar.update()


def _report(
  source: sources.Source, request: dict[str, Any], writer: shards.Writer
) -> dict[str, Any]:
  total = Counter(key.split for key in source.keys)
  skipped = Counter(entry["split"] for entry in writer.skipped)
  return {
    "request": request,
    "splits": {
      split: {"episodes": total[split] - skipped[split], "skipped": skipped[split]}
      for split in total
    },
    "skipped": [
      *({"split": "", "episode": ""} | broken._asdict() for broken in source.broken),
      *writer.skipped,
    ],
    "left_out": list(source.left_out),
  }


def _finished(out: pathlib.Path, request: dict[str, Any]) -> dict[str, Any] | None:
  """Returns the report of a finished conversion of this request, None if there is none."""
  if not (out / REPORT).is_file():
    return None
  report = json.loads((out / REPORT).read_text())
  shards.check_same(out, report["request"], request)
  # A kill between the move to `out` and this deletion leaves the journal behind.
  shutil.rmtree(out.with_name(out.name + ".writing"), ignore_errors=True)
  return report


def _sha256(content: Any) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _where(file: str, episode: str) -> str:
  return f"{file}, episode {episode}" if episode else file


def _tfds_name(text: str) -> str:
  """Returns `text` in the letters that TFDS allows."""
  text = re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")
  return text if text[:1].isalpha() else f"dataset_{text}".rstrip("_")
