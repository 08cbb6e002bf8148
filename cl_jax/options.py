"""The commands and options of `cl-jax`, and what is wrong with the words of a command line."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from cl_jax.errors import UserError, did_you_mean, unknown
from cl_jax.fleet import options as fleet
from cl_jax.option_fields import Flag, Job, option, place

FORMATS = ("terminal", "markdown", "latex", "csv")
SELECT = "all|first:K|seed:S|per-task"


@dataclasses.dataclass
class _Job(Job):
    from_: option(str, "RUN:TASK[:LABEL]", "from") = None  # pyright: ignore[reportInvalidTypeForm]
    """Go on from an earlier run's checkpoint after TASK; RUN: its output folder, LABEL: one of its methods."""
    halving: option(int, "N") = None  # pyright: ignore[reportInvalidTypeForm]
    """Let the best 1 in N of each method's configurations go on after tasks 2, 2N, 2NN, ...; the others stop there."""


@dataclasses.dataclass
class Plan(_Job):
    """Show what `run` would do, and do none of it."""

    measure: Flag = False
    """Compile and time each program, for the time and memory it takes; widths are measured too, and `run` uses them."""


@dataclasses.dataclass
class Run(_Job):
    """Train an experiment, or go on with it; write its table and report."""

    keep: Annotated[str, tyro.conf.arg(metavar="N|all", help_behavior_hint="")] = "2"
    """How many task boundaries' checkpoints stay, the newest ones; left out: 2."""
    quiet: Flag = False
    """Print nothing but errors."""


@dataclasses.dataclass
class Report:
    """Print the summary of a run; write its page and figures."""

    out: place("FOLDER")  # pyright: ignore[reportInvalidTypeForm]
    """Output folder of `cl-jax run`, such as runs/quickstart."""
    format: Annotated[str, tyro.conf.arg(metavar="|".join(FORMATS), help_behavior_hint="")] = "terminal"
    """How to print the summary; left out: terminal."""
    select: Annotated[str, tyro.conf.arg(metavar=SELECT, help_behavior_hint="")] = "all"
    """Choose on all tasks, on the first K or seed S and report the others, or per task; left out: all."""


@dataclasses.dataclass
class Adapt:
    """Learn from a stream of conversations, and not forget; go on with it; write its table and report."""

    model: place("MODEL")  # pyright: ignore[reportInvalidTypeForm]
    """Folder with config.json, model.safetensors and, unless it reads bytes, tokenizer.json."""
    conversations: place("CONVERSATIONS")  # pyright: ignore[reportInvalidTypeForm]
    """A .jsonl file, or a folder of files, in the order in which they came."""
    old: Annotated[str, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = "text:code"
    """Text that stands for what the model can do, such as text:mine=<folder>; left out: Python's library."""
    data_dir: option(Path, "FOLDER") = None  # pyright: ignore[reportInvalidTypeForm]
    """In which domains of --old such as prose and maths are looked for."""
    policy: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = "finetune"
    """How to learn: finetune, lora, ewc, replay, or frozen, not at all; left out: finetune."""
    budget: option(float, "X") = None  # pyright: ignore[reportInvalidTypeForm]
    """Undo, in part or all, what makes old text cost X bits per byte more than at the start, such as 0.02."""
    steps: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 4
    """Steps on each round of conversations; left out: 4."""
    every: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 8
    """Conversations in a round, which are scored, then learned from; left out: 8."""
    rows: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 16
    """Rows of --context tokens that a step learns from; left out: 16."""
    context: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 128
    """Tokens that the model sees at once; left out: 128."""
    learning_rate: Annotated[float, tyro.conf.arg(metavar="X", help_behavior_hint="")] = 3e-4
    """Of Adam; left out: 0.0003."""
    seed: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 0
    """Of every random choice; left out: 0."""
    out: option(Path, "FOLDER") = None  # pyright: ignore[reportInvalidTypeForm]
    """Where results and the new weights go; left out: runs/adapt-<conversations>-<policy>."""
    quiet: Flag = False
    """Print nothing but errors."""


@dataclasses.dataclass
class List:
    """Name everything an experiment can be made of."""


COMMANDS = {"run": Run, "plan": Plan, "report": Report, "adapt": Adapt, **fleet.COMMANDS, "list": List}
_ABOUT = """Measure catastrophic forgetting, and find what reduces it.

Start with:
  cl-jax run experiments/quickstart
"""
_ABOUT_COMMAND = {
    "run": """Train every run of an experiment, and write its table (results.parquet) and its report.

The same command again goes on where it stopped; nothing finished is trained twice.

Examples:
  cl-jax run experiments/quickstart
  cl-jax run experiments/quickstart --data tfds:mnist --seeds 3 --out runs/mnist
  cl-jax run experiments/quickstart --from runs/mine:2:finetune --out runs/from-task-2
  cl-jax run experiments/quickstart --from runs/mine:2:ewc,methods.ewc.strength=10 --out runs/ewc
""",
    "plan": """Show what `run` would do, and do none of it.

That is: the training runs, their programs and memory, and what is finished already.

Examples:
  cl-jax plan experiments/quickstart --seeds 20
  cl-jax plan experiments/quickstart --measure
""",
    "report": """Print the summary of a run, finished or not, and write its page and figures.

Examples:
  cl-jax report runs/quickstart
  cl-jax report runs/quickstart --format latex > table.tex
  cl-jax report runs/quickstart --select first:2

--select says which validation data choose each method's hyper-parameters, and what is reported:
  all        all tasks after the last, all seeds; everything is reported
  first:K    tasks 1 to K after task K; the tasks after K are reported
  seed:S     all tasks, seed S alone; the other seeds are reported
  per-task   after each task anew the tasks so far, each seed by itself; everything is reported
""",
    "adapt": """Let a language model learn from conversations as they come, each scored before it is learned from.

The same command again goes on where it stopped, or with conversations added behind the old ones.

Examples:
  cl-jax adapt models/mine conversations.jsonl --budget 0.02
  cl-jax adapt models/mine conversations.jsonl --policy lora --learning-rate 0.001 --out runs/lora
  cl-jax adapt models/mine conversations --old text:mine=notes --policy replay --budget 0.01
""",
    **fleet.ABOUT,
    "list": """Name everything an experiment can be made of, a line each.""",
}


_WHOLE = ("seeds", "steps", "width", "halving", "every", "rows", "context", "seed", *fleet.WHOLE)
_NUMBERS = ("budget", "learning_rate", *fleet.NUMBERS)
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?"
_MISSING = {
    "experiment": "give an experiment, such as experiments/quickstart",
    "out": "give the output folder of a run, such as runs/quickstart",
    "model": "give a model's folder, which holds config.json and model.safetensors",
    "conversations": "give the conversations, a .jsonl file or a folder of files",
    "engine": fleet.MISSING["engine"],
}


def _check_words(words: Sequence[str]) -> None:
    """A misspelt command or option, a value that is no number, a missing or surplus word: in one line each."""
    if not words:
        raise UserError(f"give a command: {', '.join(COMMANDS)}. See: cl-jax --help")
    if words[0] in ("-h", "--help"):
        return
    if words[0] not in COMMANDS:
        raise UserError(f"{unknown('command', words[0], COMMANDS)} See: cl-jax --help")
    if "-h" in words or "--help" in words:
        return
    fields = dataclasses.fields(COMMANDS[words[0]])
    options = {_spelling(f.name): f for f in fields if f.default is not dataclasses.MISSING}
    places = [field.name for field in fields if field.default is dataclasses.MISSING]
    help_ = f"See: cl-jax {words[0]} --help"
    rest, placed = list(words[1:]), []
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            placed.append(word)
            continue
        name, given, value = word.partition("=")
        if name.replace("_", "-") not in options:
            allowed = f"allowed: {', '.join(options)}" if options else "it has none"
            hint = did_you_mean(name, options)
            raise UserError(f"unknown option {name!r} of {words[0]}; {allowed}.{hint} {help_}")
        field = options[name.replace("_", "-")]
        if isinstance(field.default, bool):
            if given:
                raise UserError(f"{name}: takes no value, was given {value!r}. {help_}")
            continue
        if not given:
            value = rest.pop(0) if rest else ""
        if not value or (not given and value.startswith("--")):
            raise UserError(f"{name}: a value is missing. {help_}")
        if field.name in _WHOLE and not re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            raise UserError(f"{name}: expected a whole number, was given {value!r}. {help_}")
        if field.name in _NUMBERS and not re.fullmatch(
            r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", value, re.I
        ):
            raise UserError(f"{name}: expected a number such as 0.02, was given {value!r}. {help_}")
    if len(placed) < len(places):
        raise UserError(f"{words[0]}: {_MISSING[places[len(placed)]]}. {help_}")
    if len(placed) > len(places):
        raise UserError(f"{words[0]}: too many words: {' '.join(placed[len(places) :])}. {help_}")


def _spelling(field: str) -> str:
    return f"--{field.strip('_').replace('_', '-')}"


def parse(words: Sequence[str]) -> Any:
    """The command and its options.

    Raises:
        UserError: a word that is not understood, or one that is missing.
    """
    _check_words(words)
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    if words and words[0] in COMMANDS:
        name = words[0]
        prog, about = f"cl-jax {name}", _ABOUT_COMMAND[name]
        return tyro.cli(COMMANDS[name], args=words[1:], prog=prog, description=about, config=markers)
    commands: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())]  # noqa: UP007
    return tyro.cli(commands, args=words, prog="cl-jax", description=_ABOUT, config=markers)
