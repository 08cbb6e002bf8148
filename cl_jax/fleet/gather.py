"""`cl-jax gather OUT`: the one table of a sweep, bit for bit that of `cl-jax run`, and what it lacks."""

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
from cl_jax.results import Record
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
        if read is not None:
            parts.append((shard.folder, shard.members, read))
        if not shard.done:
            why = "not begun" if not beats[number] else f"not finished, {beats[number][-1].state}"
            lacks.append(_lack(number, shard, why))
    if not parts:
        raise UserError(f"{out}: no shard has finished a task yet; see: cl-jax status {out}")
    _write(out, sweep, trained, parts, lacks)
    return lacks


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
