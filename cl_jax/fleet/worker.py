"""`cl-jax worker --sweep FILE --shard I`: trains one shard; the entry point of everything that starts processes.

It may be started again at any time, anywhere, twice at once: it does nothing where the shard is done, goes on from the
newest checkpoint of any attempt that proves good, writes folders of its own alone, and publishes only what any other
would publish bit for bit. Exit codes: 0 done; 75 told to go, start it again; 2 a mistake of the user's, which another
start would repeat; else a fault.

Several processes may train a shard together, each its part of the members, see `cl_jax.parts`. They end together: all
with 0, or all but the one that was lost or failed with 75. Whoever trains the shard next may be one process, or another
number of them.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cl_jax import parts
from cl_jax.checkpoint import new_attempt, steps_in
from cl_jax.cover import catching_up
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.fleet import sweep_file
from cl_jax.fleet.group import Group
from cl_jax.fleet.heartbeat import DONE, FAILED, PREEMPTED, STOPPED, CatchingUp, Heart, Watched
from cl_jax.fleet.start import ALONE, Notice, Placed, distributed
from cl_jax.fleet.start import PREEMPTED as PREEMPTED_CODE
from cl_jax.fleet.store import Mirror
from cl_jax.fleet.sweep_file import Piece, Sweep
from cl_jax.inside import Leaving, When
from cl_jax.plan import Shard, begin
from cl_jax.progress import Bar
from cl_jax.trunk import Trunks

SAVE_SECONDS = 600.0  # between two saves inside a task: what a machine that dies without notice may cost


class _Process(NamedTuple):
    """This process, and what it says of itself."""

    attempt: str
    heart: Heart
    notice: Notice
    group: Group
    mirror: Mirror | None


def work(
    file: Path, number: int, notice: Notice, *, place: Placed = ALONE, quiet: bool = False, mirror: Mirror | None = None
) -> None:
    """Trains a shard to its end.

    Args:
        file: sweep.json; shards lie beside it.
        number: of the shard, from 0.
        notice: whether to leave.
        place: of this process among those that train the shard.
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
    attempt, group = new_attempt(), None
    heart = Heart(folder, attempt, None if mirror is None else mirror.beat)
    try:
        group = Group(place, f"shard {number} ({piece.folder}) of {sweep.name}", notice, notice.tell)
        if group.count > 1:
            heart.tell(group=group.id, process=group.number, processes=group.count)
        _train(sweep, piece, file.parent, _Process(attempt, heart, notice, group, mirror), quiet)
    except Leaving:
        heart.end(PREEMPTED, PREEMPTED_CODE)
        _told(group, "was told to go")
        print(f"shard {number} ({piece.folder}): told to go; what it had come to is saved", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if mirror is not None:
            mirror.close()
        os._exit(PREEMPTED_CODE)  # the time that was given is short, and everything on disk is safe
    except UserError as error:
        heart.end(FAILED, 2, str(error))
        _told(group, "has failed")
        raise
    except Exception as error:
        heart.end(FAILED, 2 if isinstance(error, OSError) else 1, traceback.format_exc())  # as `cl_jax.cli` exits
        _told(group, "has failed")
        raise
    except BaseException:
        heart.end(STOPPED, 130)
        _told(group, "was stopped")
        raise
    group.end()
    heart.end(DONE, 0)
    print(f"shard {number} ({piece.folder}) is done", file=sys.stderr)


def _told(group: Group | None, why: str) -> None:
    if group is not None:
        group.leave(why)


def _train(sweep: Sweep, piece: Piece, out: Path, this: _Process, quiet: bool) -> None:
    distributed()
    this.notice.listen()
    import jax

    from cl_jax import devices, provenance, trunk

    devices.every_core(least=2)  # what was planned for several devices is computed on several
    if jax.process_count() > 1:  # Orbax would write empty steps, see `cl_jax.fleet.group`
        raise UserError(
            "the accelerators of several hosts come up as one here, such as a TPU slice; a worker needs its own host's "
            "alone: set TPU_PROCESS_BOUNDS=1,1,1 and TPU_CHIPS_PER_PROCESS_BOUNDS to those of a host, such as 2,2,1"
        )
    environment, heart = provenance.environment(), this.heart
    heart.tell(environment=environment, doing="reading")
    for name, planned in (("code", sweep.code), ("matmul_precision", sweep.matmul_precision)):
        if environment[name] != planned:
            print(f"{name} is {environment[name]!r} here, the sweep was planned with {planned!r}", file=sys.stderr)
    ready = sweep.checked()
    everyone = ready.members()
    (shard,) = sweep_file.shards_of([piece], out / "shards", {member.id: member for member in everyone})
    begin(shard)
    every = parts.cut(shard, this.group.count)
    mine = every[this.group.number]
    first_of = trunk.trunk_members(everyone, ready.sha256, shared=not sweep.options.unshared)
    own = {member.id: first_of[member.id] for member in mine.members if member.id in first_of}
    needed = {member.id for member in own.values()}
    pieces = [each for each in sweep.trunks if needed.intersection(each.members)]
    trunks = sweep_file.shards_of(pieces, out / "trunks", {member.id: member for member in first_of.values()})
    if needed.difference(*(each.members for each in pieces)):
        raise UserError(f"{out}: the sweep lacks the first task of {piece.folder}; make it anew by `cl-jax shards`")
    if this.mirror is not None:
        this.mirror.pull(shard.folder, [each.folder for each in trunks])
    steps = piece.member_steps * len(mine.members) // len(shard.members)
    firsts = zip(pieces, trunks, strict=True)
    total = steps + sum(each.member_steps for each, trained in firsts if not trained.done and not mine.done)
    heart.count(total=total, done=steps if mine.done else 0)
    run = shard.members[0].entry.run
    # What is done here may not have come to the store, if a worker died in between.
    if mine.members and (this.mirror is not None or not mine.done):
        with Bar(total, quiet=quiet) as bar, _stored(this, shard) as when:
            start = trunk.Trunks(trunks, own, when)
            _train_part(mine, ready.data[run.data, run.validation], Watched(bar, heart), start, (this, when))
    if this.group.count > 1:
        _finish(shard, every, this)


@contextlib.contextmanager
def _stored(this: _Process, shard: Shard) -> Iterator[When]:
    """When to save and to leave. Where the sweep is in a store, everything that was saved has come there at the end."""
    mirror = this.mirror
    if mirror is None:
        yield When(this.notice, SAVE_SECONDS)
        return
    try:
        yield When(lambda: mirror.leaving(this.notice), SAVE_SECONDS, mirror.push)
    except Leaving:
        mirror.settle()
        raise
    mirror.push(shard.folder)  # also what an earlier worker had done here, and died
    mirror.settle()


def _train_part(mine: Shard, data: Data, progress: Watched, trunks: Trunks, about: tuple[_Process, When]) -> None:
    """Trains what is this process's, from wherever others have left it."""
    from cl_jax.compiled import Programs
    from cl_jax.sweep import Stage, run_shard

    (this, when), programs = about, Programs()
    if mine.part:
        parts.begin(mine)
    behind = catching_up(steps_in(mine.folder), [member.id for member in mine.members])
    for ids, until in behind:
        progress.say(f"{mine.folder.name}: {len(ids)} members are behind the others, which have {until} tasks done")
        some, slow = parts.named(mine, ids), CatchingUp(progress, this.heart)
        run_shard(some, data, slow, programs, trunks, stage=Stage(until=until, when=when))
    run_shard(mine, data, progress, programs, trunks, stage=Stage(attempt=this.attempt, when=when))


def _finish(shard: Shard, every: Sequence[Shard], this: _Process) -> None:
    """Waits for the parts of all; process 0 then makes them one."""
    this.heart.tell(doing="waiting for the others")
    if this.group.number == 0:
        this.group.wait(lambda: all(part.done or not part.members for part in every))
        if not shard.done:
            parts.finish(shard, every)
    else:
        this.group.wait(lambda: shard.done)
