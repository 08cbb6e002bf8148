"""Open weights as what the members of a sweep start from: checked, known by their digest, read when they are needed."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cl_jax.base import Weights
from cl_jax.data import Data
from cl_jax.errors import UserError
from cl_jax.experiment import Decoder, Encoder, Run
from cl_jax.model import Params
from cl_jax.weights import wheel
from cl_jax.weights.config_json import CONFIG, read_config, sizes
from cl_jax.weights.llama import check_folder, load_weights
from cl_jax.weights.shards import files_of

FREE = ("remat", "compute")  # how it is computed, not what


def check_weights(run: Run, data: Data) -> None:
    """Whether the run's weights are there, whole, and of its model and its text; nothing large is read.

    Raises:
        UserError: they are not.
    """
    base = run.base
    if not isinstance(base, Weights):
        return
    if not base.path or not isinstance(base.sha256, (str, type(None))):
        raise UserError(
            f"base: was given {base!r:.200}; write Weights(path=<folder>), which may say what sha256 it expects, a text"
        )
    if data.text is None:
        raise UserError("base: Weights() are of a language model, and the data are images: use Pretrained(), or None")
    folder = base.folder
    check_folder(folder)
    decoder, num_tokens = read_config(folder)
    if not isinstance(run.model, Decoder):
        raise UserError(
            f"base: Weights() are of a Decoder(), and the model is {type(run.model).__name__}: {_advice(base)}"
        )
    if wrong := _differences(run.model, decoder):
        raise UserError(f"base: the model is not that of the weights in {folder}: {', '.join(wrong)}; {_advice(base)}")
    if num_tokens < data.text.num_tokens:
        raise UserError(
            f"base: the weights in {folder} know {num_tokens} tokens, and the text has {data.text.num_tokens}, of "
            f"tokenizer {data.text.tokenizer}: give the data their own by the option tokenizer=<path of its "
            f"tokenizer.json>"
        )


def with_digest(run: Run, known: dict[Path, str]) -> Run:
    """The run with the digests of the weights that it starts from, by which it is known.

    Args:
        known: digests by folder, which may be of gigabytes; those that are found are added.

    Raises:
        UserError: it expects others.
    """
    changes: dict[str, Any] = {}
    for name, part, folder in _open_parts(run):
        if folder not in known:
            known[folder] = digest(folder)
        if part.sha256 not in (None, known[folder]):
            raise UserError(
                f"{name}.sha256: was given {part.sha256}, and the files in {folder} have {known[folder]}: get the "
                f"weights that were meant, or leave sha256 out"
            )
        changes[name] = dataclasses.replace(part, sha256=known[folder])
    return dataclasses.replace(run, **changes)


def _open_parts(run: Run) -> Iterator[tuple[str, Any, Path]]:
    """Fields of a run that hold open weights, what they are and the folder of the files."""
    if isinstance(run.base, Weights):
        yield "base", run.base, run.base.folder
    if isinstance(run.model, Encoder) and run.model.weights is not None:
        yield "model", run.model, wheel.folder_of(Path(run.model.weights).expanduser())


def digest(folder: Path) -> str:
    """SHA-256 of the names and contents of config.json and of the files that hold the weights, in order of names."""
    whole = hashlib.sha256()
    for path in sorted([folder / CONFIG, *files_of(folder)]):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def params_of(base: Weights, num_tokens: int) -> Params:
    """The decoder's parameters, on the host, float32, of the first `num_tokens` tokens."""
    _, params, _ = load_weights(base.folder)
    params = jax.tree.map(np.asarray, params)
    params["embedding"]["embedding"] = params["embedding"]["embedding"][:num_tokens]
    if "head" in params:
        params["head"]["kernel"] = params["head"]["kernel"][:, :num_tokens]
    return params


def _differences(given: Decoder, wanted: Decoder) -> list[str]:
    one, other = _filled(given), _filled(wanted)
    return [f"{name} is {one[name]}, not {other[name]}" for name in one if one[name] != other[name]]


def _filled(decoder: Decoder) -> dict[str, Any]:
    told = {field.name: getattr(decoder, field.name) for field in dataclasses.fields(decoder)}
    return {name: value for name, value in (told | sizes(decoder)._asdict()).items() if name not in FREE}


def _advice(base: Weights) -> str:
    return f"write model=Weights(path={base.path!r}).decoder(), which has what they need"
