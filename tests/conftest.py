"""What all tests share; pytest puts this folder on sys.path, so that they can import `tiny`."""

import gc
import os

import tiny

# Before jax is imported: tests say what holds on any machine, and say it on the CPU. Most of their
# time is compilation; what is compiled here is too small to be worth optimising.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.update(tiny.quick(os.environ.get("XLA_FLAGS", "")))

import hypothesis
import jax
import pytest

# They take minutes each and begin before all others, so that no worker ends long behind the rest.
LONGEST = (
  "test_quickstart.py",
  "study/test_compare_policies.py",
  "study/test_compare.py",
  "train/test_processes.py",
  "train/test_devices.py",
  "bench/test_bench.py",
  "test_commands.py",
  "test_paper_configs.py",
  "scaling/test_plan.py",
  "bench/test_faults.py",
)

# On a busy machine any example may take long.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items):
  rank = {tiny.ROOT / "tests" / name: i for i, name in enumerate(LONGEST)}
  assert all(path.exists() for path in rank), "LONGEST names a file that is gone"
  items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish():
  # Tracing makes many objects; looking through what was imported each time costs a twelfth of it.
  gc.freeze()
  gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
  """The directory of the index cache, and of what the processes that are started here compile."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("OAT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    # One for all workers of a test run: most of these processes train the same small models.
    run = tmp_path_factory.getbasetemp()
    run = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(run / "compiled"))
    jax.config.update("jax_compilation_cache_dir", str(run / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
  """A small RLDS dataset of two tasks."""
  return tiny.write_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


@pytest.fixture(scope="session")
def policy_export(dataset, tokenizer_workdir, tmp_path_factory):
  """The export of a greedy policy trained for two steps over that tokenizer."""
  from oat_jax.export import exporter
  from oat_jax.train import loop

  root = tmp_path_factory.mktemp("policy")
  config = tiny.run_config("policy", dataset, tokenizer=str(tokenizer_workdir), steps=2)
  exporter.export(loop.train(config, root / "run"), root / "export")
  return root / "export"


@pytest.fixture(scope="session")
def tokenizer_workdir(dataset, tmp_path_factory):
  """The working directory of a tokenizer trained for two steps on `dataset`."""
  from oat_jax.train import loop

  config = tiny.run_config("tokenizer", dataset, steps=2)
  return loop.train(config, tmp_path_factory.mktemp("tiny") / "tokenizer")
