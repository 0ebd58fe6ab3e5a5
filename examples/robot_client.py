r"""A robot's loop: R steps of a chunk are executed while the server computes the next one.

  pip install openpi-client typing_extensions     # wants numpy below 2, jax does not
  python examples/robot_client.py --host=HOST --port=8000 --token-file=TOKEN

`Robot` is where yours goes. A policy that looks at several moments is sent those of the last
control steps, which nobody else has seen. Where no chunk comes in time the robot holds, then stops;
nothing is executed that is older than it may be, out of the limits, or not a number.
"""

import argparse
import collections
import pathlib
import threading
import time

import numpy as np


class Robot:
  """Replace these four by your robot's; actions are in the units of the policy's dataset."""

  def __init__(self, metadata):
    self.state = np.zeros(metadata["observation"]["state"]["shape"][-1], np.float32)
    self.task = metadata["tasks"][0]

  def observe(self):
    """Returns one moment; it is asked for at every step where the policy looks at several."""
    return {"state": self.state, "task": self.task}  # and "image_<camera>": uint8 (H, W, 3)

  def send(self, action_A):
    print("send", np.round(action_A, 3))

  def hold(self):
    print("hold")

  def stop(self):
    print("stop")


class Moments:
  """The last moments, as many as the policy looks at, no two further apart than `gap_s`."""

  def __init__(self, count, gap_s):
    self.count, self._gap_s, self._at = count, gap_s, 0.0
    self._seen = collections.deque(maxlen=count)

  def see(self, moment):
    now = time.monotonic()
    if self._seen and now - self._at > self._gap_s:
      self._seen.clear()  # another moment than the one before is worse than none
      print(f"no moment was seen for {now - self._at:.3f} s: the policy is told of this one alone")
    self._seen.append(moment)
    self._at = now

  def observation(self):
    """Returns what a request holds: what is seen has an axis of time, oldest first."""
    many = lambda name: name == "state" or name.startswith("image_")
    last = self._seen[-1]
    return {k: np.stack([x[k] for x in self._seen]) if many(k) else last[k] for k in last}


class Asking(threading.Thread):
  """One request under way; it does not keep the program alive."""

  def __init__(self, policy, request, sent):
    super().__init__(daemon=True)
    self.policy, self.request, self.sent, self.since = policy, request, sent, time.monotonic()
    self.answer = self.error = None
    self.start()

  def run(self):
    try:
      self.answer = np.asarray(self.policy.infer(self.request)["actions"], np.float32)
    except Exception as error:
      self.error = error


def run(robot, policy, **settings):
  """Moves `robot` by `policy`, an openpi client; returns "done", or why it stopped. See `loop`."""
  try:
    return loop(robot, policy, **settings)
  finally:
    robot.stop()  # whatever happened, Ctrl-C and a broken camera too


def loop(robot, policy, *, hz=50, execute=8, lead=4, deadline_ms=50.0, hold_s=0.5, steps=None):
  """As `run`; `steps` ends it.

  The next chunk is asked for `lead` steps before `execute` steps of this one are done. A chunk that
  comes later than that, or than its deadline, is thrown away, and so is what the clock is past.
  """
  metadata = policy.get_server_metadata()
  limits, moments = metadata["limits"], Moments(metadata["observation_steps"], gap_s=2 / hz)
  rate_A = np.inf if limits["rate"] is None else np.asarray(limits["rate"])
  oldest = max(lead / hz, deadline_ms / 1e3) + 1 / hz
  chunk_CA, last_A, asking, expires = None, None, None, 0.0
  at = end = sent = count = 0
  moved = time.monotonic()
  while steps is None or count < steps:
    begin = time.monotonic()
    ask = asking is None and at >= end - lead
    if ask or moments.count > 1:
      moments.see(robot.observe())
    if ask:
      told = {} if last_A is None else {"last_action": np.asarray(last_A, np.float32)}
      asking = Asking(policy, moments.observation() | told | {"deadline_ms": deadline_ms}, sent)
    tick = time.monotonic()
    if at >= end and asking is not None and not asking.is_alive():
      if asking.error is not None:
        return f"the server failed: {asking.error}"
      chunk_CA = asking.answer
      if chunk_CA.ndim != 2 or not np.isfinite(chunk_CA).all():
        return f"the server's answer is no chunk: {chunk_CA}"
      if tick - asking.since <= oldest:
        at = sent - asking.sent  # what was executed since it was asked for is skipped
        end, expires = min(at + execute, len(chunk_CA)), asking.since + oldest + execute / hz
      asking = None
    if at < end and tick <= expires:
      action_A = np.clip(chunk_CA[at], limits["low"], limits["high"])
      if last_A is not None:
        action_A = last_A + np.clip(action_A - last_A, -rate_A, rate_A)
      robot.send(action_A)
      last_A, at, sent, moved = action_A, at + 1, sent + 1, tick
    else:
      at = end  # the rest of the chunk is too old
      robot.hold()
      if tick - moved > hold_s:
        return f"no chunk for {hold_s:g} s"
    count += 1
    time.sleep(max(0.0, begin + 1 / hz - time.monotonic()))
  return "done"


if __name__ == "__main__":
  from openpi_client import websocket_client_policy

  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--host", default="127.0.0.1")
  parser.add_argument("--port", type=int, default=8000)
  parser.add_argument("--token-file")
  given = parser.parse_args()
  token = pathlib.Path(given.token_file).read_text().strip() if given.token_file else None
  server = websocket_client_policy.WebsocketClientPolicy(given.host, given.port, api_key=token)
  print(run(Robot(server.get_server_metadata()), server))
