"""What will run: members, the static groups they compile as, and the shards that train together."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
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
    alone: bool = False  # on one device after another, which has every core meanwhile
    # On two devices at least, also where one would hold its members: a program for several rounds otherwise than one
    # for a single device, so that what is cut from a group which has several must have them too.
    spread: bool = False
    part: str = ""  # name of the part that one of several processes trains, see `cl_jax.parts`; "": all of the shard

    @property
    def published(self) -> Path:
        """Where what was measured goes."""
        return self.folder / "parts" / self.part if self.part else self.folder

    @property
    def done(self) -> bool:
        return any((place / "DONE.json").is_file() for place in {self.published, self.folder})


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
    new = [member for member in members if member.id not in placed]
    for group in groups_of(new):
        if width is not None and widths.get(group, width) != width:
            raise UserError(_other_width(width, widths[group], out))
    return shards + new_shards(out / part, new, width, state_bytes, widths)


def new_shards(
    folder: Path, members: Sequence[Member], width: int | None, state_bytes: Callable[[Member], int],
    begun: Mapping[str, int] | None = None,
) -> list[Shard]:  # fmt: skip
    """Shards of members that are in none yet, one a static group.

    Args:
        folder: that theirs will lie in.
        width, state_bytes: see `make_plan`.
        begun: widths that are fixed, by group.
    """
    shards = []
    for group, new in groups_of(members).items():
        fixed = (begun or {}).get(group) or width
        most = widest(state_bytes(new[0]), jax.default_backend())
        chosen = fixed or choose_width(len(new), most, jax.local_device_count())
        shards.append(Shard(folder=folder / folder_name(new), members=tuple(new), width=chosen, fixed=bool(fixed)))
    return shards


def groups_of(members: Sequence[Member]) -> dict[str, list[Member]]:
    """Members that share a compiled program, by its address, in their order."""
    groups: dict[str, list[Member]] = {}
    names: dict[int, str] = {}  # the members of a configuration hold one and the same run, whose address takes a while
    for member in members:
        run = id(member.entry.run)
        if run not in names:
            names[run] = group_name(member)
        groups.setdefault(names[run], []).append(member)
    return groups


def folder_name(members: Sequence[Member]) -> str:
    """A new shard's: the address of its members, after their label and program for people."""
    address = hashlib.sha256("".join(member.id for member in members).encode()).hexdigest()[:8]
    return f"{folder_label(members[0].entry.label)}-{group_name(members[0])}-{address}"


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
