"""Every run of these tests compiles the same few programs anew: they are kept, as they are at the command line."""

from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cl_jax import cache

FLAGS = (
    "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)  # fmt: skip


@pytest.fixture(scope="package", autouse=True)
def kept_programs() -> Iterator[None]:
    before = {name: jax.config.values[name] for name in FLAGS}
    cache.keep_compiled()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
