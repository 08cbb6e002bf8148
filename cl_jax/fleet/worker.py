"""`cl-jax worker --sweep FILE --shard I`: trains one shard; the entry point of everything that starts processes.

It may be started again at any time, anywhere, twice at once: it does nothing where the shard is done, goes on from the
newest checkpoint of any attempt that proves good, writes folders of its own alone, and publishes only what any other
would publish bit for bit. Exit codes: 0 done; 75 told to go, start it again; 2 a mistake of the user's, which another
start would repeat; else a fault.
"""

import os
import sys
import traceback
from pathlib import Path

from cl_jax.checkpoint import new_attempt
from cl_jax.errors import UserError
from cl_jax.fleet import sweep_file
from cl_jax.fleet.heartbeat import DONE, FAILED, PREEMPTED, STOPPED, Heart, Watched
from cl_jax.fleet.start import PREEMPTED as PREEMPTED_CODE
from cl_jax.fleet.start import Notice, distributed
from cl_jax.fleet.store import Mirror
from cl_jax.fleet.sweep_file import Piece, Sweep
from cl_jax.inside import Leaving, When
from cl_jax.progress import Bar

SAVE_SECONDS = 600.0  # between two saves inside a task: what a machine that dies without notice may cost


def work(file: Path, number: int, notice: Notice, *, quiet: bool = False, mirror: Mirror | None = None) -> None:
    """Trains a shard to its end.

    Args:
        file: sweep.json; shards lie beside it.
        number: of the shard, from 0.
        notice: whether to leave.
        mirror: where the sweep is in a store, its local folder, which `file` is in.

    Raises:
        UserError: the sweep, its experiment or its data are not what was planned, or the disk is full.
        SystemExit: 75, told to go.
    """
    sweep = sweep_file.read(file)
    if not 0 <= number < len(sweep.shards):
        raise UserError(f"--shard: was given {number}; {file} has the shards 0 to {len(sweep.shards) - 1}")
    piece = sweep.shards[number]
    folder = file.parent / "shards" / piece.folder
    if (folder / "DONE.json").is_file() if mirror is None else mirror.done(folder):
        print(f"shard {number} ({piece.folder}) is done already", file=sys.stderr)
        return
    attempt = new_attempt()
    heart = Heart(folder, attempt, None if mirror is None else mirror.beat)
    try:
        _train(sweep, piece, file.parent, (attempt, heart), notice, quiet, mirror)
    except Leaving:
        heart.end(PREEMPTED, PREEMPTED_CODE)
        print(f"shard {number} ({piece.folder}): told to go; what it had come to is saved", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if mirror is not None:
            mirror.close()
        os._exit(PREEMPTED_CODE)  # the time that was given is short, and everything on disk is safe
    except UserError as error:
        heart.end(FAILED, 2, str(error))
        raise
    except Exception as error:
        heart.end(FAILED, 2 if isinstance(error, OSError) else 1, traceback.format_exc())  # as `cl_jax.cli` exits
        raise
    except BaseException:
        heart.end(STOPPED, 130)
        raise
    heart.end(DONE, 0)
    print(f"shard {number} ({piece.folder}) is done", file=sys.stderr)


def _train(
    sweep: Sweep, piece: Piece, out: Path, mine: tuple[str, Heart], notice: Notice, quiet: bool, mirror: Mirror | None
) -> None:
    (attempt, heart) = mine
    distributed()
    notice.listen()
    from cl_jax import devices, provenance, trunk
    from cl_jax.compiled import Programs
    from cl_jax.sweep import Stage, run_shard

    devices.every_core(least=2)  # what was planned for several devices is computed on several
    environment = provenance.environment()
    heart.tell(environment=environment, doing="reading")
    for name, planned in (("code", sweep.code), ("matmul_precision", sweep.matmul_precision)):
        if environment[name] != planned:
            print(f"{name} is {environment[name]!r} here, the sweep was planned with {planned!r}", file=sys.stderr)
    ready = sweep.checked()
    everyone = ready.members()
    (shard,) = sweep_file.shards_of([piece], out / "shards", {member.id: member for member in everyone})
    first_of = trunk.trunk_members(everyone, ready.sha256, shared=not sweep.options.unshared)
    needed = {first_of[member.id].id for member in shard.members if member.id in first_of}
    parts = [part for part in sweep.trunks if needed.intersection(part.members)]
    trunks = sweep_file.shards_of(parts, out / "trunks", {member.id: member for member in first_of.values()})
    if needed.difference(*(part.members for part in parts)):
        raise UserError(f"{out}: the sweep lacks the first task of {piece.folder}; make it anew by `cl-jax shards`")
    if mirror is not None:
        mirror.pull(shard.folder, [each.folder for each in trunks])
    total = piece.member_steps + sum(
        part.member_steps for part, each in zip(parts, trunks, strict=True) if not each.done
    )
    heart.count(total=total)
    run = shard.members[0].entry.run
    when = When(notice, SAVE_SECONDS)
    if mirror is not None:
        when = When(lambda: mirror.leaving(notice), SAVE_SECONDS, mirror.push)
    own = {member.id: first_of[member.id] for member in shard.members if member.id in first_of}
    with Bar(total, quiet=quiet) as bar:
        try:
            run_shard(
                shard, ready.data[run.data, run.validation], Watched(bar, heart), Programs(),
                trunk.Trunks(trunks, own, when), stage=Stage(attempt=attempt, when=when),
            )  # fmt: skip
        except Leaving:
            if mirror is not None:
                mirror.settle()
            raise
    if mirror is not None:
        mirror.push(shard.folder)  # also what an earlier worker had done here, and died
        mirror.settle()
