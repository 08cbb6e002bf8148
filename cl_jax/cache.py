"""What is kept between runs in the user's cache folder: compiled programs, and measured widths."""

import contextlib
import os
from pathlib import Path

import jax

LARGEST_BYTES = 2**31  # of compiled programs


def cache_folder() -> Path:
    """`CL_JAX_CACHE`, or `cl_jax` in `XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("CL_JAX_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cl_jax"


def keep_compiled() -> None:
    """Compiled programs are kept and found again, unless the user has told JAX where to keep them."""
    if jax.config.values.get("jax_compilation_cache_dir") is not None:
        return
    folder = cache_folder() / "compiled"
    forget_oldest(folder, LARGEST_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def forget_oldest(folder: Path, largest: int) -> None:
    """Removes the files written first until the others take at most `largest` bytes.

    JAX's own limit would need a package of its own, and a lock file a program.
    """
    found = []
    with contextlib.suppress(OSError):
        found = [(file.stat().st_mtime, file.stat().st_size, file) for file in folder.iterdir() if file.is_file()]
    held = sum(size for _, size, _ in found)
    for _, size, file in sorted(found, key=lambda item: item[:2]):
        if held <= largest:
            return
        with contextlib.suppress(OSError):  # another process may have removed it
            file.unlink()
        held -= size
