"""What a batch is: shapes, types and ranges, and which batches `check` refuses, naming the leaf."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib

SPEC = tiny.spec(num_datasets=3)


def leaves(tree):
  paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def test_shapes_are_those_of_design():
  assert leaves(batch_lib.shapes(SPEC, 7)) == {
    "observation/state": ((7, 2, 5), np.float32),
    "observation/task": ((7,), np.int32),
    "observation_mask": ((7, 2), np.bool_),
    "actions": ((7, 8, 3), np.float32),
    "action_mask": ((7, 8), np.bool_),
    "action_dim_mask": ((7, 3), np.bool_),
    "dataset": ((7,), np.int32),
  }


def test_fake_batches_keep_to_the_spec_and_its_ranges():
  batch = batch_lib.fake(SPEC, 300)
  batch_lib.check(batch, SPEC)
  assert set(np.unique(batch["observation"]["task"])) == {0, 1}
  assert set(np.unique(batch["dataset"])) == {0, 1, 2}
  # Padding: of observations at the front, of actions at the end; a row is never all padding.
  assert (np.diff(batch["observation_mask"].astype(int), axis=1) >= 0).all()
  assert (np.diff(batch["action_mask"].astype(int), axis=1) <= 0).all()
  assert batch["observation_mask"][:, -1].all() and batch["action_mask"][:, 0].all()
  assert not batch["observation_mask"].all() and not batch["action_mask"].all()


def test_fake_batches_repeat_from_their_seed():
  one, same, other = (batch_lib.fake(SPEC, 4, seed) for seed in (1, 1, 2))
  assert tiny.to_bits(one) == tiny.to_bits(same)
  assert not np.array_equal(one["actions"], other["actions"])


@pytest.mark.parametrize("name", list(leaves(batch_lib.shapes(SPEC, 1))))
@pytest.mark.parametrize("fault", ["missing", "width", "dtype"])
def test_check_names_the_leaf_that_is_wrong(name, fault):
  batch = batch_lib.fake(SPEC, 4)
  *parents, last = name.split("/")
  holder = batch[parents[0]] if parents else batch
  if fault == "missing":
    del holder[last]
  elif fault == "dtype":
    holder[last] = holder[last].astype(np.float64)
  else:
    holder[last] = np.stack([holder[last]] * 2, -1)
  with pytest.raises(ValueError, match=f"'{name}'"):
    batch_lib.check(batch, SPEC)


def test_check_says_both_shapes():
  batch = batch_lib.fake(SPEC, 4)
  batch["actions"] = batch["actions"][..., :2]
  with pytest.raises(ValueError, match=r"float32\[4, 8, 2\]; expected float32\[4, 8, 3\]"):
    batch_lib.check(batch, SPEC)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_says_where_values_are_not_finite(bad):
  batch = batch_lib.fake(SPEC, 4)
  batch["observation"]["state"][2, 1, 3] = bad
  with pytest.raises(ValueError, match=r"'observation/state'.*\[2, 1, 3\]"):
    batch_lib.check(batch, SPEC)


@pytest.mark.parametrize(
  ("name", "bad", "last"), [("task", 2, 1), ("task", -1, 1), ("dataset", 3, 2)]
)
def test_check_says_which_id_is_out_of_range(name, bad, last):
  batch = batch_lib.fake(SPEC, 4)
  (batch["observation"] if name == "task" else batch)[name][2] = bad
  with pytest.raises(ValueError, match=rf"{name}' is {bad} in row 2; it must be in 0..{last}"):
    batch_lib.check(batch, SPEC)


def test_check_may_look_at_what_acting_needs_alone():
  batch = batch_lib.fake(SPEC, 4)
  seen = {name: batch[name] for name in batch_lib.ACTING}
  batch_lib.check(seen, SPEC, batch_lib.ACTING)
  with pytest.raises(ValueError, match="no 'action"):
    batch_lib.check(seen, SPEC)
  seen["observation"]["state"][1, 0, 0] = np.nan
  with pytest.raises(ValueError, match="'observation/state' holds NaN"):
    batch_lib.check(seen, SPEC, batch_lib.ACTING)


def test_a_spec_has_no_empty_axis():
  names = ("observation_steps", "action_horizon", "action_dim", "state_dim", "num_datasets")
  for name in names:
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
      dataclasses.replace(SPEC, **{name: 0})
  with pytest.raises(ValueError, match="num_tasks"):
    dataclasses.replace(SPEC, task_names=())


def test_batches_may_lack_the_language_but_not_hold_another():
  spec = tiny.spec(language_dim=3)
  batch = batch_lib.fake(spec, 4)
  batch_lib.check(batch, spec)
  for bad, message in (
    (np.zeros((4, 2), np.float32), r"float32\[4, 2\]; expected float32\[4, 3\]"),
    (np.full((4, 3), np.nan, np.float32), "'observation/language' holds NaN"),
  ):
    with pytest.raises(ValueError, match=message):
      batch_lib.check(batch | {"observation": batch["observation"] | {"language": bad}}, spec)
  del batch["observation"]["language"]
  batch_lib.check(batch, spec)
  assert "language" not in batch_lib.fake(tiny.spec(), 1)["observation"]
