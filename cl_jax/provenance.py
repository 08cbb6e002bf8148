"""What a result depends on besides its configuration: code, versions, device, flags."""

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("cl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
FLAGS = ("XLA_FLAGS", "JAX_PLATFORMS")


@functools.cache
def code_version() -> str:
    """`0.1.0`, and the commit where the package runs from a checkout, with `+` for one with changes."""
    version, checkout = metadata.version("cl_jax"), Path(__file__).parent.parent
    if not (checkout / ".git").exists():
        return version
    git = ["git", "-C", str(checkout)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} {head.stdout.strip()}{'+' * bool(changes.stdout.strip())}"


def environment() -> dict[str, Any]:
    """For environment.json."""
    device = jax.local_devices()[0]
    return {
        "code": code_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "command": " ".join(["cl-jax", *sys.argv[1:]]),
    }
