"""FLOPs that a model asks for, counted in its jaxpr: products of matrices and convolutions.

A multiply-add is two. What a program computes again to save memory is not the model's: the forward
pass is counted, and a training step is three of it.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.extend import core as jax_core

# One for the forward pass, two for the gradients with respect to inputs and weights.
TRAINING = 3


def forward(function: Callable[..., Any], *args: Any) -> float:
  """Returns the FLOPs of one call, traced with arrays or shapes.

  A loop whose number of turns is decided as it runs counts as one turn.
  """
  return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr: Any) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      inner = math.prod(left[axis] for axis in contracted)
      total += 2.0 * math.prod(equation.outvars[0].aval.shape) * inner
    elif name == "conv_general_dilated":
      numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
      made = math.prod(equation.outvars[0].aval.shape) / equation.params["batch_group_count"]
      total += 2.0 * made * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    else:
      times = equation.params["length"] if name == "scan" else 1
      inner = [_of(each) for each in jax_core.jaxprs_in_params(equation.params)]
      total += times * (max(inner, default=0.0) if name == "cond" else sum(inner))
  return total
