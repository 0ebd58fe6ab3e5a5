"""Checkpoints: parameters are numpy without the model, the newest n are kept, all bits return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax.train import checkpoint
from oat_jax.train import state as state_lib


def state(value, mesh=None):
  sharding = jax.NamedSharding(mesh or tiny.mesh(), jax.P())
  tree = lambda x: {"network": {"w": jnp.full((2, 3), x)}, "statistics": {"min": jnp.zeros(3)}}
  made = state_lib.TrainState(
    step=jnp.int32(value),
    failures=jnp.int32(1),
    params=tree(value + 0.25),
    ema_params=tree(value + 0.5),
    opt_state=({"mu": tree(value + 0.75)}, (), jnp.int32(value)),
  )
  return jax.device_put(made, sharding)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp("run")
  checkpointer = checkpoint.Checkpointer(path, keep=2)
  assert checkpointer.latest_step() is None
  for step in (3, 20, 100):
    checkpointer.save(step, state(step), {"step": step, "seed": 7, "fingerprint": "abc"})
  checkpointer.close()
  return path


def test_only_the_newest_are_kept(workdir):
  names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
  assert names == ["100", "20"]
  parts = sorted(path.name for path in (workdir / "checkpoints/100").iterdir() if path.is_dir())
  assert parts == ["data", "params", "train"]


def test_multiples_and_the_best_are_kept_too(tmp_path):
  checkpointer = checkpoint.Checkpointer(tmp_path, 1, keep_every=30, keep_best="mse")
  for step, mse in ((10, 3.0), (20, 1.0), (30, None), (40, 2.0), (50, None), (55, 4.0)):
    metrics = None if mse is None else {"mse": mse, "other": -mse}
    checkpointer.save(step, state(step), {"step": step}, metrics)
  checkpointer.close()
  assert checkpoint.steps(tmp_path) == [20, 30, 55]


def test_params_are_the_average_as_numpy(workdir):
  step, params = checkpoint.load_params(workdir)  # 100 is newer than 20, though "20" > "100"
  assert step == 100
  assert {type(x) for x in jax.tree.leaves(params)} == {np.ndarray}
  assert tiny.to_bits(params) == tiny.to_bits(state(100).ema_params)
  step, params = checkpoint.load_params(workdir, 20)
  assert step == 20 and tiny.to_bits(params) == tiny.to_bits(state(20).ema_params)


def test_restore_gives_every_bit_back(workdir):
  checkpointer = checkpoint.Checkpointer(workdir, keep=2)
  assert checkpointer.latest_step() == 100
  restored, data = checkpointer.restore(100, state(0))
  checkpointer.close()
  assert data == {"step": 100, "seed": 7, "fingerprint": "abc"}
  assert tiny.to_bits(restored) == tiny.to_bits(state(100))
  assert jax.tree.structure(restored) == jax.tree.structure(state(0))


def test_what_is_missing_is_an_error_that_says_what_there_is(workdir, tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no checkpoint; train it first"):
    checkpoint.load_params(tmp_path)
  assert not list(tmp_path.iterdir())
  with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3; there are \[20, 100\]"):
    checkpoint.load_params(workdir, 3)
