"""Constraints by logical names: silent outside `rules`, strict about names on any mesh."""

import jax.numpy as jnp
import pytest
import tiny

from oat_jax.nn import partitioning

TABLE = (("batch", ("data", "fsdp")), ("mlp", "tensor"))


def test_a_name_without_a_rule_is_an_error_on_a_single_device_already():
  x_BF = jnp.ones((2, 3))
  with partitioning.rules(TABLE, tiny.mesh()):
    assert partitioning.constrain(x_BF, "batch", "mlp") is x_BF
    with pytest.raises(ValueError, match="no sharding rule for activation axis 'width'"):
      partitioning.constrain(x_BF, "batch", "width")
  assert partitioning.constrain(x_BF, "batch", "width") is x_BF
