"""A shard that several processes train at once: the part of each, and how the parts become the one shard.

Members are independent of each other, so that no process needs another's arrays: each trains its own members on its own
devices, at the shard's width, saves them in folders of its own and publishes them in `<shard>/parts/<part>`, a shard's
folder in small. One process then writes what a single process would have written, byte for byte.
"""

import dataclasses
import hashlib
import itertools
import shutil
from collections.abc import Sequence

import numpy as np

from cl_jax import plan
from cl_jax.checkpoint import saved_inside
from cl_jax.diagnostics.table import read_part
from cl_jax.plan import Shard
from cl_jax.results import Record, write_atomically
from cl_jax.standing import contents_of, mark_done, read_record


def cut(shard: Shard, count: int) -> list[Shard]:
    """The part of each of so many processes, in their order; some are empty where there is not enough for all.

    Parts are consecutive members, whole multiples of the width but for the last, and of these as many for each process
    as for any other, or one more: a call computes `width` members at once, fewer would take as long.
    """
    if count == 1:
        return [shard]
    blocks = -(-len(shard.members) // shard.width)
    bounds = [shard.width * -(-number * blocks // count) for number in range(count + 1)]
    return [of(shard, first, last) for first, last in itertools.pairwise(bounds)]


def of(shard: Shard, first: int, last: int) -> Shard:
    """The part of members `first` to `last` - 1."""
    return named(shard, [member.id for member in shard.members[first:last]])


def named(shard: Shard, ids: Sequence[str]) -> Shard:
    """The part of these members, whose name is their address."""
    address = hashlib.sha256("".join(ids).encode()).hexdigest()[:12]
    wanted = set(ids)
    return dataclasses.replace(
        shard, members=tuple(member for member in shard.members if member.id in wanted), part=address
    )


def begin(part: Shard) -> None:
    """Records whose a part is, before anything of it is published."""
    plan.begin(_alone(part))


def finish(shard: Shard, parts: Sequence[Shard]) -> None:
    """Publishes the shard from its parts, all of which have to be done, and marks it as done.

    Raises:
        UserError: a part does not match its sha256.
    """
    records, measured = [], []
    for part in parts:
        if part.members:
            alone = _alone(part)
            record, found = read_record(alone), read_part(alone.folder, alone.members)
            assert record is not None
            records.append(record)
            measured += [found] if found is not None else []
    whole = None
    if measured:
        whole = np.concatenate([values for values, _ in measured]), measured[0][1]
    contents = contents_of(Record(*map(np.concatenate, zip(*records, strict=True))), whole)
    for name, content in contents.items():
        write_atomically(shard.folder / name, content)
    mark_done(shard.folder, contents)
    for _, writer in saved_inside(shard.folder):
        shutil.rmtree(writer, ignore_errors=True)


def _alone(part: Shard) -> Shard:
    """A part as a shard of its own, in the folder that it is published in."""
    return dataclasses.replace(part, folder=part.published, part="") if part.part else part
