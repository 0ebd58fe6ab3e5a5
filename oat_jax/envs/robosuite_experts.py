"""Scripted experts of robosuite's tasks.

What they do next follows from where gripper and object are, so each can be asked from any state.
Positions are in metres in the frame of the world, in which the robot's base is not turned.
"""

from collections.abc import Iterable

import numpy as np

from oat_jax.envs import env as env_lib

_OPEN, _CLOSED = -1.0, 1.0
_CLEAR = 0.07  # how far above an object the hand approaches
_ROOM = 0.07  # between open fingers
_FINE, _COARSE = 0.008, 0.02  # how well the hand is above an object, to begin and to go on
_SPEED = 2.0  # asks for more than what is left: the controller makes an eighth of it in a step
_BIN = np.array([0.16, 0.37])  # in the can's, where the arm still reaches well
_BIN_LOW, _BIN_HIGH = np.array([0.13, 0.31]), np.array([0.27, 0.50])  # for a can to stand in it
_RIM = 0.90
_PEG = np.array([0.23, 0.10])  # the square one
_PEG_TOP = 0.95
_HANDLE = np.array([0.054, 0, 0])  # in the nut's frame
_TURN = 2.0  # radians either way that the wrist has to spare


def _quat_to_matrix(quat: np.ndarray) -> np.ndarray:
  """Takes (x, y, z, w)."""
  x, y, z, w = quat
  return np.array(
    [
      [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
      [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
      [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
  )


def _yaw(matrix: np.ndarray) -> float:
  return float(np.arctan2(matrix[1, 0], matrix[0, 0]))


def _nearest(yaws: Iterable[float], now: float) -> float:
  """Returns that of several directions which the wrist, at `now`, turns to the soonest."""
  turns = np.add.outer(list(yaws), 2 * np.pi * np.array([-1, 0, 1])).ravel()
  reachable = turns[np.abs(turns) <= _TURN]
  return float(reachable[np.argmin(np.abs(reachable - now))])


class _Hand:
  """What is seen of the robot."""

  def __init__(self, state_S: np.ndarray):
    self.at = state_S[:3]
    self.matrix = _quat_to_matrix(state_S[3:7])
    self.opening = float(state_S[7] - state_S[8])

  def go(self, displacement: np.ndarray, fingers: float, yaw: float | None = None) -> np.ndarray:
    """Returns the action that moves by `displacement` and, with a yaw, holds the hand upright."""
    turn = np.zeros(3)
    if yaw is not None:
      upright = np.array(
        [[np.cos(yaw), np.sin(yaw), 0], [np.sin(yaw), -np.cos(yaw), 0], [0, 0, -1]]
      )
      # The axis, times the sine of the angle.
      off = upright @ self.matrix.T
      turn = np.array([off[2, 1] - off[1, 2], off[0, 2] - off[2, 0], off[1, 0] - off[0, 1]]) / 2
    action_A = [*(displacement / 0.05 * _SPEED), *(turn / 0.5 * _SPEED), fingers]
    return np.clip(action_A, -1, 1).astype(np.float32)

  def fetch(
    self, target: np.ndarray, width: float, yaw: float | None = None, turned: bool = True
  ) -> np.ndarray | None:
    """Returns the next action of grasping at `target`, None where it is done.

    `width` is what the fingers will be held apart by, `turned` whether the yaw is right already.
    """
    away = target - self.at
    aside = np.linalg.norm(away[:2])
    if aside < _COARSE and abs(away[2]) < 0.012:
      return None if self.opening < width + 0.005 else self.go(away, _CLOSED, yaw)
    low = -away[2] < _CLEAR - 0.02
    ready = turned and self.opening > _ROOM and aside < (_COARSE if low else _FINE)
    if ready:
      return self.go(away, _OPEN, yaw)
    if low and aside > 2 * _COARSE:  # not through what stands around
      away[:2] = 0
    return self.go(away + np.array([0, 0, _CLEAR]), _OPEN, yaw)


class Lift:
  """Grasps the cube as it lies, without turning, and lifts it."""

  def act(self, observation: env_lib.Observation) -> np.ndarray:
    state_S = observation["state"].astype(np.float64)
    hand, cube = _Hand(state_S), state_S[9:12]
    action_A = hand.fetch(cube, 0.060)
    if action_A is None:
      # Held by two edges the cube keeps the fingers further apart: the tighter, the faster.
      tight = np.clip((0.067 - hand.opening) / 0.02, 0, 1)
      return hand.go(np.array([0, 0, 0.025 * tight]), _CLOSED)
    return action_A


class Can:
  """Grasps the can from above, carries it over the rims and lets go in its bin."""

  def act(self, observation: env_lib.Observation) -> np.ndarray:
    state_S = observation["state"].astype(np.float64)
    hand, can = _Hand(state_S), state_S[16:19]
    to_bin = _BIN - can[:2]
    inside = (can[:2] > _BIN_LOW).all() and (can[:2] < _BIN_HIGH).all()
    if inside and can[2] < _RIM - 0.01:
      return hand.go(np.array([0, 0, 0.05]), _OPEN, 0)
    action_A = hand.fetch(can, 0.05, 0)
    if action_A is not None:
      return action_A
    if inside and np.linalg.norm(to_bin) < (0.02 if can[2] > _RIM + 0.06 else 0.04):
      return hand.go(np.array([*to_bin, -0.03]), _CLOSED, 0)
    rise = _RIM + 0.08 - can[2]
    return hand.go(np.array([*(to_bin if rise < 0.03 else (0, 0)), rise]), _CLOSED, 0)


class Square:
  """Grasps the nut by its handle, turns it to the peg's square and lowers it over the peg."""

  def act(self, observation: env_lib.Observation) -> np.ndarray:
    state_S = observation["state"].astype(np.float64)
    hand, nut = _Hand(state_S), state_S[16:19]
    matrix = _quat_to_matrix(state_S[19:23])
    yaw, to_peg = _yaw(hand.matrix), _PEG - nut[:2]
    if np.linalg.norm(to_peg) < 0.02 and nut[2] < _PEG_TOP - 0.085:
      return hand.go(np.array([0, 0, 0.05]), _OPEN, yaw)
    along = _nearest((_yaw(matrix), _yaw(matrix) + np.pi), yaw)
    action_A = hand.fetch(nut + matrix @ _HANDLE, 0.032, along, abs(along - yaw) < 0.1)
    if action_A is not None:
      return action_A
    # Not with the handle away from the robot, where the arm does not reach.
    grip = yaw - _yaw(matrix)
    square = _nearest((grip + np.pi / 2, grip + np.pi, grip - np.pi / 2), yaw)
    over = np.linalg.norm(to_peg) < (0.004 if nut[2] > _PEG_TOP + 0.02 else 0.01)
    if over and abs(square - yaw) < 0.05:
      return hand.go(np.array([*to_peg, -0.03]), _CLOSED, square)
    rise = _PEG_TOP + 0.05 - nut[2]
    if rise > 0.03:
      return hand.go(np.array([0, 0, rise]), _CLOSED, yaw)
    return hand.go(np.array([*to_peg, rise]), _CLOSED, square)


EXPERTS = {"lift": Lift, "can": Can, "square": Square}
