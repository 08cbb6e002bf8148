"""What to run: frozen dataclasses that are pytrees, with traced leaves and a static rest.

A field is *traced* if only arithmetic touches it (learning rate, strength): members that differ in it alone share one
compiled program. It is *static* if it sets a shape, a loop length or which code runs; the static part is the tree
structure, so `jax.tree.structure` groups a sweep.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax

from cl_jax.errors import UserError, unknown

ConfigType = TypeVar("ConfigType")

LARGEST_FLOAT = 3.4028235e38  # traced leaves are float32 in the program
LARGEST_INT = 2**31 - 1  # steps, sizes and seeds are int32 there


def traced(default: float, *, low: float = 0.0, high: float = math.inf, later: bool = False) -> Any:
    """A float leaf with its allowed closed range.

    `later`, here and below: the field came when runs without it had been made. At its default it is not named among the
    hyper-parameters, so that those runs keep their addresses and can be continued.
    """
    return dataclasses.field(default=default, metadata={"role": "traced", "low": low, "high": high, "later": later})


def static(default: Any, *, choices: Sequence[str] | None = None, low: int | None = None, later: bool = False) -> Any:
    """A field that shapes the program: allowed names, or the least allowed whole number."""
    metadata = {"role": "static", "choices": choices, "low": low, "later": later}
    return dataclasses.field(default=default, metadata=metadata)


def child(
    default_factory: Callable[..., Any] | None = None, *, optional: type | tuple[type, ...] | None = None,
    later: bool = False,
) -> Any:  # fmt: skip
    """A field that holds another config, or a dict of configs by name; or one of the class(es) `optional`, or None."""
    metadata = {"role": "child", "optional": optional, "later": later}
    if default_factory is None:
        return dataclasses.field(default=None, metadata=metadata)
    return dataclasses.field(default_factory=default_factory, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True)  # whatever a field is set to is its default
def config(cls: type[ConfigType]) -> type[ConfigType]:
    """Makes a class a frozen, keyword-only dataclass and a pytree, by the roles of its fields."""
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    roles = {field.name: field.metadata.get("role", "static") for field in dataclasses.fields(made)}
    set_fields = made.__init__

    @functools.wraps(set_fields)
    def init(self: Any, **given: Any) -> None:
        for name in given:
            if name not in roles:
                raise unknown(f"hyper-parameter of {cls.__name__}:", name, roles)
        set_fields(self, **given)

    made.__init__ = init
    jax.tree_util.register_dataclass(
        made,
        data_fields=[name for name, role in roles.items() if role != "static"],
        meta_fields=[name for name, role in roles.items() if role == "static"],
    )
    return made


def is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every hyper-parameter by its dotted path; a nested config also gives its kind under its own path.

    Those that are told `later` are missing at their default.
    """
    if isinstance(value, Mapping):
        parts = [flatten(item, f"{prefix}.{name}" if prefix else name) for name, item in value.items()]
    elif is_config(value):
        parts = [{prefix: type(value).__name__.lower()}] if prefix else []
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.metadata.get("later") and item == _default(field):
                continue
            if field.metadata.get("role") == "traced" and isinstance(item, int):
                item = float(item)  # 1 and 1.0 are one hyper-parameter
            parts.append(flatten(item, f"{prefix}.{field.name}" if prefix else field.name))
    else:
        if isinstance(value, (tuple, list)):
            value = "x".join(str(item) for item in value)
        return {prefix: value}
    return {name: item for part in parts for name, item in part.items()}


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


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
    if isinstance(value, type):
        raise UserError(f"{where}: was given the class {value.__name__}; write {value.__name__}() to make one")
    if not is_config(value):
        raise UserError(f"{where}: expected a config, was given {value!r} of type {type(value).__name__}")
    for field in dataclasses.fields(value):
        item, path, role = getattr(value, field.name), f"{where}.{field.name}", field.metadata.get("role", "static")
        if role == "child":
            _check_child(item, path, field.metadata.get("optional"))
        elif role == "traced":
            _check_number(item, path, field.metadata["low"], field.metadata["high"])
        else:
            _check_static(item, field, path)


def _check_child(item: Any, path: str, optional: type | tuple[type, ...] | None) -> None:
    if optional is not None and item is None:
        return
    if optional is not None and not isinstance(item, optional):
        allowed = " or ".join(
            f"{each.__name__}()" for each in (optional if isinstance(optional, tuple) else (optional,))
        )
        raise UserError(f"{path}: expected {allowed} or None, was given {item!r:.200}")
    check_fields(item, path)


def _check_number(item: Any, path: str, low: float = -math.inf, high: float = math.inf) -> None:
    if isinstance(item, bool) or not isinstance(item, (int, float)):
        raise UserError(f"{path}: expected a number, was given {item!r} of type {type(item).__name__}")
    low, high = max(low, -LARGEST_FLOAT), min(high, LARGEST_FLOAT)
    if not low <= item <= high:  # also true of NaN
        raise UserError(f"{path}: was given {item!r}; allowed are finite numbers from {low:g} to {high:g}")


def _check_whole(item: Any, path: str, low: int) -> None:
    if isinstance(item, bool) or not isinstance(item, int):
        raise UserError(f"{path}: expected a whole number, was given {item!r} of type {type(item).__name__}")
    if not low <= item <= LARGEST_INT:
        bound = f"the least allowed is {low}" if item < low else f"the most allowed is {LARGEST_INT}"
        raise UserError(f"{path}: was given {item}; {bound}")


def _check_static(item: Any, field: dataclasses.Field[Any], path: str) -> None:
    choices, low, default = field.metadata.get("choices"), field.metadata.get("low"), field.default
    if choices is not None:
        if not isinstance(item, (str, int, type(None))) or item not in choices:
            raise unknown(f"value of {path}:", item, [str(choice) for choice in choices])
    elif isinstance(default, bool):
        if not isinstance(item, bool):
            raise UserError(f"{path}: expected True or False, was given {item!r}")
    elif low is not None:
        if item is None and default is None:
            return
        if not isinstance(default, tuple):
            _check_whole(item, path, low)
            return
        if not isinstance(item, tuple):
            raise UserError(f"{path}: expected a tuple of whole numbers such as {default}, was given {item!r}")
        for number in item:
            _check_whole(number, path, low)
    elif isinstance(default, str):
        if not isinstance(item, str):
            raise UserError(f"{path}: expected a text, was given {item!r} of type {type(item).__name__}")
    elif isinstance(default, float):
        _check_number(item, path)
    else:
        try:
            hash(item)
        except TypeError as error:
            raise UserError(f"{path}: was given {item!r}, which cannot be hashed; give a tuple or a name") from error


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations of the axes' values; `__` in a name stands for the dot of a path."""
    names = [name.replace("__", ".") for name in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*axes.values())]
