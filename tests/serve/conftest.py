"""One policy and its servers, for all of these tests."""

import pytest

from oat_jax.export import loader
from oat_jax.serve import keymap
from oat_jax.serve import service as service_lib


@pytest.fixture(scope="session")
def policy(policy_export):
  return loader.load(policy_export)


@pytest.fixture(scope="session")
def server(policy):
  import served  # skips where the extra `serve` is not installed

  with served.serving(policy, max_batch=4) as (port, service, _):
    yield port, service


@pytest.fixture(scope="session")
def service(policy_export):
  policy = loader.load(policy_export)
  made = service_lib.Service(policy, keymap.load("", policy.spec.batch), max_batch=4)
  yield made
  made.close()


@pytest.fixture
def client(service):
  import episodes

  remote = episodes.remote.PolicyClient
  with episodes.serving(service) as port, remote("127.0.0.1", port, timeout=60) as made:
    yield made
