"""Config values become frozen dataclasses; a key that does not fit is an error that names it."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict
import pytest

from oat_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.5
  levels: tuple[int, ...] = (8, 5)


@dataclasses.dataclass(frozen=True)
class Outer:
  steps: int
  name: str = "a"
  flag: bool = False
  width: int | None = None
  inner: Inner = Inner()
  more: Inner | None = None
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def freeze(**values):
  return config_lib.freeze(Outer, {"steps": 1} | values)


def refused(**values):
  with pytest.raises(ValueError) as error:
    freeze(**values)
  return str(error.value)


def test_values_arrive_and_defaults_fill_the_rest():
  assert freeze(steps=3, name="b", flag=True, inner={"rate": 0.25}) == Outer(
    3, "b", True, None, Inner(0.25)
  )


def test_a_config_dict_gives_what_a_dict_gives():
  values = {"steps": 3, "inner": {"levels": (2, 3)}, "width": 4}
  assert config_lib.freeze(Outer, ConfigDict(values)) == config_lib.freeze(Outer, values)


def test_a_part_that_may_be_left_out_is_checked_where_it_is_given():
  assert freeze().more is None and freeze(more=None).more is None
  assert freeze(more={"levels": [1]}).more == Inner(levels=(1,))
  assert "config.more has no key 'rates'; did you mean 'rate'?" in refused(more={"rates": 1})


def test_lists_become_tuples_and_integers_floats():
  inner = freeze(inner={"levels": [2, 3], "rate": 1}).inner
  assert inner.levels == (2, 3) and type(inner.levels) is tuple
  assert inner.rate == 1.0 and type(inner.rate) is float


def test_the_result_is_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    freeze().steps = 2


def test_an_unknown_key_is_named_with_the_nearest_one():
  assert refused(stepz=1) == "config has no key 'stepz'; did you mean 'steps'?"
  assert refused(inner={"rat": 1}) == "config.inner has no key 'rat'; did you mean 'rate'?"


def test_an_unknown_key_with_no_near_one_lists_those_there_are():
  assert refused(inner={"xyz": 1}) == "config.inner has no key 'xyz'; known keys: rate, levels"


def test_a_missing_key_is_named():
  with pytest.raises(ValueError, match=r"^run\.steps is missing$"):
    config_lib.freeze(Outer, {"name": "b"}, "run")


@pytest.mark.parametrize(
  "values, message",
  [
    ({"steps": "3"}, "config.steps is '3'; expected int"),
    ({"steps": 3.0}, "config.steps is 3.0; expected int"),
    ({"steps": True}, "config.steps is True; expected int"),
    ({"steps": None}, "config.steps is None; expected int"),
    ({"name": 3}, "config.name is 3; expected str"),
    ({"flag": 1}, "config.flag is 1; expected bool"),
    ({"width": "4"}, "config.width is '4'; expected int"),
    ({"inner": {"rate": "1"}}, "config.inner.rate is '1'; expected float"),
    ({"inner": {"rate": True}}, "config.inner.rate is True; expected float"),
    ({"inner": {"levels": 8}}, "config.inner.levels is 8; it must be a sequence of int"),
    ({"inner": {"levels": "85"}}, "config.inner.levels is '85'; it must be a sequence of int"),
    ({"inner": {"levels": (8, "5")}}, "config.inner.levels[1] is '5'; expected int"),
    ({"inner": 3}, "config.inner is 3; it holds several values: rate, levels"),
  ],
)
def test_a_wrong_type_is_named_with_the_right_one(values, message):
  assert refused(**values) == message


def test_none_is_a_value_where_the_type_says_so():
  assert freeze(width=None).width is None and freeze(width=4).width == 4


def test_a_choice_lists_all():
  config_lib.choose("b", ("a", "b"), "config.x")
  with pytest.raises(ValueError, match=r"^config\.x is 'c'; it must be one of: a, b$"):
    config_lib.choose("c", ("a", "b"), "config.x")
