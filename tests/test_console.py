"""Ctrl-C at any moment of a command: one line, exit code 130, no traceback."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import tiny

from oat_jax import console

# Imported by every process that starts with this folder on its path: Ctrl-C comes while the module
# named by STOP_AT is looked for, once.
SITE = """
import os, signal, sys

class Stop:
  def find_spec(self, name, path=None, target=None):
    if name == os.environ["STOP_AT"]:
      sys.meta_path.remove(self)
      os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Stop())
"""
BEFORE, CONTINUES, AGAIN = "stopped before it began", console.CONTINUES, console.BEGINS_AGAIN
TRAIN = ["launch/train.py", "--config=configs/tokenizer_oat.py:mt4", "--config.data.path=DIR"]
TRAIN += ["--workdir={out}"]
COLLECT = ["launch/collect.py", "--out={out}"]
PLAN = ["launch/plan.py", "--config=configs/tokenizer_oat.py:1m", "--topology=h100:1x1"]
# (command, what is imported when Ctrl-C comes, what is said)
STOPS = [
  (TRAIN, "absl", BEFORE),
  (TRAIN, "ml_collections", BEFORE),
  (TRAIN, "jax", CONTINUES),
  (TRAIN, "optax", CONTINUES),
  (TRAIN, "orbax.checkpoint", CONTINUES),
  (COLLECT, "numpy", BEFORE),
  (PLAN, "jax", AGAIN),
  (["launch/serve.py", "--export=E"], "jax", AGAIN),
  (["launch/evaluate.py", "--export=E", "--out={out}"], "numpy", CONTINUES),
]


@pytest.mark.parametrize("args, module, says", STOPS, ids=lambda x: x[0] if type(x) is list else x)
def test_ctrl_c_while_a_command_imports(args, module, says, tmp_path):
  site, out = tmp_path / "site", tmp_path / "out"
  site.mkdir()
  (site / "sitecustomize.py").write_text(SITE)
  path = os.pathsep.join([str(site), tiny.environment()["PYTHONPATH"]])
  args = [arg.format(out=out) for arg in args]
  code, _, err = tiny.command(*args, PYTHONPATH=path, STOP_AT=module)
  assert (code, err) == (130, says + "\n")
  assert not out.exists()


def stopped(main, **says):
  """Returns (code, handler afterwards) of `stoppable`, and leaves signals as they were."""
  before = signal.getsignal(signal.SIGINT)
  try:
    return console.stoppable(main, **says), signal.getsignal(signal.SIGINT)
  finally:
    signal.signal(signal.SIGINT, before)


def interrupted(error=None):
  """Ctrl-C, of which a library may make another error."""
  try:
    signal.raise_signal(signal.SIGINT)
  except KeyboardInterrupt:
    raise error or KeyboardInterrupt from None


@pytest.mark.parametrize(
  "error", [None, ImportError("numpy failed to import"), RuntimeError("XLA")]
)
def test_ctrl_c_is_a_stop_whatever_becomes_of_it(error, capsys):
  assert stopped(lambda: interrupted(error)) == (130, signal.SIG_DFL)
  assert capsys.readouterr().err == CONTINUES + "\n"


def test_a_command_that_makes_an_exit_code_of_a_stop_was_stopped(capsys):
  def main():
    try:
      interrupted(RuntimeError("XLA"))
    except RuntimeError:
      return 1

  assert stopped(main)[0] == 130 and capsys.readouterr().err == CONTINUES + "\n"


def test_a_command_that_has_said_how_to_go_on_says_it_once(capsys):
  def main():
    try:
      interrupted()
    except KeyboardInterrupt:
      print("saved", file=sys.stderr)
      return 130

  assert stopped(main)[0] == 130 and capsys.readouterr().err == "saved\n"


def test_a_disk_that_is_full_at_a_stop_is_said(capsys):
  assert stopped(lambda: interrupted(OSError(28, "No space left on device")))[0] == 130
  said = capsys.readouterr().err
  assert said == f"OSError: [Errno 28] No space left on device\n{CONTINUES}\n"


def test_what_is_said_at_ctrl_c(capsys):
  assert stopped(lambda: interrupted(), says=AGAIN)[0] == 130
  assert stopped(lambda: interrupted(KeyboardInterrupt("saved at step 3")))[0] == 130
  assert capsys.readouterr().err == f"{AGAIN}\nsaved at step 3\n"


def test_codes_and_errors_pass_through():
  assert stopped(lambda: None)[0] == 0 and stopped(lambda: 1)[0] == 1
  with pytest.raises(ValueError, match="wrong"):
    stopped(lambda: (_ for _ in ()).throw(ValueError("wrong")))


def test_a_second_ctrl_c_does_not_wait():
  code = (
    "import signal, time\n"
    "from oat_jax import console\n"
    "def main():\n"
    "  try:\n"
    "    signal.raise_signal(signal.SIGINT)\n"
    "  finally:\n"
    "    signal.raise_signal(signal.SIGINT)\n"
    "    time.sleep(60)\n"
    "console.stoppable(main)\n"
  )
  run = subprocess.run([sys.executable, "-c", code], env=tiny.environment(), timeout=50)
  assert run.returncode == 130


def test_a_stopped_process_waits_for_no_thread_and_ends_its_children():
  code = (
    "import atexit, threading, time\n"
    "from oat_jax import console\n"
    "atexit.register(print, 'children are ended')\n"
    "threading.Thread(target=time.sleep, args=(60,)).start()\n"
    "assert console.leave(0) == 0 and console.leave(1) == 1\n"
    "console.leave(130)\n"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], env=tiny.environment(), timeout=50, stdout=subprocess.PIPE
  )
  assert (run.returncode, run.stdout) == (130, b"children are ended\n")


def test_in_a_thread_signals_are_left_alone():
  codes, before = [], signal.getsignal(signal.SIGINT)
  thread = threading.Thread(target=lambda: codes.append(console.stoppable(lambda: 3)))
  thread.start()
  thread.join()
  assert codes == [3] and signal.getsignal(signal.SIGINT) is before
