"""What an installation holds, and that its commands explain themselves with the core alone."""

from importlib import metadata
import re
import subprocess
import sys

import pytest
import tiny

import oat_jax
from oat_jax import console

SETUP = (tiny.ROOT / "setup.py").read_text()
COMMANDS = dict(re.findall(r'"(oat-jax-\w+) = oat_jax\.console:(\w+)"', SETUP))
# Of the extras, by the names that they are imported by; numpy and jax are the core's.
EXTRAS = (
  *("flax", "optax", "orbax", "grain", "tensorflow_datasets", "array_record", "ml_collections"),
  *("etils", "google_crc32c", "cv2", "tokenizers", "tensorboardX", "matplotlib", "PIL"),
  *(
    "metaworld",
    "mujoco",
    "gymnasium",
    "imageio_ffmpeg",
    "robosuite",
    "websockets",
    "msgpack",
    "grpc",
  ),
  *("praxis_remote", "h5py", "pyarrow", "av", "gcsfs", "wandb"),
)


def test_every_file_of_the_package_is_installed(tmp_path):
  pytest.importorskip("setuptools", reason="which Python 3.12's environments do not bring")
  build = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path}"]
  subprocess.run(build, cwd=tiny.ROOT, check=True, capture_output=True)
  below = lambda root: {
    str(path.relative_to(root)): path.read_bytes()
    for path in root.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }
  installed = below(tmp_path / "oat_jax")
  assert installed == below(tiny.ROOT / "oat_jax")
  assert {"envs/tasks.json", "serve/keymaps/libero.json"} <= set(installed)


def test_the_version_is_said_once():
  assert re.search(rf"^## \[?{re.escape(oat_jax.__version__)}\b", changelog(), re.M)
  assert "version=VERSION" in SETUP and not re.search(r'version="\d', SETUP)


def changelog():
  return (tiny.ROOT / "CHANGELOG.md").read_text()


def test_the_commands_are_functions():
  assert len(COMMANDS) == 3
  assert all(callable(getattr(console, name)) for name in COMMANDS.values())
  scripts = {point.name for point in metadata.entry_points(group="console_scripts")}
  assert set(COMMANDS) <= scripts


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_the_core_alone(command):
  code = (
    "import sys\n"
    f"sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"  # None: cannot be imported
    "sys.argv[1:] = ['--help']\n"
    "from oat_jax import console\n"
    f"console.{COMMANDS[command]}()\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], env=tiny.environment(), capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert f"usage: {command}" in done.stdout and f" {command} --" in done.stdout.replace(" E", "")
