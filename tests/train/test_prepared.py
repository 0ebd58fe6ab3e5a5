"""What is computed once a window is kept on disk, for the same windows and tokenizer only."""

import numpy as np
import pytest
import tiny

from oat_jax.data import mixture
from oat_jax.data import windows as windows_lib
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import models
from oat_jax.train import prepared


def windows(lengths=(5, 7), ids=(0, 1), **options):
  made = windows_lib.Windows(
    tiny.episodes(lengths)._replace(fingerprint=str(lengths)), np.array(ids), 2, 4,
    options=windows_lib.Options(**options),
  )  # fmt: skip
  return mixture.Mixture([made])


class Counting:
  """Sums of each window's actions; counts how often it is asked."""

  def __init__(self):
    self.calls = 0

  def __call__(self, params, batch):
    self.calls += 1
    assert not any(name.startswith("image") for name in batch["observation"])
    return {"sums": batch["actions"].sum((1, 2)) * params, "dataset_too": batch["dataset"]}


def add(made, cache, of="tokenizer", prepare=None):
  prepare = prepare or Counting()
  out = prepared.prepared(prepare, lambda: 2.0, made, of=of, cache=cache, batch_size=5)
  return out, prepare.calls


def test_rows_are_of_their_windows_and_read_again(tmp_path):
  made = windows()
  first, calls = add(made, tmp_path)
  batch = first(np.array([3, 11, 0]))
  np.testing.assert_array_equal(batch["sums"], 2 * batch["actions"].sum((1, 2)))
  assert calls == 3 and len(first) == 12  # batches of 5
  again, calls = add(windows(), tmp_path)
  assert calls == 0
  np.testing.assert_array_equal(again.columns["sums"], first.columns["sums"])


def test_other_windows_or_another_tokenizer_are_computed_anew(tmp_path):
  add(windows(), tmp_path)
  others = [windows(ids=(0,)), windows(ids=(1, 0)), windows(stride=2), windows(lengths=(6, 6))]
  subsets = [inputs.evenly(windows(), limit) for limit in (3, 4)]
  for made in (*others, *subsets):
    assert add(made, tmp_path)[1] > 0 and add(made, tmp_path)[1] == 0
  assert add(windows(), tmp_path, of="another")[1] > 0
  assert add(windows(), tmp_path, of="")[1] > 0 and add(windows(), tmp_path, of="")[1] > 0


@pytest.mark.parametrize("harm", ["cut", "short", "gone"])
def test_a_damaged_entry_is_computed_anew(tmp_path, harm):
  first, _ = add(windows(), tmp_path)
  (path,) = (tmp_path / "prepared").glob("*/sums.npy")
  if harm == "cut":
    path.write_bytes(path.read_bytes()[:-3])
  elif harm == "short":
    np.save(path, np.zeros(3, np.float32))
  else:
    for each in path.parent.iterdir():
      each.unlink()
  again, calls = add(windows(), tmp_path)
  assert calls == 3
  np.testing.assert_array_equal(again.columns["sums"], first.columns["sums"])
  assert add(windows(), tmp_path)[1] == 0


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, capsys):
  (tmp_path / "prepared").write_text("a file is in the way")
  out, calls = add(windows(), tmp_path)
  assert calls == 3 and len(out.columns["sums"]) == 12
  assert "tokens are not kept for the next run" in capsys.readouterr().out


def test_a_second_policy_finds_the_tokens_of_the_first(
  dataset, tokenizer_workdir, tmp_path, monkeypatch
):
  run = lambda name, **model: loop.train(
    tiny.run_config("policy", dataset, tokenizer=tokenizer_workdir, steps=1, model=model,
                    data={"cache": str(tmp_path / "cache")}),
    tmp_path / name,
  )  # fmt: skip
  run("first")
  written = sorted((tmp_path / "cache/prepared").iterdir())
  assert len(written) == 2  # training and held-out windows

  def fails(*_):
    raise AssertionError("computed again")

  monkeypatch.setattr(prepared, "_write", fails)
  run("second", layers=2)  # of another size, over the same tokens
  assert sorted((tmp_path / "cache/prepared").iterdir()) == written
  assert models.load(tmp_path / "second").step == 1
