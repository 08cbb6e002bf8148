"""Which devices members are spread over: every local accelerator, or every core of a CPU as a device of its own.

Two programs side by side use two cores better than one program that splits its matrix products over both: between the
products XLA:CPU computes on one core. An MLP of 400 under SGD took 1.58 ms a member-step instead of 1.88, one of 256
at batch 10 took 0.10 instead of 0.30.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "members"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def every_core(least: int = 1) -> None:
    """Makes each core of the CPU a device, and at least so many devices, unless the user has said how many, or JAX has
    started.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if jax.config.values.get("jax_num_cpu_devices", -1) == -1:
        with contextlib.suppress(RuntimeError):  # raised once a backend has started
            jax.config.update("jax_num_cpu_devices", max(least, cores()))


def memory_bytes() -> int:
    """Memory of one device; of a CPU, each device's share of the machine's."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def guessed_rate() -> float:
    """Floating-point operations a second of one device, roughly and rather too few; of a CPU its share of the cores."""
    devices = jax.local_devices()
    return 2e10 * cores() / len(devices) if devices[0].platform == "cpu" else 5e12


def crowded(maps: Path = Path("/proc/self/maps"), most: Path = Path("/proc/sys/vm/max_map_count")) -> bool:
    """Whether compiled programs hold half of the memory maps that Linux gives a process, which dies without a word once
    it has all of them. XLA:CPU took 350 maps for each static group of the quickstart.
    """
    try:
        with maps.open() as lines:
            return 2 * sum(1 for _ in lines) > int(most.read_text())
    except OSError:  # another system
        return False


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """The devices in a row. Auto axes: under the explicit ones of `jax.make_mesh`, `data[index]` raises."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def by_member(mesh: Mesh) -> NamedSharding:
    """Leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def on_each(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())
