"""Strict numerics for every test: several CPU devices, no silent rank or dtype promotion."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Programs started by tests keep what they compile, and share it, but not with the user's own runs.
if "CL_JAX_CACHE" not in os.environ:
    os.environ["CL_JAX_CACHE"] = tempfile.mkdtemp(prefix="cl_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["CL_JAX_CACHE"], ignore_errors=True)

import jax

jax.config.update("jax_num_cpu_devices", 8)
# Most of the suite's time is compiling. What starts a process of its own (kill -9, signals) compiles as users do.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
