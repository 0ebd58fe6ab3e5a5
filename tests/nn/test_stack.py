"""Scanned layers equal layers one by one; what is computed again changes no number."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from oat_jax import batch as batch_lib
from oat_jax.nn import partitioning
from oat_jax.nn import transformer
from oat_jax.perception import vit

L, D = 3, 16


class Net(nn.Module):
  """A stack that looks at a memory."""

  scan: bool = False
  remat: str = "none"
  dropout: float = 0.0

  def setup(self):
    self.stack = transformer.Transformer(
      L, D, 2, 32, cross=True, dropout=self.dropout, scan=self.scan, remat=self.remat
    )

  def __call__(self, x_BTD, memory_BMD, deterministic=True, cache=None, index=0):
    T = x_BTD.shape[1]
    S = T if cache is None else cache[0].shape[-3]
    mask_1TS = (jnp.arange(S) <= index + jnp.arange(T)[:, None])[None]
    return self.stack(
      x_BTD,
      mask_1TS,
      memory=self.stack.memory(memory_BMD),
      cache=cache,
      index=index,
      deterministic=deterministic,
    )

  def empty_cache(self, length):
    return self.stack.empty_cache(2, length)


def stacked(params, blocks="blocks_", layers="layers"):
  """Parameters of layers one by one, as those of scanned ones."""
  rest = {name: value for name, value in params.items() if not name.startswith(blocks)}
  rows = [params[f"{blocks}{i}"] for i in range(len(params) - len(rest))]
  return rest | {layers: jax.tree.map(lambda *x: jnp.stack(x), *rows)}


@pytest.fixture(scope="module")
def arrays():
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), (2, *shape, D))
  return draw(0, 5), draw(1, 3)


@pytest.fixture(scope="module")
def params(arrays):
  return partitioning.init(Net(), jax.random.key(2), *arrays)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_value_and_gradient_are_those_of_layers_one_by_one(remat, params, arrays):
  def of(net, params):
    value = lambda params, arrays: jnp.square(net.apply({"params": params}, *arrays)[0]).sum()
    return jax.jit(jax.value_and_grad(value, (0, 1)))(params, arrays)

  value, (grads, by_input) = of(Net(), params)
  scanned, (scanned_grads, scanned_by_input) = of(
    Net(True, remat), {"stack": stacked(params["stack"])}
  )
  np.testing.assert_allclose(scanned, value, rtol=1e-5)
  wanted = (stacked(grads["stack"]), by_input)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    (scanned_grads["stack"], scanned_by_input),
    wanted,
  )


def test_less_is_kept_for_the_backward_pass(params, arrays):
  """Shapes that lie between the passes: fewer of them, the more is computed again."""
  kept = {}
  for remat in ("none", "dots", "full"):
    net = Net(True, remat)
    of = lambda params, net=net: net.apply({"params": params}, *arrays)[0].sum()
    _, backward = jax.vjp(of, {"stack": stacked(params["stack"])})
    kept[remat] = sum(x.size for x in jax.tree.leaves(backward))
  assert kept["full"] < kept["dots"] < kept["none"]


def test_every_layer_begins_with_weights_of_its_own_and_names_its_axes(arrays):
  params = partitioning.init(Net(True), jax.random.key(2), *arrays)
  axes = partitioning.logical_axes(Net(True), *arrays)
  assert axes["stack"]["layers"]["self_attention"]["w_q"] == ("layers", "embed", "heads", None)
  # As large as one by one, though the arrays have an axis more.
  one_by_one = stacked(partitioning.init(Net(), jax.random.key(2), *arrays)["stack"])
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(params["stack"]["layers"]),
    jax.tree.leaves(one_by_one["layers"]),
  ):
    assert x.shape == y.shape and x.shape[0] == L
    if "scale" not in jax.tree_util.keystr(path):
      assert np.abs(x[0] - x[1]).max() > 0.01
      assert float(x.std()) == pytest.approx(float(y.std()), rel=0.2)


def test_a_cache_holds_every_layer(params, arrays):
  x_BTD, memory_BMD = arrays
  net, params = Net(True), {"params": {"stack": stacked(params["stack"])}}
  whole_BTD, _ = net.apply(params, x_BTD, memory_BMD)
  cache = net.apply(params, 5, method="empty_cache")
  assert cache.k_BSHK.shape == (L, 2, 5, 2, D // 2)
  for t in range(5):
    y_B1D, cache = net.apply(params, x_BTD[:, [t]], memory_BMD, True, cache, t)
    np.testing.assert_allclose(y_B1D[:, 0], whole_BTD[:, t], atol=1e-5)


def test_layers_drop_out_on_their_own(arrays):
  net = Net(True, "full", 0.5)
  params = {"params": partitioning.init(net, jax.random.key(2), *arrays)}
  run = lambda i: net.apply(params, *arrays, False, rngs={"dropout": jax.random.key(i)})[0]
  assert np.array_equal(run(0), run(0)) and not np.allclose(run(0), run(1))
  assert not np.allclose(run(0), net.apply(params, *arrays)[0])


def test_a_vit_is_the_same_scanned():
  sizes = {"patch": 4, "width": D, "layers": L, "heads": 2, "mlp_width": 32}
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  for family in vit.FAMILIES:
    plain = vit.ViT(vit.Config(family, **sizes), True)
    params = partitioning.init(plain, jax.random.key(1), images)
    scanned = vit.ViT(vit.Config(family, **sizes, scan=True, remat="full"), True)
    features = scanned.apply({"params": stacked(params)}, images)
    np.testing.assert_allclose(features, plain.apply({"params": params}, images), atol=1e-5)


@pytest.mark.parametrize("name", ["tokenizer", "quest", "autoregressive", "diffusion"])
def test_models_train_and_act_scanned(name):
  scan = {"scan": True, "remat": "full", "dtype": "bfloat16", "dropout": 0.1}
  batch = batch_lib.fake(tiny.spec(), 4)
  if name in ("tokenizer", "quest"):
    sizes = {"name": "quest", "num_tokens": 4, "kernel": 2} if name == "quest" else {}
    model, args = tiny.tokenizer(**scan, **sizes), ()
  else:
    inner = tiny.tokenizer() if name == "autoregressive" else None
    model = tiny.policy(tokenizer=inner, name=name, **(scan | {"layers": 2}))
    args = () if inner is None else (jax.device_get(jax.jit(inner.init)(jax.random.key(0))),)
  _, rows = tiny.train_steps(model, args, [batch] * 12)
  losses = [row["loss"] for row in rows]
  assert np.isfinite(losses).all() and min(losses[-3:]) < losses[0]
  params = jax.jit(model.init)(jax.random.key(0), *args)
  assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(params))
  if name in ("autoregressive", "diffusion"):
    seen = {key: batch[key] for key in batch_lib.ACTING}
    chunk_BCA, _ = jax.jit(model.act)(params, seen, jax.random.key(1))
    assert np.isfinite(chunk_BCA).all()


def test_what_is_computed_again_must_be_scanned():
  with pytest.raises(ValueError, match="remat is 'full', but layers are not scanned"):
    tiny.tokenizer(remat="full")
  with pytest.raises(ValueError, match=r"vit\.remat is 'some'; it must be one of"):
    vit.Config(remat="some")
