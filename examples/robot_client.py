r"""A robot's loop: R steps of a chunk are executed while the server computes the next one.

  pip install openpi-client typing_extensions     # wants numpy below 2, jax does not
  python examples/robot_client.py --host=HOST --port=8000

`Robot` is where yours goes. Where no chunk comes in time the robot holds, then stops: what is left
of an old chunk is never executed.
"""

import argparse
from concurrent import futures
import time

import numpy as np


class Robot:
  """Replace these four by your robot's; actions are in the units of the policy's dataset."""

  def __init__(self, metadata):
    self.state = np.zeros(metadata["observation"]["state"]["shape"][-1], np.float32)
    self.task = metadata["tasks"][0]

  def observe(self):
    return {"state": self.state, "task": self.task}  # and "image_<camera>": uint8 (H, W, 3)

  def send(self, action_A):
    print("send", np.round(action_A, 3))

  def hold(self):
    print("hold")

  def stop(self):
    print("stop")


def run(robot, policy, *, hz=50, execute=8, lead=4, deadline_ms=50.0, hold_s=0.5, steps=None):
  """Moves `robot` by `policy`, an openpi client; returns "done", or why it stopped.

  The next chunk is asked for `lead` steps before `execute` steps of this one are done. The robot
  holds while it is late, and is stopped where it is late by `hold_s`, or where asking fails.
  """
  limits, pool = policy.get_server_metadata()["limits"], futures.ThreadPoolExecutor(1)
  rate_A = np.inf if limits["rate"] is None else np.asarray(limits["rate"])
  chunk_CA, last_A, pending = None, None, None
  at = end = count = asked_at = held = 0
  while steps is None or count < steps:
    tick = time.monotonic()
    if pending is None and at >= end - lead:
      told = {} if last_A is None else {"last_action": np.asarray(last_A, np.float32)}
      request = robot.observe() | told | {"deadline_ms": deadline_ms}
      pending, asked_at = pool.submit(policy.infer, request), count
    if at >= end and pending is not None and pending.done():
      if pending.exception() is not None:
        robot.stop()
        return f"the server failed: {pending.exception()}"
      chunk_CA, pending = pending.result()["actions"], None
      at = count - asked_at  # what the time is past by now is skipped
      end = at + execute if at + execute <= len(chunk_CA) else at
    if at < end:
      action_A = np.clip(chunk_CA[at], limits["low"], limits["high"])
      if last_A is not None:
        action_A = last_A + np.clip(action_A - last_A, -rate_A, rate_A)
      robot.send(action_A)
      last_A, at, held = action_A, at + 1, 0
    else:
      robot.hold()
      held += 1
      if held > hold_s * hz:
        robot.stop()
        return f"no chunk for {hold_s:g} s"
    count += 1
    time.sleep(max(0.0, tick + 1 / hz - time.monotonic()))
  return "done"


if __name__ == "__main__":
  from openpi_client import websocket_client_policy

  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--host", default="127.0.0.1")
  parser.add_argument("--port", type=int, default=8000)
  settings = parser.parse_args()
  server = websocket_client_policy.WebsocketClientPolicy(settings.host, settings.port)
  print(run(Robot(server.get_server_metadata()), server))
