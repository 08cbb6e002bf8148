"""A run's table as curves over its conversations, and what it comes to in numbers and in words."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cl_jax.conversations.guard import ACCEPTED, ROLLED_BACK, SCALED
from cl_jax.conversations.log import KINDS, TABLE
from cl_jax.errors import UserError
from cl_jax.results import read_columns


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric by conversation."""

    conversation: np.ndarray  # int64 [n]
    value: np.ndarray  # float64 [n]

    @property
    def last(self) -> float:
        return float(self.value[-1]) if self.value.size else float("nan")


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run, finished or not."""

    policy: str
    budget: float | None
    seed: int
    curves: dict[str, Curve]  # by metric, see `cl_jax.conversations.log.table`
    diverged: bool

    @property
    def conversations(self) -> int:
        return self.curves["nats"].value.size

    @property
    def bytes(self) -> int:
        """Of replies."""
        return int(self.curves["bytes"].value.sum())

    @property
    def gain(self) -> float:
        """Bits per byte that learning has saved, of all conversations together."""
        return self.curves["gain"].last

    @property
    def forgetting(self) -> float:
        """Bits per byte that the test split of the old text costs more at the end than at the start."""
        old = self.curves["old_bits_per_byte"].value
        return float(old[-1] - old[0])

    @property
    def over(self) -> float:
        """The most that the guard's old text has cost more than at the start, after any round; NaN: no guard."""
        guard = self.curves["guard_bits_per_byte"].value
        return float(np.max(guard[1:] - guard[0], initial=-np.inf)) if guard.size > 1 else float("nan")

    def outcomes(self) -> dict[str, int]:
        """How many rounds a guard let pass, scaled back and rolled back."""
        scale = self.curves["update_scale"].value
        passed, undone = int((scale == 1).sum()), int((scale == 0).sum())
        return {ACCEPTED: passed, SCALED: scale.size - passed - undone, ROLLED_BACK: undone}

    @property
    def cut(self) -> int:
        """Conversations that were too long."""
        return int((self.curves["cut_tokens"].value > 0).sum())


METRICS = (
    "nats", "bytes", "untaught_nats", "cut_tokens", "bits_per_byte", "untaught_bits_per_byte", "gain",
    "old_bits_per_byte", "guard_bits_per_byte", "update_scale", "diverged",
)  # fmt: skip


def read(out: Path) -> Summary:
    """The summary of a run's folder. Raises UserError: there is no table, or it is broken."""
    if not (out / TABLE).is_file():
        raise UserError(f"no {TABLE} in {out}: give the output folder of `cl-jax adapt`")
    return summarize(read_columns(out / TABLE, KINDS))


def summarize(table: pa.Table) -> Summary:
    """The summary of one run."""
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in ("conversation", "metric", "value")}
    curves = {}
    for metric in METRICS:
        rows = columns["metric"] == metric
        curves[metric] = Curve(columns["conversation"][rows].astype(np.int64), columns["value"][rows])
    first = {name: table[name][0].as_py() for name in ("policy", "budget", "seed")}
    return Summary(**first, curves=curves, diverged=bool(curves["diverged"].value.any()))


def sentences(found: Summary, old: str) -> Iterator[str]:
    """The result in words.

    Args:
        old: name of the old text.
    """
    learned, never = found.curves["bits_per_byte"].last, found.curves["untaught_bits_per_byte"].last
    yield (
        f"{found.conversations} conversations, {found.bytes} bytes of replies: {learned:.4f} bits per byte, each "
        f"scored before it was learned from; {never:.4f} for the model that never learns."
    )
    if found.policy != "frozen":
        kind = "saved" if found.gain >= 0 else "cost"
        yield f"Learning by {found.policy} {kind} {abs(found.gain):.4f} bits per byte ({abs(found.gain) / never:.1%})."
    test = found.curves["old_bits_per_byte"].value
    yield (
        f"Old text ({old}), test split: {test[0]:.4f} bits per byte at the start, {test[-1]:.4f} now "
        f"({found.forgetting:+.4f})."
    )
    if found.budget is not None:
        rounds, over = found.outcomes(), found.over
        yield (
            f"Guard, budget {found.budget:g}: {rounds[ACCEPTED]} rounds accepted, {rounds[SCALED]} scaled back, "
            f"{rounds[ROLLED_BACK]} rolled back; the most that its own old text cost after a round, against the start: "
            f"{over:+.4f}."
        )
    if found.cut:
        yield f"{found.cut} conversations were too long and were cut."
    if found.diverged:
        yield "The run diverged: from there on nothing was learned. Lower the learning rate."
