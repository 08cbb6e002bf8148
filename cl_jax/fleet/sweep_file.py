"""sweep.json: what every shard of a sweep trains, so that any process can make the very same members of it.

The file is read by many machines and may have come from anywhere, so that nothing in it is believed before it is
checked. It names a Python file, the experiment, which is run: only work on sweeps of people you trust.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_jax import job
from cl_jax.config import LARGEST_INT
from cl_jax.errors import UserError
from cl_jax.experiment import Member
from cl_jax.plan import Shard
from cl_jax.results import read_json, write_json

SCHEMA = 1
_FOLDER, _ID, _SHA256 = r"[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]{0,79}", r"[0-9a-f]{12}", r"[0-9a-f]{64}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Those of the command line that change what is trained; paths are absolute."""

    data: str | None = None
    data_dir: str | None = None
    seeds: int | None = None
    steps: int | None = None
    width: int | None = None
    data_budget: str | None = None
    size: str | None = None
    unshared: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """One shard, or one part of the first tasks that shards share."""

    folder: str
    members: tuple[str, ...]  # ids
    width: int  # members side by side, see `cl_jax.plan.Shard`
    alone: bool  # on one device; else on two at least, whatever its members need
    member_steps: int  # that it trains, the first tasks of others not among them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What sweep.json holds."""

    name: str
    experiment: str  # path of the file, absolute
    experiment_sha256: str
    options: Options
    data_sha256: Mapping[str, str]  # by name of the data
    code: str  # version of cl_jax that planned it
    matmul_precision: str  # of the process that planned it
    shards: tuple[Piece, ...]
    trunks: tuple[Piece, ...]

    def checked(self) -> job.Checked:
        """The experiment and its data.

        Raises:
            UserError: the file or the data are not those that were planned.
        """
        file, given = Path(self.experiment), self.options
        again = "make the sweep anew by `cl-jax shards`"
        try:
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"{file}: the sweep's experiment cannot be read ({error.strerror}); {again}") from error
        if sha256 != self.experiment_sha256:
            raise UserError(f"{file}: has changed since the sweep was planned (its sha256 differs); {again}")
        experiment = job.experiment_of(
            file, data=given.data, seeds=given.seeds, steps=given.steps, width=given.width, size=given.size
        )
        folder = None if given.data_dir is None else Path(given.data_dir)
        found = job.checked(experiment, folder, given.data_budget)
        if found.sha256 != self.data_sha256:
            raise UserError(f"{file}: its data are not those that the sweep was planned with (the sha256 differs)")
        return found


def shards_of(pieces: Sequence[Piece], part: Path, known: Mapping[str, Member]) -> list[Shard]:
    """The shards that pieces stand for.

    Args:
        part: the folder that theirs lie in.
        known: members by id.

    Raises:
        UserError: a piece has a member that the experiment has not.
    """
    for piece in pieces:
        for name in piece.members:
            if name not in known:
                raise UserError(f"{part.parent}: member {name} of {piece.folder} is not of the sweep's experiment")
    return [
        Shard(
            folder=part / piece.folder, members=tuple(known[name] for name in piece.members), width=piece.width,
            alone=piece.alone, spread=not piece.alone,
        )
        for piece in pieces
    ]  # fmt: skip


def write(file: Path, sweep: Sweep) -> None:
    """Writes what `read` reads.

    Raises:
        UserError: another sweep is there.
    """
    content = {"schema": SCHEMA, **dataclasses.asdict(sweep)}
    if file.exists():
        if _plain(dataclasses.asdict(read(file))) == _plain(dataclasses.asdict(sweep)):
            return
        raise UserError(f"{file}: another sweep is there, of other members or by another version; give another --out")
    write_json(file, content)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def read(file: Path) -> Sweep:
    """Reads and checks a sweep.json.

    Raises:
        UserError: it is not one that this version understands.
    """
    if not file.is_file():
        raise UserError(f"no sweep at {file}: give the sweep.json that `cl-jax shards` has written")
    held = read_json(file, {"schema": int})
    if held.pop("schema") != SCHEMA:
        raise UserError(f"{file}: is of another version of cl_jax, whose sweeps this one cannot read")
    try:
        return _sweep(held)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: is broken ({error}); make the sweep anew by `cl-jax shards`") from error


def _sweep(held: Mapping[str, Any]) -> Sweep:
    _keys(held, Sweep)
    sweep = Sweep(
        name=_text(held["name"]),
        experiment=_text(held["experiment"]),
        experiment_sha256=_text(held["experiment_sha256"], _SHA256),
        options=_options(held["options"]),
        data_sha256={_text(name): _text(value, _SHA256) for name, value in _kind(held["data_sha256"], dict).items()},
        code=_text(held["code"]),
        matmul_precision=_text(held["matmul_precision"]),
        shards=tuple(_piece(each) for each in _kind(held["shards"], list)),
        trunks=tuple(_piece(each) for each in _kind(held["trunks"], list)),
    )
    for pieces in (sweep.shards, sweep.trunks):
        ids = [name for piece in pieces for name in piece.members]
        if len(set(ids)) < len(ids) or len({piece.folder for piece in pieces}) < len(pieces):
            raise ValueError("a member or a folder is in it twice")
    if not sweep.shards:
        raise ValueError("it has no shards")
    return sweep


def _options(held: Any) -> Options:
    _keys(_kind(held, dict), Options)
    for name in ("data", "data_dir", "data_budget", "size"):
        if held[name] is not None:
            _text(held[name])
    for name in ("seeds", "steps", "width"):
        if held[name] is not None:
            _whole(held[name])
    _kind(held["unshared"], bool)
    return Options(**held)


def _piece(held: Any) -> Piece:
    _keys(_kind(held, dict), Piece)
    members = tuple(_text(name, _ID) for name in _kind(held["members"], list))
    if not members:
        raise ValueError("a shard has no members")
    return Piece(
        folder=_text(held["folder"], _FOLDER), members=members, width=_whole(held["width"]),
        alone=_kind(held["alone"], bool), member_steps=_whole(held["member_steps"], 2**62),
    )  # fmt: skip


def _keys(held: Mapping[str, Any], of: type) -> None:
    names = {field.name for field in dataclasses.fields(of)}
    if held.keys() != names:
        raise ValueError(f"{of.__name__}: {', '.join(sorted(held.keys() ^ names))} is missing or unknown")


def _kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, found {value!r:.80}")
    return value


def _text(value: Any, pattern: str = r"[^\x00]{0,4096}") -> str:
    if re.fullmatch(pattern, _kind(value, str), re.S) is None:
        raise ValueError(f"unexpected text {value!r:.80}")
    return value


def _whole(value: Any, most: int = LARGEST_INT) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"expected a whole number from 1, found {value!r:.80}")
    return value
