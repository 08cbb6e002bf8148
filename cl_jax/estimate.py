"""What a plan will take: bytes, widths, seconds."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cl_jax.data import Data
from cl_jax.devices import memory_bytes
from cl_jax.diagnostics.columns import layout
from cl_jax.packing import MEMORY_SHARE, Measured
from cl_jax.plan import Shard
from cl_jax.program import StateParts, state_parts


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One shard's part of a plan."""

    shard: Shard
    tasks: int  # tasks that it trains itself
    parts: StateParts  # of a member
    measured: Sequence[Measured]  # by width; empty: not measured
    kept: int = 0  # bytes of a member that its diagnostics keep of earlier boundaries

    @property
    def at_width(self) -> Measured | None:
        """What was measured at the shard's width, or at the nearest."""

        def distance(each: Measured) -> tuple[int, bool]:
            return abs(each.width - self.shard.width), each.alone != self.shard.alone

        return min(self.measured, key=distance, default=None)

    @property
    def seconds(self) -> float | None:
        """Training time."""
        if self.at_width is None:
            return None
        return len(self.shard.members) * self.steps * self.at_width.milliseconds / 1e3

    @property
    def steps(self) -> int:
        """Steps a member."""
        return self.tasks * self.shard.members[0].entry.run.steps

    @property
    def checkpoint_bytes(self) -> int:
        """At each boundary."""
        return len(self.shard.members) * (self.parts.total + self.kept)


def estimate(
    shard: Shard, data: Data, measured: Sequence[Measured], *, tasks_elsewhere: int, only_first: bool = False
) -> Estimate:
    run = shard.members[0].entry.run
    tasks = 1 if only_first else run.stream.num_tasks - tasks_elsewhere
    kept = layout(run, data).kept_bytes if run.diagnostics else 0
    return Estimate(shard, tasks, state_parts(run, data), measured, kept)


def table(estimates: Sequence[Estimate], done: Sequence[Shard]) -> Table:
    """A row a compiled program."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("group", "members", "width", "member-steps", "a member: parameters", "optimizer", "methods"):
        made.add_column(name, justify="left" if name == "group" else "right")
    for name in ("checkpoint", "device memory", "ms / member-step", "training", "compiling"):
        made.add_column(name, justify="right")
    for each in estimates:
        parts, at = each.parts, each.at_width
        row = [each.shard.members[0].entry.label, str(len(each.shard.members)), str(each.shard.width)]
        row += [f"{len(each.shard.members) * each.steps:,}", of_bytes(parts.parameters)]
        row += [of_bytes(parts.optimizer), of_bytes(sum(parts.methods.values())), of_bytes(each.checkpoint_bytes)]
        if at is None or each.seconds is None:
            row += ["", "", "", ""]
        else:
            row += [of_bytes(at.bytes), f"{at.milliseconds:.3f}", of_seconds(each.seconds)]
            row += [of_seconds(at.compile_seconds)]
        made.add_row(*row)
    for shard in done:
        made.add_row(shard.members[0].entry.label, str(len(shard.members)), str(shard.width), "done")
    return made


def summary(estimates: Sequence[Estimate]) -> str:
    """The sum of a plan, in a line or two."""
    steps = sum(len(each.shard.members) * each.steps for each in estimates)
    text = f"{steps:,} member-steps to train"
    seconds = [each.seconds for each in estimates]
    if seconds and None not in seconds:
        compiling = sum(each.at_width.compile_seconds for each in estimates if each.at_width is not None)
        text += f", about {of_seconds(sum(filter(None, seconds)))}, and {of_seconds(compiling)} of compiling the steps"
        most = max(each.at_width.bytes for each in estimates if each.at_width is not None)
        text += f"; at most {of_bytes(most)} on a device of {of_bytes(memory_bytes())} ({MEMORY_SHARE:.0%} may be used)"
    elif estimates:
        text += "; for the time and the memory that they take: --measure"
    return text


def of_bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def of_seconds(number: float) -> str:
    if number < 100:
        return f"{number:.1f} s"
    return f"{number / 60:.0f} min" if number < 6000 else f"{number / 3600:.1f} h"


def show(made: Table) -> None:
    Console(width=180, highlight=False).print(made)
