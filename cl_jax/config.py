"""What to run: frozen dataclasses that are pytrees, with traced leaves and a static rest.

A field is *traced* if only arithmetic touches it (learning rate, strength): members that differ in it alone share one
compiled program. It is *static* if it sets a shape, a loop length or which code runs; the static part is the tree
structure, so `jax.tree.structure` groups a sweep.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax

from cl_jax.errors import UserError, unknown

ConfigType = TypeVar("ConfigType")


def traced(default: float, *, low: float = 0.0, high: float = math.inf) -> Any:
    """A float leaf with its allowed closed range."""
    return dataclasses.field(default=default, metadata={"role": "traced", "low": low, "high": high})


def static(default: Any, *, choices: Sequence[str] | None = None, low: int | None = None) -> Any:
    """A field that shapes the program: allowed names, or the least allowed number."""
    return dataclasses.field(default=default, metadata={"role": "static", "choices": choices, "low": low})


def child(default_factory: Callable[..., Any]) -> Any:
    """A field that holds another config, or a dict of configs by name."""
    return dataclasses.field(default_factory=default_factory, metadata={"role": "child"})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(traced, static, child))
def config(cls: type[ConfigType]) -> type[ConfigType]:
    """Makes a class a frozen, keyword-only dataclass and a pytree, by the roles of its fields."""
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    roles = {field.name: field.metadata.get("role", "static") for field in dataclasses.fields(made)}
    jax.tree_util.register_dataclass(
        made,
        data_fields=[name for name, role in roles.items() if role != "static"],
        meta_fields=[name for name, role in roles.items() if role == "static"],
    )
    return made


def is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every hyper-parameter by its dotted path; a nested config also gives its kind under its own path."""
    if isinstance(value, Mapping):
        parts = [flatten(item, f"{prefix}.{name}" if prefix else name) for name, item in value.items()]
    elif is_config(value):
        parts = [{prefix: type(value).__name__.lower()}] if prefix else []
        for field in dataclasses.fields(value):
            parts.append(flatten(getattr(value, field.name), f"{prefix}.{field.name}" if prefix else field.name))
    else:
        if isinstance(value, (tuple, list)):
            value = "x".join(str(item) for item in value)
        return {prefix: value}
    return {name: item for part in parts for name, item in part.items()}


def replace(value: ConfigType, changes: Mapping[str, Any]) -> ConfigType:
    """A copy with fields changed by dotted path: `replace(run, {"optimizer.learning_rate": 0.1})`.

    Raises:
        UserError: a path that does not exist, with the nearest one that does.
    """
    for path, new in changes.items():
        value = _replace_one(value, path.split("."), new, path)
    return value


def _replace_one(value: Any, parts: list[str], new: Any, path: str) -> Any:
    if not parts:
        return new
    name, rest = parts[0], parts[1:]
    if isinstance(value, Mapping):
        if name not in value:
            raise unknown(f"part of {path!r}", name, value)
        return {**value, name: _replace_one(value[name], rest, new, path)}
    fields = [field.name for field in dataclasses.fields(value)] if is_config(value) else []
    if name not in fields:
        raise unknown(f"hyper-parameter in {path!r}:", name, fields)
    return dataclasses.replace(value, **{name: _replace_one(getattr(value, name), rest, new, path)})


def check_fields(value: Any, where: str) -> None:
    """Checks types, ranges and names of every field of a config tree, on the host, before anything compiles.

    Raises:
        UserError: what was given, what is allowed, the nearest allowed name.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_fields(item, f"{where}.{name}")
        return
    if not is_config(value):
        raise UserError(f"{where}: expected a config, was given {value!r} of type {type(value).__name__}")
    for field in dataclasses.fields(value):
        item, path, role = getattr(value, field.name), f"{where}.{field.name}", field.metadata.get("role", "static")
        if role == "child":
            check_fields(item, path)
        elif role == "traced":
            low, high = field.metadata["low"], field.metadata["high"]
            if isinstance(item, bool) or not isinstance(item, (int, float)):
                raise UserError(f"{path}: expected a number, was given {item!r} of type {type(item).__name__}")
            if not low <= item <= high:
                raise UserError(f"{path}: was given {item!r}; allowed are finite numbers from {low} to {high}")
            if not math.isfinite(item):
                raise UserError(f"{path}: was given {item!r}; allowed are finite numbers")
        else:
            _check_static(item, field, path)


def _check_static(item: Any, field: dataclasses.Field[Any], path: str) -> None:
    choices, low = field.metadata.get("choices"), field.metadata.get("low")
    if choices is not None and item not in choices:
        raise unknown(f"value of {path}:", item, [str(choice) for choice in choices])
    if isinstance(field.default, bool):
        if not isinstance(item, bool):
            raise UserError(f"{path}: expected True or False, was given {item!r}")
    elif low is not None and item is not None:
        numbers = item if isinstance(item, tuple) else (item,)
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int):
                raise UserError(f"{path}: expected a whole number, was given {number!r}")
            if number < low:
                raise UserError(f"{path}: was given {number}; the least allowed is {low}")


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations of the axes' values; `__` in a name stands for the dot of a path."""
    names = [name.replace("__", ".") for name in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*axes.values())]
