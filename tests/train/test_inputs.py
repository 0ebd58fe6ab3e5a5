"""What a run trains on: one dataset or a mixture, its statistics, and what is refused."""

import json
import pickle
import shutil

import cloudpickle
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.data import mixture
from oat_jax.data import pipeline
from oat_jax.data import statistics
from oat_jax.train import config as config_lib
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import models


@pytest.fixture(scope="module")
def other(tmp_path_factory):
  """A second dataset: narrower actions, other tasks."""
  out = tmp_path_factory.mktemp("other") / "data"
  return tiny.write_dataset(out, episodes=3, tasks=("open", "push"), action_dim=2, seed=50)


def data(path, **changes):
  return config_lib.Data(path=str(path), task="episode_metadata/task", action_horizon=8, **changes)


def mixed(first, second, **changes):
  both = {"wide": {"path": str(first)}, "narrow": {"path": str(second)}}
  for name, values in changes.pop("each", {}).items():
    both[name] |= values
  return data("", mixture=both, **changes)


def test_a_mixture_has_one_shape_and_each_datasets_statistics(dataset, other):
  split = inputs.load(
    mixed(dataset, other, each={"wide": {"weight": 3}, "narrow": {"weight": 1.0}})
  )
  assert split.weights == (3, 1)
  assert split.train.spec.action_dim == 3 and split.train.spec.num_datasets == 2
  assert split.train.spec.task_names == ("lift", "open", "push")
  order = mixture.Order(split.train.sizes, split.weights, 0)
  stream = pipeline.make_pipeline(split.train, batch_size=40, order=order, threads=0)
  batch = next(stream)
  batch_lib.check(batch, split.train.spec)
  assert np.bincount(batch["dataset"]).tolist() == [30, 10]
  narrow = batch["dataset"] == 1
  assert not batch["actions"][narrow, :, 2].any()
  np.testing.assert_array_equal(batch["action_dim_mask"][:, 2], ~narrow)
  for row, path in enumerate((dataset, other)):
    alone = inputs.load(data(path))
    for name, values in alone.statistics["actions"].items():
      width = values.shape[1]
      np.testing.assert_array_equal(split.statistics["actions"][name][row, :width], values[0])
  assert split.statistics["actions"]["max"][1, 2] == 0


def test_without_weights_every_window_counts_the_same(dataset, other):
  split = inputs.load(mixed(dataset, other))
  order = mixture.make_order(split.train.sizes, split.weights, 0)
  epoch = order(np.arange(len(split.train)))
  assert split.weights is None and sorted(epoch) == list(range(len(split.train)))


def test_a_dataset_of_weight_0_is_not_even_opened(dataset, tmp_path):
  nothing = {"wide": {"weight": 1}, "narrow": {"weight": 0}}
  split = inputs.load(mixed(dataset, tmp_path / "missing", each=nothing))
  alone = inputs.load(data(dataset))
  assert split.train.spec.dataset_names == ("wide",) and split.fingerprint == alone.fingerprint
  assert split.train.sizes == alone.train.sizes


def test_a_mixture_trains_the_same_twice(dataset, other, tmp_path):
  values = mixed(dataset, other, each={"wide": {"weight": 2.0}, "narrow": {"weight": 1.0}})
  changes = {"path": "", "mixture": values.mixture}
  config = lambda steps: tiny.run_config("tokenizer", "", data=changes, steps=steps, save_every=2)
  loop.train(config(4), tmp_path / "whole")
  loop.train(config(4), tmp_path / "copy")
  whole, copy = (models.load(tmp_path / name).params for name in ("whole", "copy"))
  assert tiny.to_bits(whole) == tiny.to_bits(copy)
  spec = json.loads((tmp_path / "whole/config.json").read_text())["spec"]
  assert spec["num_datasets"] == 2


def test_statistics_are_of_the_training_episodes_alone(dataset):
  config = data(dataset, validation_fraction=0.5)
  split = inputs.load(config)
  values = [split.train(np.array([i])) for i in range(len(split.train))]
  states = np.concatenate([batch["observation"]["state"][:, -1] for batch in values])
  np.testing.assert_array_equal(split.statistics["state"]["max"][0], states.max(0))
  everything = inputs.load(data(dataset, validation_fraction=0.01))
  assert not np.array_equal(everything.statistics["state"]["max"], split.statistics["state"]["max"])


@pytest.mark.parametrize("file_format", statistics.FORMATS)
def test_statistics_of_another_frameworks_file(dataset, tmp_path, file_format):
  path = tmp_path / "stats.json"
  made = inputs.load(data(dataset)).train._sources[0].statistics()
  made["actions"] = made["actions"]._replace(mean=made["actions"].mean + 1)
  statistics.write(path, made, file_format)
  split = inputs.load(data(dataset, statistics=str(path)))
  for name in ("mean", "min", "max"):
    np.testing.assert_array_equal(
      split.statistics["actions"][name][0], getattr(made["actions"], name)
    )
  path.write_text("{}")
  with pytest.raises(ValueError, match="stats.json: neither openpi's"):
    inputs.load(data(dataset, statistics=str(path)))


def test_unscaled_dimensions_leave_the_mask(dataset):
  split = inputs.load(data(dataset, unscaled=("action_2",)))
  assert split.statistics["actions"]["mask"].tolist() == [[True, True, False]]
  assert split.statistics["state"]["mask"].all()


def test_options_choose_the_windows(dataset):
  every, some = (inputs.load(data(dataset, stride=stride)) for stride in (1, 4))
  assert len(some.train) * 4 == len(every.train)


def test_unreadable_episodes_are_listed(tmp_path, capsys):
  bad = tiny.write_dataset(tmp_path / "bad", bad=float("nan"))
  with pytest.raises(ValueError, match="record 7: 'steps/action' is nan at step 19"):
    inputs.load(data(bad))
  split = inputs.load(data(bad, on_error="skip"))
  said = capsys.readouterr().out
  assert "left out 1 of 8 episodes; the first: " in said and "is nan at step 19" in said
  whole = inputs.load(data(tiny.write_dataset(tmp_path / "good")))
  config = tiny.run_config("tokenizer", bad, data={"on_error": "skip"}, steps=1)
  loop.train(config, tmp_path / "run")
  listed = json.loads((tmp_path / "run/skipped.json").read_text())
  assert list(listed) == [""] and "is nan at step 19" in listed[""][0] and len(listed[""]) == 1
  lost = len(whole.train) + len(whole.validation) - len(split.train) - len(split.validation)
  assert lost == 20


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"standard": "bridge"}, "no standard 'bridge'"),
    ({"standard": "bridge_v2", "cameras": ("top",)}, "cameras holds 'top'; 'bridge_v2' has 0, 1"),
    ({"unscaled": ("grip",)}, "unscaled holds 'grip'; the actions are action_0"),
    ({"actions": ("action_1",)}, "'action_0' is not among those wanted"),
    ({"validation_fraction": 0.0}, "validation_fraction is 0"),
    ({"split": "train[:1%]"}, "holds no records|only 1 episode"),
    ({"cameras": ("top=observation/image",)}, "no feature 'steps/observation/image'"),
  ],
)
def test_data_that_does_not_fit(dataset, changes, message):
  with pytest.raises(ValueError, match=message):
    inputs.load(data(dataset, **changes))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"cameras": ("top",)}, "cameras holds 'top'; write top=FEATURE"),
    ({"on_error": "ignore"}, "on_error is 'ignore'"),
    ({"stride": 0}, "stride is 0"),
    ({"idle_below": -1.0}, "idle_below is -1"),
    ({"image_size": (64,)}, "image_size is"),
    ({"mixture": {"a": 3}}, "config.data.mixture.a is 3; it holds the keys that differ"),
    ({"mixture": {"a": {"stride": 0}}}, "config.data.mixture.a.stride is 0"),
    ({"mixture": {"a": {"weight": 0.0}}}, "every dataset of config.data.mixture has weight 0"),
    ({"mixture": {"a": {"weight": 1.0}, "b": {}}}, "mixture.b has no weight"),
    (
      {"mixture": {"a": {"wieght": 1.0}}},
      "config.data.mixture.a has no key 'wieght'; did you mean",
    ),
  ],
)
def test_configurations_that_contradict_themselves(changes, message):
  with pytest.raises(ValueError, match=message):
    data("somewhere", **changes)


def test_a_mixture_that_was_moved_goes_on(dataset, other, tmp_path):
  def config(folder, **changes):
    both = {name: {"path": str(folder / name)} for name in ("a", "b")}
    return tiny.run_config("tokenizer", "", data={"path": "", "mixture": both}, **changes)

  for name, path in (("a", dataset), ("b", other)):
    shutil.copytree(path, tmp_path / "here" / name)
  loop.train(config(tmp_path / "here"), tmp_path / "run")
  before = models.digest(models.load(tmp_path / "run"))
  (tmp_path / "here").rename(tmp_path / "there")
  loop.train(config(tmp_path / "there"), tmp_path / "run")
  assert models.digest(models.load(tmp_path / "run")) == before


def test_a_policys_data_must_be_its_tokenizers(dataset, other, tmp_path):
  both = {"a": {"path": str(dataset)}, "b": {"path": str(other)}}
  changes = {"path": "", "mixture": both}
  loop.train(tiny.run_config("tokenizer", "", data=changes, steps=1), tmp_path / "tokenizer")
  turned = {"path": "", "mixture": dict(reversed(both.items()))}
  config = tiny.run_config("policy", "", data=turned, tokenizer=tmp_path / "tokenizer")
  with pytest.raises(ValueError, match="has dataset_names"):
    loop.train(config, tmp_path / "policy")


def test_windows_reach_workers_as_paths_not_copies(dataset):
  windows = inputs.load(data(dataset)).train
  sent = cloudpickle.dumps(windows._sources[0]._episodes)  # as grain sends them
  assert len(sent) < 3000 < windows._sources[0]._episodes.states_LS.nbytes
  back = pickle.loads(sent)
  np.testing.assert_array_equal(back.states_LS, windows._sources[0]._episodes.states_LS)


def test_less_to_train_on_changes_neither_what_is_held_out_nor_the_units(dataset):
  whole, half = (inputs.load(data(dataset, train_fraction=f)) for f in (1.0, 0.5))
  assert 0 < len(half.train) < len(whole.train)
  assert half.validation.digest() == whole.validation.digest()
  assert half.fingerprint == whole.fingerprint
  assert tiny.to_bits(half.statistics) == tiny.to_bits(whole.statistics)
  assert [len(np.unique(each.train.episode_W)) for each in (whole, half)] == [7, 4]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_part_of_the_data_is_above_0_and_at_most_1(fraction):
  with pytest.raises(ValueError, match="config.data.train_fraction is"):
    data("somewhere", train_fraction=fraction)
