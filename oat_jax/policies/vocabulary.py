"""What is known of tokens beside their ids: where they lie, so that near ones can be treated alike.

Few demonstrations show a state's neighbours with neighbouring tokens; a policy for which ids are
mere names cannot put anything between them, one that knows where they lie can.
"""

import numpy as np

# Of so few levels along a dimension each has a feature of its own.
_FEW = 16


def features(coordinates_VL: np.ndarray) -> np.ndarray:
  """Returns (V, F) float32: coordinates, their squares and products, and which level it is.

  Logits that are linear in these are, along each dimension, anything over few levels, and a normal
  distribution over all dimensions together.

  Args:
    coordinates_VL: a tokenizer's `coordinates`.
  """
  x_VL = np.asarray(coordinates_VL, np.float32)
  columns = [x_VL, x_VL**2]
  columns += [x_VL[:, [i]] * x_VL[:, [j]] for i in range(x_VL.shape[1]) for j in range(i)]
  for x_V in x_VL.T:
    levels = np.unique(x_V)
    if len(levels) <= _FEW:
      columns.append((x_V[:, None] == levels).astype(np.float32))
  return np.concatenate(columns, 1)


def neighbours(coordinates_VL: np.ndarray, deviation: float) -> np.ndarray:
  """Returns (V, V) float32: for each token the probabilities of those around it, itself first.

  A normal distribution over the vocabulary, centred at the token; `deviation` is its standard
  deviation, in steps from one level to the next.
  """
  x_VL = np.asarray(coordinates_VL, np.float64)
  distance_VV = np.zeros((len(x_VL), len(x_VL)))
  for x_V in x_VL.T:
    step = np.diff(np.unique(x_V)).mean()
    distance_VV += np.square((x_V[:, None] - x_V) / step)
  p_VV = np.exp(-distance_VV / (2 * deviation**2))
  return (p_VV / p_VV.sum(1, keepdims=True)).astype(np.float32)
