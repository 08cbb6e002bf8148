"""How a command's options are declared, and those of every command that reads an experiment."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

_Kind = TypeVar("_Kind")
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


def option(kind: type[_Kind], metavar: str, name: str | None = None) -> Any:
    """One that may be left out."""
    return Annotated[kind | None, tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint="")]


def place(metavar: str) -> Any:
    """A path that is given by its place."""
    return Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]


def word(metavar: str) -> Any:
    """A name that is given by its place."""
    return Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]


@dataclasses.dataclass
class Job:
    """What an experiment is read with."""

    experiment: place("EXPERIMENT")  # pyright: ignore[reportInvalidTypeForm]
    """Folder with a config.py, such as experiments/quickstart, or a .py file."""
    out: option(Path, "FOLDER") = None  # pyright: ignore[reportInvalidTypeForm]
    """Where results go; left out: runs/<name of the experiment's folder>, with --size runs/<name>-<size>."""
    size: option(str, "SIZE") = None  # pyright: ignore[reportInvalidTypeForm]
    """Of an experiment that comes in several sizes, which one."""
    data: option(str, "DATA") = None  # pyright: ignore[reportInvalidTypeForm]
    """Train on this instead of the experiment's data: digits, tfds:<name>, or a folder of IDX files as MNIST's."""
    data_dir: option(Path, "FOLDER") = None  # pyright: ignore[reportInvalidTypeForm]
    """For tfds:<name>: a folder of its prepared or original files, so that no network is needed. For text: a folder
    in which domains such as support and prose are looked for."""
    seeds: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Use the seeds 0 to N-1 instead of the experiment's."""
    steps: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Train N steps a task instead of the experiment's number."""
    width: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Train N runs side by side on a device; left out: chosen, then kept."""
    data_budget: option(str, "BYTES") = None  # pyright: ignore[reportInvalidTypeForm]
    """Let a device hold so many bytes of images, such as 64MB; a larger set streams. Left out: what fits it."""
    unshared: Flag = False
    """Train task 1 for each run, also where runs cannot differ before its end."""
