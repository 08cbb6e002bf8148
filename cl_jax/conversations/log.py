"""What a run has measured: a line a round in log.jsonl, from which its tables are made.

A line is on disk before the checkpoint of its round is begun. So whatever a killed run goes on from, the lines up to
there are whole; later ones are of a round that is done again, and are dropped.
"""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cl_jax.conversations.guard import Decision
from cl_jax.conversations.scoring import Score
from cl_jax.errors import UserError
from cl_jax.results import write_atomically

LOG, TABLE, DECISIONS = "log.jsonl", "adapt.parquet", "decisions.jsonl"
KINDS = {
    "policy": pa.string(), "budget": pa.float64(), "seed": pa.int32(), "round": pa.int32(), "conversation": pa.int32(),
    "metric": pa.string(), "value": pa.float64(),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A round; number 0: before the first."""

    round: int
    first: int  # number of its first conversation, from 0
    sha256: str  # of what the model was shown of its conversations
    scores: list[Score]  # of each, by the model before the round
    untaught: list[float]  # nats of each, by the model of the start
    cut: list[int]  # of each, tokens that were left out
    old: Score | None  # test split of the old text after the round; None: not measured
    guard: float | None  # bits per byte of the guard's old text after the round; None: no guard
    decision: Decision | None
    diverged: bool

    @property
    def done(self) -> int:
        """Conversations behind the round."""
        return self.first + len(self.scores)


class Log:
    """The lines of a run's folder."""

    def __init__(self, folder: Path) -> None:
        self._path, self.lines = folder / LOG, _read(folder / LOG)

    def keep(self, rounds: int) -> None:
        """Forgets what comes after a round; -1: everything.

        Raises:
            UserError: lines up to there are missing.
        """
        if len(self.lines) <= rounds:
            raise UserError(
                f"{self._path}: ends with round {len(self.lines) - 1}, the checkpoint is of round {rounds}; remove the "
                f"folder {self._path.parent} and run again"
            )
        self.lines = self.lines[: rounds + 1]
        write_atomically(self._path, b"".join(map(_dumped, self.lines)))

    def add(self, line: Line) -> None:
        """The line is on disk when this returns."""
        with self._path.open("ab") as file:
            file.write(_dumped(line))
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)


def _dumped(line: Line) -> bytes:
    return json.dumps(dataclasses.asdict(line)).encode() + b"\n"


def _read(path: Path) -> list[Line]:
    """Lines from the first on, as far as they are whole."""
    lines: list[Line] = []
    for text in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
        try:
            held = json.loads(text)
            held["scores"] = [Score(*each) for each in held["scores"]]
            held["old"] = held["old"] and Score(*held["old"])
            if held["decision"]:
                outcome, scale, tried = held["decision"]
                held["decision"] = Decision(outcome, scale, [(tau, value) for tau, value in tried])
            line = Line(**held)
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        if line.round != len(lines):
            break
        lines.append(line)
    return lines


def table(lines: list[Line], policy: str, budget: float | None, seed: int) -> pa.Table:
    """Tidy: a value a row, by `conversation`, the number from 1 of the one that is scored or of the last one learned.

    Metrics of a conversation: nats, bytes, untaught_nats (what it costs the model of the start), cut_tokens; of all up
    to it: bits_per_byte, untaught_bits_per_byte and gain, the second less the first. Of the model after a round, before
    the first at conversation 0: old_bits_per_byte (test split of the old text); with a guard guard_bits_per_byte (its
    own split) and update_scale (1 accepted, 0 rolled back); diverged.
    """
    fixed, made = {"policy": policy, "budget": budget, "seed": seed}, []
    nats, untaught, num_bytes = 0.0, 0.0, 0
    for line in lines:
        each = zip(line.scores, line.untaught, line.cut, strict=True)
        for number, (score, start, cut) in enumerate(each, line.first + 1):
            nats, untaught, num_bytes = nats + score.nats, untaught + start, num_bytes + score.bytes
            learned, never = Score(nats, num_bytes).bits_per_byte, Score(untaught, num_bytes).bits_per_byte
            values = {
                "nats": score.nats, "bytes": score.bytes, "untaught_nats": start, "cut_tokens": cut,
                "bits_per_byte": learned, "untaught_bits_per_byte": never, "gain": never - learned,
            }  # fmt: skip
            made += [(line.round, number, name, value) for name, value in values.items()]
        values = {"diverged": float(line.diverged)}
        if line.old is not None:
            values["old_bits_per_byte"] = line.old.bits_per_byte
        if line.guard is not None:
            values["guard_bits_per_byte"] = line.guard
        if line.decision is not None:
            values["update_scale"] = line.decision.scale
        made += [(line.round, line.done, name, value) for name, value in values.items()]
    columns = zip(*made, strict=True)
    values = {name: [value] * len(made) for name, value in fixed.items()}
    values |= dict(zip(("round", "conversation", "metric", "value"), map(list, columns), strict=True))
    return pa.table({name: pa.array(values[name], kind) for name, kind in KINDS.items()})


def write(folder: Path, lines: list[Line], policy: str, budget: float | None, seed: int) -> None:
    """adapt.parquet, and of a guard decisions.jsonl: equal results, equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table(lines, policy, budget, seed), sink, compression="zstd")
    write_atomically(folder / TABLE, sink.getvalue().to_pybytes())
    if budget is not None:
        base = lines[0].guard
        told = [_told(line, base, budget) for line in lines if line.decision is not None]
        write_atomically(folder / DECISIONS, "".join(json.dumps(each) + "\n" for each in told).encode())


def _told(line: Line, base: float | None, budget: float) -> dict[str, Any]:
    assert line.decision is not None
    return {
        "round": line.round,
        "conversations": [line.first + 1, line.done],
        "decision": line.decision.outcome,
        "scale": line.decision.scale,
        "base": base,
        "budget": budget,
        "tried": [
            {"scale": scale, "bits_per_byte": value if math.isfinite(value) else None}
            for scale, value in line.decision.tried
        ],
        "bits_per_byte": line.guard,
    }
