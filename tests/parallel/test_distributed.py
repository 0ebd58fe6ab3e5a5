"""Who tells a process of its group."""

import jax
import pytest

from oat_jax.parallel import distributed

SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "node[1-4]"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_MCA_orte_hnp_uri": "1.0;"}


@pytest.fixture
def joined(monkeypatch):
  """What jax is asked to join; whoever started the tests does not count."""
  for name in (*SLURM, *MPI, "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
    monkeypatch.delenv(name, raising=False)
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
  return calls


@pytest.mark.parametrize(
  ("variables", "who"),
  [
    ({}, ""),
    (SLURM, "SLURM"),
    (SLURM | {"SLURM_NTASKS": "1"}, ""),
    # In the batch script itself, before srun starts the processes.
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, ""),
    (MPI, "Open MPI"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPU"),
  ],
)
def test_a_launcher_is_known_by_its_variables(variables, who, joined, monkeypatch):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert distributed.initialize() == who
  assert joined == ([()] if who else [])


def test_flags_go_before_the_launcher(joined, monkeypatch):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  assert distributed.initialize("here:1", 2, 1) == "flags"
  assert distributed.initialize(num_processes=1) == ""
  assert joined == [("here:1", 2, 1)]


def test_jax_is_asked_where_no_variable_tells(joined):
  assert distributed.initialize(detect=True) == "jax" and joined == [()]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"num_processes": 2, "process_id": 0}, "needs --coordinator=HOST:PORT"),
    ({"num_processes": 2, "process_id": 2}, "--process_id=2 is outside 0..1"),
    ({"num_processes": 2}, "--process_id=-1 is outside 0..1"),
    ({"process_id": 1}, "--process_id is given without --num_processes"),
    ({"coordinator": "here:1"}, "--coordinator is given without --num_processes"),
    ({"num_processes": 2, "detect": True}, "leaves to jax what --num_processes says"),
  ],
)
def test_a_group_that_cannot_be_is_an_error(arguments, message, joined):
  with pytest.raises(ValueError, match=message):
    distributed.initialize(**arguments)
  assert not joined
