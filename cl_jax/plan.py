"""What will run: members, the static groups they compile as, and the shards that train together."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from cl_jax.errors import UserError
from cl_jax.experiment import Member, hyper_parameters
from cl_jax.results import read_shard, write_json

# Until it is measured (cl_jax/packing.py): members side by side on a CPU share its cache or slow each other down, an
# accelerator is fuller the wider the program.
MOST_PADDING = 1.1  # times the fewest places that any width needs
CPU_WIDEST, CPU_CACHE_BYTES, ACCELERATOR_WIDEST = 8, 2**23, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Members of one static group that train together in one program."""

    folder: Path
    members: tuple[Member, ...]
    width: int  # members side by side; their results depend on it in the last bits
    fixed: bool = True  # the width is recorded or asked for; else it is a rule's, which a measurement may improve
    alone: bool = False  # on one device after another, which has every core meanwhile; changes no result

    @property
    def done(self) -> bool:
        return (self.folder / "DONE.json").is_file()


def group_name(member: Member) -> str:
    """The static structure's address: equal for members that share a compiled program."""
    return hashlib.sha256(str(jax.tree.structure(member.entry.run)).encode()).hexdigest()[:8]


def folder_label(label: str) -> str:
    """A label as part of a folder name: no separators, no dots in front, not long; hashes beside it keep it unique."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", label).lstrip(".")[:40] or "_"


def widest(state_bytes: int, platform: str) -> int:
    """The most members side by side, by the bytes of one member's training state and the device's platform."""
    if platform != "cpu":
        return ACCELERATOR_WIDEST
    return min(CPU_WIDEST, max(1, CPU_CACHE_BYTES // max(state_bytes, 1)))


def choose_width(num_members: int, widest: int, num_devices: int) -> int:
    """The widest W that pads few members up to a multiple of devices times W; devices without members idle."""

    def slots(width: int) -> int:
        wave = width * min(num_devices, -(-num_members // width))
        return -(-num_members // wave) * wave

    most = max(1, min(widest, -(-num_members // num_devices)))
    least = min(slots(width) for width in range(1, most + 1))
    return max(width for width in range(1, most + 1) if slots(width) <= MOST_PADDING * least)


def make_plan(
    out: Path,
    members: Sequence[Member],
    width: int | None,
    state_bytes: Callable[[Member], int],
    part: str = "shards",
) -> list[Shard]:
    """The shards that hold these members: those already begun in `out`, and new ones for the rest.

    A begun shard is kept as it is while all of its members are wanted or it is done. W of a group is fixed by its first
    shard, so that members added later are computed as if they had been there from the start.

    Args:
        width: members side by side, or None: chosen by what one member's training state takes, `state_bytes`.
        part: folder within `out`.

    Raises:
        UserError: `width` differs from what the output folder was begun with.
    """

    def most(member: Member) -> int:
        return widest(state_bytes(member), jax.default_backend())

    wanted = {member.id: member for member in members}
    shards, placed, widths = [], set(), {}
    for file in sorted((out / part).glob("*/shard.json")):
        ids, group, begun_width = read_shard(file)
        widths[group] = begun_width
        done = (file.parent / "DONE.json").is_file()
        here = tuple(wanted[name] for name in ids if name in wanted)
        if here and (done or len(here) == len(ids)):
            if width is not None and width != begun_width:
                raise UserError(_other_width(width, begun_width, out))
            # A done shard may hold members nobody asks for now; their place in the record is by position.
            shards.append(Shard(folder=file.parent, members=here, width=begun_width))
            placed.update(ids)
    groups: dict[str, list[Member]] = {}
    for member in members:
        if member.id not in placed:
            groups.setdefault(group_name(member), []).append(member)
    for group, new in groups.items():
        fixed = widths.get(group)
        if width is not None and fixed is not None and fixed != width:
            raise UserError(_other_width(width, fixed, out))
        shard_width = fixed or width or choose_width(len(new), most(new[0]), jax.local_device_count())
        address = hashlib.sha256("".join(member.id for member in new).encode()).hexdigest()[:8]
        folder = out / part / f"{folder_label(new[0].entry.label)}-{group}-{address}"
        given = fixed is not None or width is not None
        shards.append(Shard(folder=folder, members=tuple(new), width=shard_width, fixed=given))
    return shards


def _other_width(width: int, begun: int, out: Path) -> str:
    return (
        f"--width: was given {width}, but {out} was begun with {begun} and results depend on it in the last bits; "
        f"leave --width out, or choose another --out"
    )


def begin(shard: Shard) -> None:
    """Records a shard before its first step."""
    file = shard.folder / "shard.json"
    if not file.exists():
        about = {
            "members": [member.id for member in shard.members],
            "group": group_name(shard.members[0]),
            "width": shard.width,
            "configurations": [
                {"method": member.entry.label, "seed": member.seed, **hyper_parameters(member.entry.run)}
                for member in shard.members
            ],
        }
        write_json(file, about)
