r"""Serves an export: openpi's websocket protocol and, if wanted, praxis-remote's gRPC service.

Examples:
  python launch/serve.py --export=E --port=8000
  python launch/serve.py --export=E --keymap=libero --grpc-port=50051 --replan=8
  oat-jax-serve --export=E --host=0.0.0.0 --token-file=TOKEN

Only this machine can connect, unless --host names another address, which needs a token. Programs
are compiled before the port opens; SIGTERM and Ctrl-C answer what was asked, and end. The command
oat-jax-serve is there once oat_jax is installed with its extra `serve`.
"""

import argparse
import asyncio
from collections.abc import Sequence
import importlib
import ipaddress
import os
import pathlib
import signal
import sys
import time
from typing import Any

import jax

from oat_jax.export import loader
from oat_jax.serve import keymap as keymap_lib
from oat_jax.serve import service as service_lib

PROGRAMS = "~/.cache/oat_jax/programs"  # compiled ones, unless JAX_COMPILATION_CACHE_DIR is set


def main(argv: Sequence[str] | None = None) -> int:
  """Serves until it is told to stop; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="oat-jax-serve",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--export", required=True, help="directory that launch/export.py wrote")
  add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
  add("--port", type=int, default=8000, help="of the websocket; 0 chooses one (%(default)s)")
  add("--grpc-port", type=int, help="of the gRPC service; none if it is not given")
  add("--replan", type=int, help="of gRPC: steps executed of a chunk (8, or all if it has fewer)")
  add("--keymap", default="", help="names of observations: a ready one, or a JSON file")
  add("--grpc-keymap", default="praxis", help="the same of gRPC (%(default)s)")
  add("--token-file", help="file with the token that clients must send")
  add("--max-batch", type=int, default=16, help="requests run together (%(default)s)")
  add("--workers", type=int, help="batches run side by side (2 on CPUs, 1 elsewhere)")
  add("--window-ms", type=float, default=2.0, help="a request may wait for others (%(default)s)")
  add("--deadline-ms", type=float, help="of requests that name none")
  add("--max-clients", type=int, default=64, help="connections at a time (%(default)s)")
  add("--max-message-mb", type=float, default=16, help="of a request (%(default)s)")
  add("--request-s", type=float, default=30, help="until a request is given up (%(default)s)")
  add("--idle-s", type=float, default=600, help="between a client's requests (%(default)s)")
  add("--debug", action="store_true", help="tell clients what failed inside the server")
  settings = parser.parse_args(argv)
  try:
    asyncio.run(_serve(settings))
  except (ValueError, OSError, ImportError, RuntimeError) as error:
    if settings.debug:
      raise
    print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    return 1
  return 0


def _check(settings: argparse.Namespace) -> str:
  """Returns the token; ValueError where the settings would not do."""
  for name in ("max_batch", "max_clients", "workers"):
    if getattr(settings, name) is not None and getattr(settings, name) < 1:
      raise ValueError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; 1 is the least")
  for name in ("max_message_mb", "request_s", "idle_s", "deadline_ms"):
    value = getattr(settings, name)
    if value is not None and not value > 0:
      raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
  if settings.window_ms < 0:
    raise ValueError(f"--window-ms is {settings.window_ms}; it must not be negative")
  token = ""
  if settings.token_file:
    token = pathlib.Path(settings.token_file).read_text().strip()
    if len(token) < 16 or not token.isascii() or any(c.isspace() for c in token):
      raise ValueError(
        f"{settings.token_file} holds no token: one line of at least 16 letters and digits"
      )
  if not _is_loopback(settings.host) and not token:
    raise ValueError(
      f"--host={settings.host} lets other machines in; give --token-file=FILE, whose token they "
      "send as `Authorization: Api-Key TOKEN`"
    )
  return token


def _is_loopback(host: str) -> bool:
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def _protocols(settings: argparse.Namespace) -> tuple[Any, Any]:
  """Returns the modules of both protocols; gRPC's is None where it is not asked for."""
  wanted = ["websocket"] + ["grpc"] * (settings.grpc_port is not None)
  try:
    found = [importlib.import_module(f"oat_jax.serve.{name}") for name in wanted]
  except ImportError as error:
    raise ImportError(f"serving needs more ({error}): pip install 'oat-jax[serve]'") from error
  return found[0], found[1] if len(found) > 1 else None


async def _serve(settings: argparse.Namespace) -> None:
  begin = time.monotonic()
  token = _check(settings)
  websocket, grpc = _protocols(settings)
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(PROGRAMS).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  policy = loader.load(settings.export)
  if not isinstance(policy, loader.ExportedPolicy):
    raise ValueError(f"{settings.export} holds a tokenizer; only policies act")
  keymap = keymap_lib.load(settings.keymap, policy.spec.batch)
  grpc_keymap = grpc and keymap_lib.load(settings.grpc_keymap, policy.spec.batch)
  horizon = policy.spec.batch.action_horizon
  replan = min(8, horizon) if settings.replan is None else settings.replan
  if not 1 <= replan <= horizon:
    raise ValueError(f"--replan is {replan}; it must be in 1..{horizon}, a chunk's steps")
  on_cpus = jax.default_backend() == "cpu"  # where a batch is computed mostly by one core
  service = service_lib.Service(
    policy,
    keymap,
    max_batch=settings.max_batch,
    window_ms=settings.window_ms,
    deadline_ms=settings.deadline_ms,
    workers=(2 if on_cpus else 1) if settings.workers is None else settings.workers,
  )
  print(f"compiling for batches of up to {settings.max_batch}", flush=True)
  service.warm_up()
  message_bytes = int(settings.max_message_mb * 2**20)
  limits = websocket.Limits(
    message_bytes, settings.max_clients, settings.request_s, settings.idle_s
  )
  server = websocket.Server(service, token=token, limits=limits, debug=settings.debug)
  remote: Any = None
  port = await server.start(settings.host, settings.port)
  try:
    if grpc:
      remote, grpc_port = grpc.start(
        service,
        settings.host,
        settings.grpc_port,
        keymap=grpc_keymap,
        replan=replan,
        token=token,
        message_bytes=message_bytes,
        request_s=settings.request_s,
        debug=settings.debug,
      )
      print(f"gRPC: {settings.host}:{grpc_port}", flush=True)
    seconds, told = time.monotonic() - begin, _heeded()
    print(f"ready after {seconds:.1f} s: ws://{settings.host}:{port}", flush=True)
    await told.wait()
    print("stopping: requests that are here are answered", flush=True)
  finally:
    await server.stop()
    if remote is not None:
      remote.stop(10).wait()
    service.close()


def _heeded() -> asyncio.Event:
  """Returns what SIGTERM and Ctrl-C set from now on; a second one ends the process at once."""
  told = asyncio.Event()
  loop = asyncio.get_running_loop()

  def stop():
    if told.is_set():
      os._exit(130)
    told.set()

  for number in (signal.SIGTERM, signal.SIGINT):
    loop.add_signal_handler(number, stop)
  return told


if __name__ == "__main__":
  sys.exit(main())
