"""Not a test: openpi's own client, in an environment of its own, asks a server; see against.py."""

import sys

import numpy as np
from openpi_client import action_chunk_broker
from openpi_client import websocket_client_policy

if __name__ == "__main__":
  port, token = int(sys.argv[1]), sys.argv[2]
  policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key=token)
  metadata = policy.get_server_metadata()
  horizon, dims = metadata["action_horizon"], metadata["action_dim"]
  size = metadata["observation"]["state"]["shape"][-1]
  moments = np.zeros((metadata["observation_steps"], size), np.float32)
  request = {"state": moments, "task": metadata["tasks"][0]}
  answer = policy.infer(request | {"num_tokens": 2, "deadline_ms": 1e4})
  assert answer["actions"].shape == (horizon, dims) and answer["num_tokens"] == 2, answer
  assert answer["actions"].dtype == np.float32 and answer["server_timing"]["infer_ms"] > 0
  broker = action_chunk_broker.ActionChunkBroker(policy, horizon)
  whole = policy.infer(request)["actions"]
  for step in range(horizon):
    np.testing.assert_allclose(broker.infer(request)["actions"], whole[step], atol=1e-6)
  try:
    policy.infer(request | {"state": np.zeros(size + 1)})
    raise AssertionError("a wrong shape was taken")
  except RuntimeError as error:
    assert f"expected [{size}]" in str(error) and "Traceback" not in str(error), error
  print(f"openpi-client, numpy {np.__version__}: chunks, a broker's steps and an error are right")
