"""Which run of an earlier experiment a member continues: same seed, same world, what was asked for, then the nearest.

The world is what one seed gives every method alike: data, validation share, task stream, scenario and model.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cl_jax.errors import UserError, did_you_mean, unknown
from cl_jax.experiment import Member, address_of, hyper_parameters
from cl_jax.results import read_json, read_shard


class Parent(NamedTuple):
    """A member of an earlier run."""

    id: str
    address: str  # the id that it would have, had it not continued another run itself
    label: str
    seed: int
    settings: dict[str, Any]  # dotted hyper-parameters
    folder: Path  # its shard's
    place: int  # in the shard
    size: int  # members of the shard


def parents_in(run: Path, addresses: Mapping[str, str]) -> list[Parent]:
    """Every member of a run.

    Args:
        run: its output folder.
        addresses: by member's id, of those that continue another run themselves.

    Raises:
        UserError: there is no run, or a file of it is broken.
    """
    if not (run / "experiment.json").is_file():
        near = [file.parent.name for file in sorted(run.parent.glob("*/experiment.json"))]
        known = f"; beside it are {', '.join(near)}" if near else ""
        raise UserError(
            f"--from: there is no run in {run}; give the output folder of `cl-jax run`{known}."
            f"{did_you_mean(run.name, near)}"
        )
    found = []
    for file in sorted((run / "shards").glob("*/shard.json")):
        ids, _, _ = read_shard(file)
        about = read_json(file, {"configurations": list})["configurations"]
        if len(about) != len(ids) or not all(map(_is_configuration, about)):
            raise UserError(f"{file}: is broken; its members cannot be continued")
        for place, (name, settings) in enumerate(zip(ids, about, strict=True)):
            rest = {key: value for key, value in settings.items() if key not in ("method", "seed")}
            address = addresses.get(name, name)
            label, seed = settings["method"], settings["seed"]
            found.append(Parent(name, address, label, seed, rest, file.parent, place, len(ids)))
    return found


def _is_configuration(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("method"), str) and isinstance(value.get("seed"), int)


def choose(member: Member, data_sha256: str, parents: Sequence[Parent], choice: str, run: str) -> Parent:
    """The parent of a member.

    Of the parents with its seed and world: the only one; or, of those that `choice` or else the member's own label
    names, the one that differs from the member in nothing that another of them agrees in.

    Args:
        data_sha256: of the member's data.
        choice: "", or LABEL, or LABEL,SETTING=VALUE.
        run: name of the earlier run, for messages.

    Raises:
        UserError: there is none, or there are several.
    """
    mine, label = hyper_parameters(member.entry.run), member.entry.label
    found = _alike(member, mine, data_sha256, parents, run)
    if choice:
        found = _chosen(found, choice)
    elif len(found) > 1:
        found = [parent for parent in found if parent.label == label] or found
        if found[0].label != label:
            labels = sorted({parent.label for parent in found})
            if len(labels) > 1:
                raise UserError(
                    f"--from: {label!r} could continue several methods of {run}; choose one, RUN:TASK:LABEL, where "
                    f"LABEL is one of {', '.join(labels)}"
                )
    others = [{name for name in _differing(parent.settings, mine)} for parent in found]
    nearest = [parent for parent, own in zip(found, others, strict=True) if all(own <= other for other in others)]
    if len(nearest) == 1:
        return nearest[0]
    names = sorted(set().union(*(_differing(one.settings, found[0].settings) for one in found)))
    values = {name: dict.fromkeys(str(one.settings.get(name)) for one in found) for name in names}
    listed = "; ".join(f"{name}: {', '.join(texts)}" for name, texts in values.items())
    example = f"{found[0].label},{names[0]}={next(iter(values[names[0]]))}" if names else ""
    raise UserError(
        f"--from: {label!r} could continue {len(found)} configurations of {found[0].label!r} in {run}, which differ in "
        f"{listed}; choose one, such as RUN:TASK:{example}"
    )


def _alike(
    member: Member, mine: Mapping[str, Any], data_sha256: str, parents: Sequence[Parent], run: str
) -> list[Parent]:
    """Those with the member's seed and world."""
    label = member.entry.label
    of_seed = [parent for parent in parents if parent.seed == member.seed]
    if not of_seed:
        seeds = ", ".join(map(str, sorted({parent.seed for parent in parents}))) or "none"
        raise UserError(f"--from: {run} has nothing with seed {member.seed}; its seeds: {seeds}")
    apart = [_world(_differing(parent.settings, mine)) for parent in of_seed]
    alike = [parent for parent, names in zip(of_seed, apart, strict=True) if not names]
    if not alike:
        nearest = min(range(len(apart)), key=lambda i: len(apart[i]))
        there = of_seed[nearest].settings
        names = ", ".join(f"{name} ({mine.get(name)} here, {there.get(name)} there)" for name in apart[nearest])
        raise UserError(f"--from: {label!r} has other tasks or another model than everything in {run}: {names}")
    # Its id is the address of its settings and of the data that it was trained on.
    same = [parent for parent in alike if _address(parent, data_sha256) == parent.address]
    if not same:
        raise UserError(
            f"--from: {run} was trained on other data than {mine['data']!r} is here (the sha256 differs); give the "
            f"same --data and --data-dir as for {run}"
        )
    return same


def _address(parent: Parent, data_sha256: str) -> str:
    try:
        return address_of({**parent.settings, "seed": parent.seed, "data": data_sha256, "label": parent.label})
    except ValueError:  # NaN, which no run is allowed
        return ""


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Settings that are not equal. Not the name of the data, which is known by its sha256."""
    missing = object()
    names = sorted({*one, *other} - {"data"})
    return [name for name in names if one.get(name, missing) != other.get(name, missing)]


def _world(names: Iterable[str]) -> list[str]:
    """Those of what a seed gives every method alike."""
    return [name for name in names if name.partition(".")[0] in ("validation", "stream", "scenario", "model")]


def _chosen(parents: Sequence[Parent], choice: str) -> list[Parent]:
    """Those that LABEL or LABEL,SETTING=VALUE names."""
    whole = [parent for parent in parents if parent.label == choice]
    if whole:
        return whole
    label, settings = choice, []
    while named := re.fullmatch(r"(.*),([\w.-]+)=([^,]*)", label):
        label, settings = named[1], [(named[2], named[3]), *settings]
    found = [parent for parent in parents if parent.label == label]
    if not found:
        raise unknown("label of --from:", label, {parent.label for parent in parents})
    for name, text in settings:
        if not any(name in parent.settings for parent in found):
            raise unknown("setting of --from:", name, {name for parent in found for name in parent.settings})
        held = sorted({str(parent.settings.get(name)) for parent in found})
        found = [parent for parent in found if _is(parent.settings.get(name), text)]
        if not found:
            raise UserError(f"--from: nothing of {label!r} has {name}={text}; there are {', '.join(held)}")
    return found


def _is(value: Any, text: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text
