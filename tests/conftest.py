"""Strict numerics for every test: several CPU devices, no silent rank or dtype promotion."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Programs started by tests keep what they compile, and share it, but not with the user's own runs.
if "CL_JAX_CACHE" not in os.environ:
    os.environ["CL_JAX_CACHE"] = tempfile.mkdtemp(prefix="cl_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["CL_JAX_CACHE"], ignore_errors=True)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# Most of the suite's time is compiling. What starts a process of its own (kill -9, signals) compiles as users do.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Tables of all methods and whole runs: what the fast subset leaves out beside the slow ones.
THOROUGH = (
    "adapters", "diagnostics", "fleet", "methods", "test_fork", "test_halving", "test_inside", "test_laws",
    "test_origin", "test_packing", "test_layer_gradients", "test_per_task", "test_recent", "test_streaming",
    "test_sweep", "test_trunk", "test_waves", "test_bad_files", "test_benchmark",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0].removesuffix(".py").startswith(THOROUGH):
            item.add_marker(pytest.mark.thorough)
