"""FLOPs of a jaxpr, by hand."""

import jax
import jax.numpy as jnp
import pytest

from oat_jax.cost import flops


def test_products_count_twice_and_nothing_else_does():
  a_BTD, w_DF = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
  assert flops.forward(lambda a, w: jnp.tanh(a @ w) + 1, a_BTD, w_DF) == 2 * 2 * 3 * 4 * 5


def test_loops_branches_and_calls_are_followed():
  x_BD, w_LDD = jnp.ones((2, 4)), jnp.ones((6, 4, 4))
  one = 2 * 2 * 4 * 4
  layer = jax.checkpoint(lambda x, w: (x @ w, None))
  assert flops.forward(lambda x, w: jax.lax.scan(layer, x, w)[0], x_BD, w_LDD) == 6 * one
  branch = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0] @ w[1], lambda: x @ w[0])
  assert flops.forward(branch, x_BD, w_LDD) == 2 * one
  assert flops.forward(jax.jit(lambda x, w: x @ w[0]), x_BD, w_LDD) == one


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_a_product_at_every_place(groups):
  x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 6))
  convolve = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )
  assert flops.forward(convolve, x, w) == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4 / groups)
