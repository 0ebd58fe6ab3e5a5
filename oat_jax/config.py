"""From config values to frozen dataclasses; an unknown, missing or mistyped key is an error."""

from collections.abc import Mapping
import dataclasses
import difflib
import importlib
import types
import typing
from typing import Any, TypeVar

ConfigT = TypeVar("ConfigT")

# What is kept of a scanned layer for the backward pass: everything, the products of matrices, or
# only what went into the layer; the rest is computed again.
REMAT = ("none", "dots", "full")


def freeze(cls: type[ConfigT], values: Mapping[str, Any], where: str = "config") -> ConfigT:
  """Returns `cls(**values)`, nested dataclasses included, after checking every key and type.

  Args:
    cls: a frozen dataclass; its `__post_init__` checks what concerns several fields at once.
    values: a mapping (a dict, or an ml_collections ConfigDict); lists become tuples.
    where: the mapping's name in error messages, e.g. "config.optimizer".

  Raises:
    ValueError: a key that does not exist (with the nearest one that does), that is missing, or of
      the wrong type.
  """
  hints = typing.get_type_hints(cls)
  fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
  unknown = sorted(set(values) - set(fields))
  if unknown:
    near = difflib.get_close_matches(unknown[0], fields, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(fields)}"
    raise ValueError(f"{where} has no key '{unknown[0]}'{hint}")
  frozen = {}
  for name, field in fields.items():
    if name not in values:
      if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        raise ValueError(f"{where}.{name} is missing")
      continue
    frozen[name] = _coerce(values[name], hints[name], f"{where}.{name}")
  return cls(**frozen)


def freeze_model(values: Mapping[str, Any], modules: Mapping[str, str]) -> tuple[Any, Any]:
  """Returns (module, its frozen `Config`) of the model that `values["name"]` names.

  Args:
    values: of the model's own `Config`, plus `name`: a key of `modules`, or a module's dotted path.
    modules: importable module by name.

  Raises:
    ValueError: an unknown name, a module without Config and make, or values that do not fit.
  """
  rest = dict(values)
  name = rest.pop("name", "")
  if "." not in name or not all(part.isidentifier() for part in name.split(".")):
    choose(name, modules, "config.model.name")
  path = modules.get(name, name)
  try:
    module = importlib.import_module(path)
  except ModuleNotFoundError as error:
    if not f"{path}.".startswith(f"{error.name}."):
      raise  # the module is there, and what it imports is not
    raise ValueError(f"config.model.name is '{name}', but there is no module {path}") from error
  missing = [part for part in ("Config", "make") if not hasattr(module, part)]
  if missing:
    raise ValueError(f"config.model.name is '{name}', but {path} has no {missing[0]}")
  return module, freeze(module.Config, rest, "config.model")


def _coerce(value: Any, hint: Any, where: str) -> Any:
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    if value is None and type(None) in typing.get_args(hint):
      return None
    hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
  if dataclasses.is_dataclass(hint):
    if not isinstance(value, Mapping) and not hasattr(value, "items"):
      names = ", ".join(field.name for field in dataclasses.fields(hint))
      raise ValueError(f"{where} is {value!r}; it holds several values: {names}")
    return freeze(typing.cast(type, hint), typing.cast(Any, value), where)
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ValueError(f"{where} is {value!r}; it must be a sequence of {args[0].__name__}")
    return tuple(_coerce(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(hint, type) and hint is not Any:
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
      raise ValueError(f"{where} is {value!r}; expected {hint.__name__}")
  return value


def choose(value: str, choices: Mapping[str, Any] | tuple[str, ...], where: str) -> None:
  """Raises ValueError unless `value` is one of the choices."""
  if value not in choices:
    raise ValueError(f"{where} is '{value}'; it must be one of: {', '.join(choices)}")


def at_least(value: float, low: float, where: str) -> None:
  """Raises ValueError unless value >= low."""
  if not value >= low:
    raise ValueError(f"{where} is {value}; it must be at least {low}")


def above(value: float, low: float, where: str) -> None:
  """Raises ValueError unless value > low."""
  if not value > low:
    raise ValueError(f"{where} is {value}; it must be above {low}")


def between(value: float, low: float, high: float, where: str) -> None:
  """Raises ValueError unless low <= value <= high."""
  if not low <= value <= high:
    raise ValueError(f"{where} is {value}; it must be in {low}..{high}")


def check_stack(model: Any, where: str) -> None:
  """Raises ValueError unless `model.remat` is a policy, and of layers that are scanned."""
  choose(model.remat, REMAT, f"{where}.remat")
  if model.remat != "none" and not model.scan:
    raise ValueError(
      f"{where}.remat is '{model.remat}', but layers are not scanned; set {where}.scan"
    )


def check_transformer(model: Any, *layers: str) -> None:
  """Raises ValueError unless the sizes of a model's transformers fit.

  Args:
    model: a `Config` with `width`, `head_width`, `mlp_ratio`, `dropout`, `dtype`, `scan`, `remat`.
    layers: the names of its numbers of layers.
  """
  choose(model.dtype, ("float32", "bfloat16"), "config.model.dtype")
  check_stack(model, "config.model")
  for name in ("width", "head_width", "mlp_ratio", *layers):
    at_least(getattr(model, name), 1, f"config.model.{name}")
  between(model.dropout, 0, 0.99, "config.model.dropout")
  if model.width % model.head_width:
    raise ValueError(
      f"config.model.width {model.width} is no multiple of head_width {model.head_width}"
    )
