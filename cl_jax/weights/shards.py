"""The tensors of a folder of weights, whether they lie in one safetensors file or in several with an index."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from cl_jax.errors import UserError
from cl_jax.weights import safetensors, strict_json
from cl_jax.weights.strict_json import shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SUFFIX = ".safetensors"


def files_of(folder: Path) -> list[Path]:
    """The files that `read_folder` reads. Raises UserError: as it does of the folder and the index."""
    _check_folder(folder)
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    index = folder / INDEX
    return [index, *(_shard(folder, name, index) for name in sorted(set(_weight_map(index).values())))]


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor by name: read-only views of the mapped files, see `cl_jax.weights.safetensors.read`.

    `model.safetensors` is read where it is there; else the files that `model.safetensors.index.json` names, an object
    whose `weight_map` tells of each tensor the file that holds it. Those are files of the folder itself: neither a path
    nor a link leads out of it. Index and files have to name the same tensors.

    Raises:
        UserError: neither is there, a file is not what it should be, or they do not belong together.
    """
    _check_folder(folder)
    if (folder / SINGLE).exists():
        return safetensors.read(folder / SINGLE).tensors
    index = folder / INDEX
    weight_map = _weight_map(index)
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(weight_map.values())):
        for tensor, array in safetensors.read(_shard(folder, name, index)).tensors.items():
            if weight_map.get(tensor) != name:
                told = f"puts it into {shown(weight_map[tensor])}" if tensor in weight_map else "does not name it"
                raise UserError(f"{folder / name} holds tensor {shown(tensor)}, but {INDEX} beside it {told}.")
            tensors[tensor] = array
    if missing := sorted(set(weight_map) - set(tensors)):
        raise UserError(
            f"{index} names {len(missing)} tensors that are not in the files it names for them, such as "
            f"{shown(missing[0])} in {weight_map[missing[0]]}; download or copy the folder again."
        )
    return tensors


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is {'not a folder' if folder.exists() else 'not there'}; expected one with {SINGLE}."
        )
    if not (folder / SINGLE).exists() and not (folder / INDEX).exists():
        held = sorted(path.name for path in folder.iterdir())[:8]
        raise UserError(
            f"{folder} has neither {SINGLE} nor {INDEX}; it holds {', '.join(held) or 'nothing'}. Weights in another "
            "format have to be converted to safetensors first, by what made them."
        )


def _weight_map(index: Path) -> dict[str, str]:
    held: Any = strict_json.read(index).get("weight_map")
    if not isinstance(held, dict) or not held or not all(isinstance(name, str) for name in held.values()):
        raise UserError(f"{index} should have a weight_map, an object of file names by tensor, not {shown(held)}.")
    return held


def _shard(folder: Path, name: str, index: Path) -> Path:
    # Both kinds of slash, and a drive's colon, whatever the system is.
    plain = name.isprintable() and len(name) < 200 and not any(mark in name for mark in "/\\:")
    if not plain or not name.endswith(_SUFFIX):
        raise UserError(f"{index} names the file {shown(name)}; allowed are plain names that end in {_SUFFIX}.")
    path = folder / name
    real = os.path.realpath(path)
    if os.path.dirname(real) != os.path.realpath(folder):
        raise UserError(f"{path} is a link to {real}, outside of the folder; copy the file itself there (cp -L).")
    return path
