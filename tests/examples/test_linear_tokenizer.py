"""A tokenizer that oat_jax does not know is trained, and a policy on it, by its module's path."""

import jax
import numpy as np
import tiny

from oat_jax import batch as batch_lib
from oat_jax.train import loop
from oat_jax.train import models


def test_a_policy_is_trained_on_a_tokenizer_of_anyone_s(dataset, tmp_path):
  config = tiny.run_values("tokenizer", dataset, steps=30, log_every=30, evaluate_every=30)
  model = {"name": "examples.linear_tokenizer", "num_tokens": 3}
  loop.train(models.config_lib.freeze(config | {"model": model}), tmp_path / "tokenizer")
  validation = tiny.metrics(tmp_path / "tokenizer")[-1]
  assert validation["validation/mse_3"] < validation["validation/mse_1"]
  config = tiny.run_config("policy", dataset, steps=3, tokenizer=tmp_path / "tokenizer")
  loop.train(config, tmp_path / "policy")
  trained = models.load(tmp_path / "policy")
  assert trained.tokenizer is not None and trained.tokenizer.max_tokens == 3
  batch = batch_lib.fake(trained.spec, 2)
  known = trained.params["tokenizer"]["statistics"]
  act = jax.jit(trained.model.act)
  for K in (1, 3):
    actions_BCA, info = act(trained.params, batch, jax.random.key(0), K)
    assert actions_BCA.shape == (2, 8, 3) and np.isfinite(actions_BCA).all()
    assert (actions_BCA >= known["min"]).all() and (actions_BCA <= known["max"]).all()
    assert np.asarray(info["tokens_BN"])[:, :K].max() < 64
