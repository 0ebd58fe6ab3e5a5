"""init_from: what fits is taken over, what does not, by shape or by meaning, is listed."""

import jax
import numpy as np
import pytest
import tiny

from oat_jax.train import checkpoint
from oat_jax.train import loop

# So that a step changes nothing.
STILL = {"learning_rate": 1e-30, "weight_decay": 0.0}


def network(workdir):
  """{path: array} of a run's trained parameters."""
  leaves = jax.tree_util.tree_leaves_with_path(checkpoint.load_params(workdir)[1]["network"])
  return {"/".join(key.key for key in path): x for path, x in leaves}


def test_init_from_takes_what_fits_and_lists_the_rest(dataset, tokenizer_workdir, tmp_path, capsys):
  settings = {"steps": 1, "optimizer": STILL, "seed": 5}
  wide = tiny.write_dataset(tmp_path / "wide", action_dim=4)
  loop.train(tiny.run_config("tokenizer", wide, **settings), tmp_path / "fresh")
  capsys.readouterr()
  started = tiny.run_config("tokenizer", wide, init_from=str(tokenizer_workdir), **settings)
  loop.train(started, tmp_path / "started")
  printed = capsys.readouterr().out

  workdirs = (tokenizer_workdir, tmp_path / "fresh", tmp_path / "started")
  source, fresh, got = map(network, workdirs)
  unfit = {path for path in got if source[path].shape != got[path].shape}
  assert unfit == {"embed_actions/w", "decoder/to_actions/w", "decoder/to_actions/b"}
  for path in got:
    expected = fresh[path] if path in unfit else source[path]
    np.testing.assert_allclose(got[path], expected, rtol=0, atol=1e-20)
  assert f"{len(got) - 3} of {len(got)} arrays start from {tokenizer_workdir}" in printed
  assert "embed_actions/w [10, 32] ([8, 32] there)" in printed
  assert "decoder/to_actions/b [8] ([6] there)" in printed
  # Statistics are the new data's own.
  statistics = checkpoint.load_params(tmp_path / "started")[1]["statistics"]
  assert statistics["min"].shape == (1, 4)


def test_init_from_the_same_shapes_takes_everything(dataset, tokenizer_workdir, tmp_path, capsys):
  config = tiny.run_config(
    "tokenizer", dataset, init_from=str(tokenizer_workdir), steps=1, optimizer=STILL
  )
  loop.train(config, tmp_path / "run")
  assert "initialised afresh:\n  none\n" in capsys.readouterr().out
  source, got = (checkpoint.load_params(path)[1] for path in (tokenizer_workdir, tmp_path / "run"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-20), source, got)


def test_rows_of_other_tasks_and_of_another_tokenizer_start_afresh(
  dataset, tokenizer_workdir, tmp_path, capsys
):
  renamed = tiny.write_dataset(tmp_path / "renamed", tasks=("lift", "pull"))
  other = loop.train(tiny.run_config("tokenizer", dataset, steps=2, seed=7), tmp_path / "other")
  settings = {"steps": 1, "optimizer": STILL}
  config = tiny.run_config("policy", dataset, tokenizer=str(tokenizer_workdir), **settings)
  source = network(loop.train(config, tmp_path / "source"))
  settings |= {"init_from": str(tmp_path / "source"), "seed": 5}
  config = tiny.run_config("policy", renamed, tokenizer=str(other), **settings)
  capsys.readouterr()
  got, printed = network(loop.train(config, tmp_path / "run")), capsys.readouterr().out

  changed = {name for name in got if not np.array_equal(got[name], source[name])}
  assert changed == {"observe/task/table", "embed_tokens/table", "to_logits/w"}
  assert "observe/task/table [2, 4] (of other tasks there)" in printed
  assert "embed_tokens/table [1024, 32] (of another tokenizer there)" in printed
  assert "to_logits/b [1024] (of another tokenizer there)" in printed  # zeros in both
  assert f"{len(got) - 4} of {len(got)} arrays start from" in printed


def test_nothing_that_fits_is_an_error(dataset, tokenizer_workdir, tmp_path):
  config = tiny.run_config("regression", dataset, init_from=str(tokenizer_workdir), steps=1)
  with pytest.raises(ValueError, match="holds nothing that fits this run"):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
