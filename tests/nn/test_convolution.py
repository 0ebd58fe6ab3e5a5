"""The causal convolution, against loops over windows."""

import jax
import numpy as np
import pytest

from oat_jax.nn import convolution
from oat_jax.nn import partitioning


@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (3, 2), (2, 2), (3, 1), (1, 1)])
def test_output_i_is_the_window_that_ends_with_stride_i(kernel, stride):
  module = convolution.CausalConvolution(4, kernel, stride)
  x_BTI = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
  params = partitioning.init(module, jax.random.key(0), x_BTI)
  w_KID = np.asarray(params["w"], np.float64)
  assert list(params) == ["w"] and w_KID.shape == (kernel, 3, 4)
  expected_BTD = np.zeros((2, 8 // stride, 4))
  for i in range(8 // stride):
    for k in range(kernel):
      t = (i + 1) * stride - kernel + k
      if t >= 0:
        expected_BTD[:, i] += x_BTI[:, t] @ w_KID[k]
  got_BTD = module.apply({"params": params}, x_BTI)
  np.testing.assert_allclose(got_BTD, expected_BTD, rtol=1e-4, atol=1e-5)


def test_outputs_keep_the_inputs_variance():
  module = convolution.CausalConvolution(64, 5, 1)
  x_BTI = np.random.default_rng(0).normal(size=(4, 64, 32)).astype(np.float32)
  params = partitioning.init(module, jax.random.key(0), x_BTI)
  y_BTD = np.asarray(module.apply({"params": params}, x_BTI))[:, 5:]
  assert y_BTD.std() == pytest.approx(1, abs=0.1)
  assert partitioning.logical_axes(module, x_BTI) == {"w": (None, None, "embed")}
