"""Policies with a camera: they train, act and depend on what they see; weights come from a file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import towers

from oat_jax import batch as batch_lib
from oat_jax.train import checkpoint
from oat_jax.train import loop
from oat_jax.train import models
from oat_jax.train import optimizer

SPEC = tiny.spec(cameras=(("top", 16, 16),))
TOWER = {"patch": 4, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24}
LOOKS = {
  "autoregressive": {
    "encoder": "vit",
    "vit": TOWER | {"layers": 1},
    "tokens": "patches",
    "crop": 12,
  },
  "regression": {"channels": (16,), "keypoints": 2, "crop": 12, "jitter": 0.3},
}


@pytest.fixture(scope="module", params=list(LOOKS))
def policy(request):
  """(policy, arguments of its init)"""
  name, inner = request.param, tiny.tokenizer(SPEC) if request.param == "autoregressive" else None
  observation = tiny.OBSERVATION | {"images": LOOKS[name], "modality_dropout": 0.1}
  args = () if inner is None else (jax.jit(inner.init)(jax.random.key(0)),)
  return tiny.policy(SPEC, inner, name, observation=observation), args


def acting(made):
  return {name: made[name] for name in batch_lib.ACTING}


def test_a_policy_with_a_camera_trains_and_acts(policy):
  policy, args = policy
  made = batch_lib.fake(SPEC, 4)
  start = jax.jit(policy.init)(jax.random.key(0), *args)
  end, rows = tiny.train_steps(policy, args, [made, made])
  assert all(np.isfinite(row["loss"]) for row in rows)
  looks = lambda params: params["network"]["observe"]["images_top"]
  before, after = (tiny.to_bits(looks(params)) for params in (start, end.params))
  still = {path for path in before if before[path] == after[path]}
  assert all("['k']['b']" in path for path in still)  # shifts all scores alike
  batch = acting(made)
  chunk_BCA, _ = jax.jit(policy.act)(end.params, batch, jax.random.key(0))
  assert chunk_BCA.shape == (4, 8, 3) and np.isfinite(chunk_BCA).all()
  for frames in (np.zeros((4, 2, 16, 12, 3), np.uint8), np.zeros((4, 2, 16, 16, 3), np.float32)):
    bad = batch | {"observation": batch["observation"] | {"image_top": frames}}
    with pytest.raises(ValueError, match="'observation/image_top' is .*expected uint8"):
      policy.act(end.params, bad, jax.random.key(0))


def test_what_a_policy_says_depends_on_what_its_crop_shows(policy):
  policy, args = policy
  made = batch_lib.fake(SPEC, 4)
  params = jax.jit(policy.init)(jax.random.key(0), *args)
  params["network"]["observe"]["images_top"] = jax.tree.map(
    lambda x: 2 * x, params["network"]["observe"]["images_top"]
  )

  def said(frames):
    batch = made | {"observation": made["observation"] | {"image_top": frames}}
    if args:  # tokens are discrete: their probabilities have gradients
      return policy.evaluate(params, batch)["cross_entropy"].sum()
    free = {"min": jnp.full((1, 3), -1e9), "max": jnp.full((1, 3), 1e9)}
    unclipped = params | {"action_statistics": params["action_statistics"] | free}
    return policy.act(unclipped, acting(batch), jax.random.key(0))[0].sum()

  frames = made["observation"]["image_top"].astype(np.float32)
  by_place = np.asarray(jax.jit(jax.grad(said))(frames)).any((0, 4))
  inside = np.zeros((2, 16, 16), bool)
  inside[:, 2:14, 2:14] = True
  assert by_place[inside].mean() > 0.95 and not by_place[~inside].any()


def tree(value):
  leaf = lambda: {"w": jnp.full((2, 2), value), "b": jnp.full(2, value)}
  observe = {"images": leaf(), "images_top": leaf(), "frozen_images_top": leaf(), "mlp_in": leaf()}
  return {"network": {"observe": observe | {"patches_top": {"project": leaf()}}}}


def test_encoders_of_images_learn_at_their_rate_and_frozen_ones_not_at_all():
  updates = []
  for rate in (1.0, 0.25):
    config = tiny.optimizer_config(image_rate=rate, warmup_steps=0, weight_decay=0.5)
    tx, params = optimizer.make(config, 10), tree(3.0)
    state = tx.init(params)
    got, _ = tx.update(optimizer.trained(tree(1.0)), state, params)
    updates.append(got["network"]["observe"])
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert len(moments) == 2 * 2 * 4  # two of each trained array
  whole, slow = updates
  for name, update in whole.items():
    assert (name == "frozen_images_top") == (not jax.tree.leaves(update))
    scale = 0.25 if name in ("images", "images_top") else 1.0
    for one, other in zip(jax.tree.leaves(update), jax.tree.leaves(slow[name])):
      np.testing.assert_allclose(other, scale * one)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """Episodes with one camera."""
  from tensorflow_datasets import features as F

  from oat_jax.data import write

  image = F.Image(shape=(16, 16, 3), encoding_format="png")
  state = {"state": F.Tensor(shape=(5,), dtype=np.float32), "top": image}
  features = write.rlds_features(state, 3, {"task": F.Text()})
  episodes, rng = [tiny.episode("lift", seed) for seed in range(4)], np.random.default_rng(0)
  for episode in episodes:
    for step in episode["steps"]:
      step["observation"]["top"] = rng.integers(0, 256, (16, 16, 3), np.uint8)
  out = tmp_path_factory.mktemp("images") / "dataset"
  write.write(out, features, episodes, name="tiny")
  return out


def config(dataset, weights, changes=None):
  looks = {"encoder": "vit", "weights": str(weights), "vit": TOWER | {"family": "dinov2"}}
  return tiny.run_config(
    "regression",
    dataset,
    data={"cameras": ("top=observation/top",)},
    model={"observation": tiny.OBSERVATION | {"images": looks | (changes or {})}},
    steps=1,
  )


def test_a_run_begins_with_the_files_weights_and_needs_the_file_no_more(dataset, tmp_path, capsys):
  weights = towers.write(tmp_path / "tower.safetensors", "dinov2", side=4)
  run = config(dataset, weights, {"frozen": True})
  loop.train(run, tmp_path / "run")
  weights.unlink()
  capsys.readouterr()
  loop.train(run, tmp_path / "run")
  assert "is done: 1 steps" in capsys.readouterr().out

  trained = models.load(tmp_path / "run")
  got = trained.params["network"]["observe"]["frozen_images_top"]
  tower = towers.tensors("dinov2", side=4)
  for ours, theirs in (
    (got["positions"], tower["embeddings.position_embeddings"][0]),
    (got["blocks_1"]["mlp"]["up"]["w"], tower["encoder.layer.1.mlp.fc1.weight"].T),
  ):
    np.testing.assert_array_equal(ours, theirs)
  batch = acting(batch_lib.fake(trained.spec, 2))
  assert np.isfinite(jax.jit(trained.model.act)(trained.params, batch, None)[0]).all()


def test_a_file_that_does_not_fit_ends_a_run_before_it_begins(dataset, tmp_path):
  weights = towers.write(tmp_path / "tower.safetensors", "siglip")
  with pytest.raises(ValueError, match="tower.safetensors lacks the tensor 'embeddings.cls_token'"):
    loop.train(config(dataset, weights), tmp_path / "run")
  assert not (tmp_path / "run").exists() and not checkpoint.steps(tmp_path / "run")
