"""A served export: round trips beside acting in this process, many clients, and an hour of them.

The server is a process of its own, asked over the loopback; where clients and server share two
cores, both pay. The last part keeps clients coming, breaking off and coming back, at 20 requests a
second, and looks at the server's memory.
"""

from collections.abc import Callable, Mapping
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
from websockets.sync import client

from oat_jax import batch as batch_lib
from oat_jax.evaluate import rollout
from oat_jax.export import loader
from oat_jax.serve import wire

REQUESTS, MANY, SOAK_S, SOAK_CLIENTS, SOAK_RATE = 300, 16, 180.0, 8, 20.0


def run(configs: Mapping[str, Any], scale: float = 1.0, export: str = "") -> dict[str, float]:
  """`configs` is not used; `export` is the directory that is served."""
  del configs
  if not export:
    raise ValueError("serve needs --export=DIR, of launch/export.py")
  policy = loader.load(export)
  if not isinstance(policy, loader.ExportedPolicy):
    raise ValueError(f"{export} holds a tokenizer; only policies are served")
  request = _request(policy)
  count = max(20, round(REQUESTS * scale))
  figures: dict[str, float] = {}
  own = _typical(lambda: policy.act(request), count)
  figures |= {f"serve_act_here_{name}_ms": ms for name, ms in own.items()}
  begin = time.perf_counter()
  with _Server(export) as server:
    figures["serve_ready_wall_s"] = time.perf_counter() - begin
    data = wire.pack(request)
    with server.connect() as connection:
      one = _typical(lambda: _ask(connection, data), count)
    figures |= {f"serve_1_client_{name}_ms": ms for name, ms in one.items()}
    figures["serve_1_client_p50_over_act"] = one["p50"] / own["p50"]
    single, _ = _together(server, data, 1, 5 * scale)
    rate, times = _together(server, data, MANY, 5 * scale)
    figures["serve_1_client_per_s"], figures[f"serve_{MANY}_clients_per_s"] = single, rate
    figures[f"serve_{MANY}_clients_over_1"] = rate / single
    figures[f"serve_{MANY}_clients_p95_ms"] = float(np.percentile(times, 95))
    figures |= _soak(server, data, SOAK_S * scale)
  return figures


def _request(policy: loader.ExportedPolicy) -> dict[str, Any]:
  """Returns what one robot observes: random numbers, in the policy's shapes."""
  made = batch_lib.fake(policy.spec.batch, 1)["observation"]
  return {name: x[0] for name, x in made.items() if name not in ("task", "language")} | {
    "task": policy.spec.batch.task_names[0]
  }


def _typical(call: Callable[[], Any], count: int) -> dict[str, float]:
  found = rollout.latency_ms([call] * count)
  return {name: found[name] for name in ("p50", "p95")}


def _ask(connection: Any, data: bytes) -> None:
  connection.send(data)
  answer = connection.recv(timeout=60)
  if isinstance(answer, str):
    raise RuntimeError(f"the server answered: {answer}")


def _together(server: "_Server", data: bytes, clients: int, seconds: float) -> tuple[float, list]:
  """Returns (requests a second, milliseconds of each) of so many clients that ask all the time."""
  times: list[float] = []
  failed: list[Exception] = []
  go, until = threading.Event(), [0.0]

  def ask():
    with server.connect() as connection:
      _ask(connection, data)
      go.wait()
      while time.perf_counter() < until[0]:
        begin = time.perf_counter()
        _ask(connection, data)
        times.append(1e3 * (time.perf_counter() - begin))

  def count():
    try:
      ask()
    except Exception as error:
      failed.append(error)

  threads = [threading.Thread(target=count) for _ in range(clients)]
  for thread in threads:
    thread.start()
  time.sleep(0.5)
  until[0] = time.perf_counter() + max(seconds, 1.0)
  go.set()
  for thread in threads:
    thread.join()
  if failed:
    raise RuntimeError(f"{len(failed)} of {clients} clients failed: {failed[0]}") from failed[0]
  return len(times) / max(seconds, 1.0), times


def _soak(server: "_Server", data: bytes, seconds: float) -> dict[str, float]:
  """Clients that connect, die and come back; the memory is compared from a quarter of it on."""
  until, errors, asked, died = time.perf_counter() + seconds, [], [], []

  def live(number):
    rng = random.Random(number)
    while time.perf_counter() < until:
      connection = None
      try:
        connection = server.connect()
        for _ in range(rng.randint(1, 60)):
          if time.perf_counter() >= until:
            break
          begin = time.perf_counter()
          _ask(connection, data)
          asked.append(1e3 * (time.perf_counter() - begin))
          time.sleep(max(0.0, begin + SOAK_CLIENTS / SOAK_RATE - time.perf_counter()))
        if rng.random() < 0.5:  # in the middle of a request, without a word
          connection.send(data)
          connection.socket.close()
          died.append(number)
      except Exception as error:  # whatever it is, it was not asked for
        errors.append(repr(error))
        time.sleep(0.1)
      finally:
        if connection is not None:
          connection.close()

  threads = [threading.Thread(target=live, args=(i,)) for i in range(SOAK_CLIENTS)]
  for thread in threads:
    thread.start()
  sizes = []
  while any(thread.is_alive() for thread in threads):
    time.sleep(min(1.0, seconds / 20))
    sizes.append(server.memory_mb())
  steady = sizes[len(sizes) // 4 :]
  return {
    "serve_soak_s": seconds,
    "serve_soak_requests": len(asked),
    "serve_soak_died": len(died),
    "serve_soak_errors": len(errors),
    "serve_soak_p95_ms": float(np.percentile(asked, 95)),
    "serve_soak_memory_mb": steady[-1],
    "serve_soak_memory_growth": steady[-1] / steady[0] - 1,
  }


class _Server:
  """The command in a process of its own, on a port of its choice."""

  def __init__(self, export: str):
    command = [sys.executable, "-m", "oat_jax.serve.run", f"--export={export}", "--port=0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

  def __enter__(self) -> "_Server":
    assert self._process.stdout is not None
    lines = []
    for line in self._process.stdout:
      lines.append(line)
      if found := re.search(r"ws://\S+:(\d+)", line):
        self._port = int(found[1])
        return self
    self._process.wait()
    raise RuntimeError(f"the server did not start: {''.join(lines)}")

  def __exit__(self, *_: Any) -> None:
    self._process.terminate()
    self._process.wait(60)

  def connect(self) -> Any:
    connection = client.connect(f"ws://127.0.0.1:{self._port}", compression=None, max_size=None)
    connection.recv(timeout=60)
    return connection

  def memory_mb(self) -> float:
    """Returns the server's resident memory; 0 where the system does not tell."""
    status = pathlib.Path(f"/proc/{self._process.pid}/status")
    if not status.exists():
      return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
    return int(found[1]) / 1e3 if found else 0.0
