"""`cl-jax gather OUT`: the one table of a sweep, bit for bit that of `cl-jax run`, and what it lacks."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cl_jax import results
from cl_jax.diagnostics import table
from cl_jax.errors import UserError
from cl_jax.experiment import Member
from cl_jax.fleet import sweep_file
from cl_jax.fleet.heartbeat import Beat, beats_in
from cl_jax.fleet.sweep_file import Sweep
from cl_jax.job import SWEEP
from cl_jax.plan import Shard
from cl_jax.results import Record, read_shard
from cl_jax.standing import read_record

SAME = ("code", "matmul_precision", "platform")  # what results of one table have in common


class Lack(NamedTuple):
    """Members that a table has not, or not whole."""

    number: int  # of the shard
    folder: str
    members: tuple[str, ...]
    why: str


def gather(out: Path, *, mixed: bool = False, say: Callable[[str], None] = print) -> list[Lack]:
    """Writes results.parquet and what belongs to it from the shards of a sweep; what is missing.

    Args:
        mixed: also where shards were trained by different versions, at different precisions or on different platforms.

    Raises:
        UserError: no shard has published anything, or `mixed` would be needed.
    """
    sweep = sweep_file.read(out / SWEEP)
    beats = [beats_in(out / "shards" / piece.folder) for piece in sweep.shards]
    trained = [beat for each in beats for beat in each if beat.environment]
    _check_same(trained, mixed, say)
    everyone = {member.id: member for member in sweep.checked().members()}
    shards = sweep_file.shards_of(sweep.shards, out / "shards", everyone)
    parts, lacks = [], []
    for number, shard in enumerate(shards):
        try:
            read = read_record(shard)
        except UserError as error:
            lacks.append(_lack(number, shard, str(error)))
            continue
        if not shard.done:
            parts += _published(shard, read)
        elif read is not None:
            parts.append((shard.folder, shard.members, read))
        if not shard.done:
            why = "not begun" if not beats[number] else f"not finished, {beats[number][-1].state}"
            lacks.append(_lack(number, shard, why))
    if not parts:
        raise UserError(f"{out}: no shard has finished a task yet; see: cl-jax status {out}")
    _write(out, sweep, trained, parts, lacks)
    return lacks


def _published(shard: Shard, read: Record | None) -> list[tuple[Path, Sequence[Member], Record]]:
    """What is known of a shard that is not done: of each member the most, from wherever a process has published it."""
    sources = [] if read is None else [(shard.folder, shard.members, read)]
    known = {member.id: member for member in shard.members}
    for file in sorted(shard.folder.glob("parts/*/shard.json")):
        with contextlib.suppress(UserError):  # a part that is damaged is trained again before the shard is done
            ids, _, _ = read_shard(file)
            part = Shard(folder=file.parent, members=tuple(known[name] for name in ids if name in known), width=1)
            if (of_part := read_record(part)) is not None:
                sources.append((part.folder, part.members, of_part))
    best: dict[str, tuple[int, int]] = {}  # rows, and which source has them
    for number, (_, members, record) in enumerate(sources):
        for member, rows in zip(members, record.rows_done.tolist(), strict=True):
            best[member.id] = max(best.get(member.id, (-1, 0)), (rows, -number))
    found = []
    for number, (folder, members, record) in enumerate(sources):
        places = [i for i, member in enumerate(members) if best[member.id][1] == -number]
        if places:
            found.append((folder, [members[i] for i in places], Record(*(array[places] for array in record))))
    return found


def _lack(number: int, shard: Shard, why: str) -> Lack:
    return Lack(number, shard.folder.name, tuple(member.id for member in shard.members), why)


def _check_same(beats: Sequence[Beat], mixed: bool, say: Callable[[str], None]) -> None:
    for name in SAME:
        found: dict[str, list[str]] = {}
        for beat in beats:
            found.setdefault(str(_about(beat.environment)[name]), []).append(beat.attempt)
        if len(found) > 1:
            held = "; ".join(f"{value} ({len(attempts)} attempts)" for value, attempts in found.items())
            text = f"the shards were trained with different {name.replace('_', ' ')}: {held}"
            if not mixed:
                raise UserError(
                    f"{text}; their results differ by more than their settings: train them alike, or --mixed"
                )
            say(f"mixed: {text}")


def _about(environment: Mapping[str, Any]) -> dict[str, Any]:
    device = environment.get("device")
    return {
        "code": environment.get("code"),
        "matmul_precision": environment.get("matmul_precision"),
        "platform": device.get("platform") if isinstance(device, Mapping) else None,
    }


def _write(
    out: Path, sweep: Sweep, beats: Sequence[Beat], parts: Sequence[tuple[Path, Sequence[Member], Record]],
    lacks: Sequence[Lack],
) -> None:  # fmt: skip
    missing, total = sum(len(lack.members) for lack in lacks), sum(len(piece.members) for piece in sweep.shards)
    environment = {
        **(beats[0].environment if beats else {"versions": {}, "device": {}}),
        "command": f"cl-jax worker, {len(beats)} attempts at {len(sweep.shards)} shards",
        "width": {piece.folder: piece.width for piece in sweep.shards},
        "data_sha256": dict(sweep.data_sha256),
    }
    for name in SAME:
        values = sorted({str(_about(beat.environment)[name]) for beat in beats})
        if len(values) > 1:
            environment[f"mixed_{name}"] = values
    if lacks:
        environment["partial"] = f"{missing} of {total} runs are missing or not finished"
    results.write_json(out / "environment.json", environment)
    rows = [row for _, members, read in parts for row in results.rows(members, *read)]
    results.write_table(out / results.RESULTS, rows)
    table.gather(out, parts)
