"""What is said of suites without their simulators."""

import pytest

from oat_jax.envs import env as env_lib
from oat_jax.envs import suites


@pytest.mark.parametrize("name", suites.SUITES)
def test_a_suite_is_complete(name):
  suite = env_lib.suite(name)
  assert suite.name == name and len(set(suite.tasks)) == len(suite.tasks) > 0
  assert set(suite.instructions) == set(suite.tasks) and all(suite.instructions.values())
  assert suite.max_steps > 0 and suite.action_dim > 0
  assert suite.state_dim >= suite.proprioception_dim > 0


def test_sentences_are_what_a_policy_is_told():
  said = lambda suite, task: env_lib.suite(suite).instructions[task]
  task = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it"
  assert said("libero/10", task) == "turn on the stove and put the moka pot on it"
  task = "LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket"
  assert said("libero/10", task) == "put both the alphabet soup and the tomato sauce in the basket"
  assert said("libero/goal", "put_the_bowl_on_the_stove") == "put the bowl on the stove"
  assert said("robocasa/four", "TurnOffSinkFaucet") == "turn off sink faucet"
  assert len(env_lib.suite("libero/90").tasks) == 90
  assert set(env_lib.suite("robocasa/four").tasks) < set(env_lib.suite("robocasa/atomic").tasks)


@pytest.mark.parametrize("suite", ["libero/10", "robocasa/four"])
def test_a_missing_simulator_names_the_command_that_brings_it(suite):
  room = suite.partition("/")[0]
  try:
    env_lib.versions(suite)
  except ImportError as error:
    assert f"make sim-{room}" in str(error)
  else:
    pytest.skip("it is installed")
  with pytest.raises(ImportError, match=f"make sim-{room}"):
    env_lib.make(suite, env_lib.suite(suite).tasks[0])
