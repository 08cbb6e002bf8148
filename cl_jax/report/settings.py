"""Hyper-parameters for reading: short names, values tried, values in words. Plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from cl_jax.report.configurations import Configuration, Varied, hashable

EDGE = "*"  # behind a chosen value: the smallest or largest tried


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest dotted ending of each name that no other has, underscores as spaces: methods.ewc.strength ->
    strength."""

    def ending(name: str, length: int) -> str:
        return ".".join(name.split(".")[-length:])

    short = {}
    for name in names:
        length = 1
        while any(ending(other, length) == ending(name, length) for other in names if other != name):
            length += 1
        short[name] = ending(name, length).replace("_", " ")
    return short


def is_number(value: Any) -> bool:
    """An int or float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def tried_values(configurations: Sequence[Configuration], name: str) -> list[Any]:
    """The distinct values of a hyper-parameter, sorted where all are numbers, else in order of appearance."""
    values = [each.hyper_parameters[name] for each in configurations]
    distinct = list({hashable(value): value for value in values}.values())
    return sorted(distinct) if all(map(is_number, distinct)) else distinct


def format_value(value: Any) -> str:
    """A hyper-parameter for reading: six digits, so that float32 0.1 is 0.1; `1 to 100` where it varied."""
    if value is None:
        return "none"
    if isinstance(value, Varied):
        numbers = all(map(is_number, value))
        return (
            f"{format_value(min(value))} to {format_value(max(value))}"
            if numbers
            else " or ".join(map(format_value, value))
        )
    if not isinstance(value, float):
        return str(value)
    digits, _, exponent = f"{value:.6g}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def describe(values: Mapping[str, Any], at_edge: Sequence[str] = ()) -> list[str]:
    """`["strength 10*", ...]`; hyper-parameters that do not apply are left out."""
    given = {name: value for name, value in values.items() if value is not None}
    return [f"{name} {format_value(given[name])}" + EDGE * (name in at_edge) for name in given]


def settings_in_words(settings: Sequence[Mapping[str, Any]]) -> str:
    """`strength 1 or 10`: alternatives, the name once where there is one name only."""
    if all(len(each) == 1 for each in settings):
        values = " or ".join(format_value(value) for each in settings for value in each.values())
        return " ".join([*next(iter(settings), {}), values])
    return " or ".join(", ".join(describe(each)) for each in settings)
