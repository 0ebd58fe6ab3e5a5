"""Processes that would not train the same thing do not start."""

import json

import numpy as np
import pytest
import tiny

from oat_jax.train import agreement
from oat_jax.train import loop


def told(monkeypatch, change):
  """As if there were a second process, whose facts are ours after `change`."""

  def gather(x):
    if x.ndim == 0:
      return np.stack([x, x + 100])  # as long as theirs may get; JSON ends in blanks
    change(theirs := json.loads(x.tobytes().rstrip(b"\0")))
    row = json.dumps(theirs).encode().ljust(len(x))
    return np.stack([x, np.frombuffer(row, np.uint8)])

  monkeypatch.setattr(agreement.jax, "process_count", lambda: 2)
  monkeypatch.setattr(agreement.multihost_utils, "process_allgather", gather)


FACTS = {"config": {"steps": 3, "data": {"path": "/here"}}, "dataset_fingerprint": "ab"}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda facts: facts["config"].update(steps=4), "config.steps: 3 there, 4 now"),
    (lambda facts: facts["code"].update(jax="0.0"), "code.jax: '.*' there, '0.0' now"),
    (lambda facts: facts.update(dataset_fingerprint="cd"), "dataset_fingerprint: 'ab' there"),
  ],
)
def test_what_differs_is_said(change, message, monkeypatch):
  told(monkeypatch, change)
  with pytest.raises(ValueError, match=f"process 1 runs something else(.|\n)*{message}"):
    agreement.check(FACTS)


def test_paths_may_differ(monkeypatch):
  told(monkeypatch, lambda facts: facts["config"]["data"].update(path="/there"))
  agreement.check(FACTS)


def test_code_is_known_by_its_files():
  assert agreement.code() == agreement.code() and agreement.code()["jax"]


def test_the_loop_asks_before_it_writes(dataset, tmp_path, monkeypatch):
  asked = []

  def refuse(facts):
    asked.append(facts)
    raise ValueError("no")

  monkeypatch.setattr(agreement, "check", refuse)
  with pytest.raises(ValueError, match="no"):
    loop.train(tiny.run_config("tokenizer", dataset), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  assert {"config", "spec", "dataset_fingerprint", "windows", "format_version"} <= set(asked[0])


@pytest.mark.parametrize("number", ["7", "8", None])
def test_all_processes_see_the_first_ones_directory(number, tmp_path, monkeypatch):
  """As process 1 of 2, whose process 0 has written 7."""
  if number:
    (tmp_path / ".shared").write_text(number)
  group = agreement.multihost_utils
  monkeypatch.setattr(agreement.jax, "process_count", lambda: 2)
  monkeypatch.setattr(agreement.jax, "process_index", lambda: 1)
  monkeypatch.setattr(group, "broadcast_one_to_all", lambda x: np.array(7, np.int32))
  monkeypatch.setattr(group, "sync_global_devices", lambda name: None)
  monkeypatch.setattr(group, "process_allgather", lambda seen: np.array([True, seen]))
  if number == "7":
    agreement.check_shared(tmp_path, seconds=1)
    return
  with pytest.raises(ValueError, match="of process 1 is another directory than that of process 0"):
    agreement.check_shared(tmp_path, seconds=0.2)
