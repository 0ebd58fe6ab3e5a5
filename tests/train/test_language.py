"""Instructions from the dataset's embeddings or by a text encoder, to a policy that was trained."""

import jax
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.data import write
from oat_jax.train import config as config_lib
from oat_jax.train import inputs
from oat_jax.train import loop
from oat_jax.train import models

E = 3
# Of the task's instruction in its even and in its odd episodes.
VECTORS = {"lift": ([1, 2, 3], [3, 2, -1]), "push": ([-1, 0, 1], [-1, 0, 1])}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
  """A dataset whose steps hold an embedding of their instruction."""
  from tensorflow_datasets import features as F

  tensor = lambda size: F.Tensor(shape=(size,), dtype=np.float32)
  observation = {"state": tensor(5), "language": tensor(E)}
  features = write.rlds_features(observation, 3, {"task": F.Text()})
  content = []
  for t, task in enumerate(VECTORS):
    for e in range(4):
      content.append(tiny.episode(task, 100 * t + e))
      for step in content[-1]["steps"]:
        step["observation"]["language"] = np.array(VECTORS[task][e % 2], np.float32)
  out = tmp_path_factory.mktemp("embedded") / "dataset"
  write.write(out, features, content, name="embedded")
  return out


@pytest.fixture
def encoders(monkeypatch):
  """Text encoders by the path they are said to have."""
  known = {
    "one": np.array([[1, 2, 3], [-2, 0, 1]], np.float32),
    "other": np.array([[5, 0, 3], [2, 1, 1]], np.float32),
  }

  def embed(path, texts):
    assert texts == ("lift", "push")
    return known[path]

  monkeypatch.setattr(inputs.text, "embed", embed)
  return known


def data(path, **changes):
  changes = {"task": "episode_metadata/task", "action_horizon": 8} | changes
  return config_lib.Data(path=str(path), **changes)


def test_windows_hold_the_datasets_embeddings_and_tasks_have_their_mean(embedded):
  split = inputs.load(data(embedded, language="observation/language"))
  batch = split.train(np.arange(len(split.train)))
  batch_lib.check(batch, split.train.spec)
  assert split.train.spec.language_dim == E
  tasks, vectors = batch["observation"]["task"], batch["observation"]["language"]
  found = {(task, *vector) for task, vector in zip(tasks.tolist(), vectors.tolist())}
  assert found == {(t, *x) for t, both in enumerate(VECTORS.values()) for x in both}
  np.testing.assert_array_equal(split.language_NE, [[2, 2, 1], [-1, 0, 1]])
  assert split.language_NE.dtype == np.float32


def test_tokenizers_have_no_use_for_language(embedded, encoders):
  alone = inputs.load(data(embedded))
  for changes in ({"language": "observation/language"}, {"text_encoder": "one"}):
    split = inputs.load(data(embedded, **changes), images=False)
    assert split.language_NE is None and split.train.spec == alone.train.spec
    assert split.fingerprint == alone.fingerprint


def test_a_trained_policy_acts_by_its_tasks_or_by_an_embedding(dataset, encoders, tmp_path):
  observation = tiny.OBSERVATION | {"task_width": 0, "language_width": 4}

  def run(encoder, **changes):
    given, model = {"text_encoder": encoder}, {"observation": observation}
    config = tiny.run_config("regression", dataset, data=given, model=model, steps=2, **changes)
    split = inputs.load(config.data)
    assert "language" not in split.train(np.arange(2))["observation"]  # the task says it
    trained = models.load(loop.train(config, tmp_path / encoder))
    table_NE = trained.params["network"]["observe"]["frozen_language"]["table"]
    np.testing.assert_array_equal(table_NE, encoders[encoder])  # training left it as it was
    return trained

  trained = run("one")
  made = batch_lib.fake(trained.spec, 2)
  observed = {"state": made["observation"]["state"], "task": np.array([0, 1], np.int32)}

  def act(**said):
    batch = {name: made[name] for name in batch_lib.ACTING} | {"observation": observed | said}
    return np.asarray(trained.model.act(trained.params, batch, jax.random.key(0))[0])

  by_task = act()
  np.testing.assert_allclose(act(language=encoders["one"]), by_task, atol=1e-5)
  assert (np.abs(act(language=encoders["one"][::-1]) - by_task) > 1e-4).any((1, 2)).all()
  with pytest.raises(ValueError, match=r"'observation/language' is float32\[2, 2\]; expected"):
    act(language=encoders["one"][:, :2])
  # Another run's parameters are no reason to keep another encoder's embeddings.
  run("other", init_from=str(tmp_path / "one"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"language": "x", "text_encoder": "one"},
      "language is 'x' and .* is 'one'; .* one of the two",
    ),
    ({"language": "x"}, "there is no feature 'steps/x'; .*observation/language"),
    ({"text_encoder": "one", "task": ""}, "no task has a text; set config.data.task"),
  ],
)
def test_settings_of_language_that_do_not_fit(embedded, encoders, changes, message):
  with pytest.raises(ValueError, match=message):
    inputs.load(data(embedded, **changes))


def test_datasets_of_a_mixture_all_have_embeddings_or_none_has(dataset, embedded):
  both = {"a": {"language": "observation/language"}, "b": {"path": str(dataset)}}
  with pytest.raises(ValueError, match="as 0 numbers in dataset 1, as 3 in dataset 0"):
    inputs.load(data(embedded, mixture=both))
