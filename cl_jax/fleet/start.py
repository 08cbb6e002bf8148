"""Starts JAX in a worker, and hears when it is told to go."""

import re
import signal
import socket
import threading
from types import FrameType

from cl_jax.config import LARGEST_INT
from cl_jax.errors import UserError

PREEMPTED = 75  # exit code: told to go, everything saved, to be started again


class Notice:
    """Whether this process was told to leave. SIGTERM only sets it: what is running ends in order."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self) -> bool:
        return self._told

    def listen(self) -> None:
        """From now on. To be called again where somebody else may have asked for the signal meanwhile."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._tell)

    def tell(self) -> None:
        """As the signal does."""
        self._told = True

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True


AUTO = "auto"
Placed = tuple[int, int, tuple[str, int]]  # number of a process, how many there are, and where process 0 listens
ALONE: Placed = (0, 1, ("localhost", 0))


def placed(processes: str | None, process: int | None, coordinator: str | None) -> Placed:
    """Which process this is, and of how many, by the options of a worker.

    Raises:
        UserError: they do not fit each other, or `auto` finds no cluster.
    """
    if processes == AUTO:
        if process is not None or coordinator is not None:
            raise UserError("--processes auto: finds --process and --coordinator itself; leave them out")
        return _detected()
    if processes is None:
        if process is not None or coordinator is not None:
            name = "--process" if process is not None else "--coordinator"
            raise UserError(f"{name}: is for several processes a shard; give --processes too, or none of them")
        return ALONE
    if not re.fullmatch(r"[0-9]{1,9}", processes) or not 1 <= int(processes) <= LARGEST_INT:
        raise UserError(f"--processes: was given {processes!r}; give a number from 1, or {AUTO}")
    count = int(processes)
    if process is None:
        raise UserError(f"--process: give the number of this process, 0 to {count - 1}, or --processes {AUTO}")
    if not 0 <= process < count:
        raise UserError(f"--process: was given {process}; with --processes {count} allowed are 0 to {count - 1}")
    if count == 1:
        return ALONE
    if coordinator is None:
        raise UserError("--coordinator: give HOST:PORT of process 0, the same to all processes, such as node1:9876")
    return process, count, _address(coordinator)


def _address(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"\[?([^\s\[\]/]{1,253}?)\]?:([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise UserError(f"--coordinator: was given {text!r}; give HOST:PORT of process 0, such as node1:9876")
    return found[1], int(found[2])


def _detected() -> Placed:
    """What `jax.distributed.initialize` would find: srun of SLURM, TPU slices of GKE, Open MPI's mpirun."""
    from jax._src.clusters import ClusterEnv  # as public as it is: JAX only offers it together with its service

    address, count, number, _ = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)
    if address is None or count is None or number is None:
        raise UserError(
            f"--processes {AUTO}: no cluster is found here (srun of SLURM, a TPU slice of GKE, Open MPI); give "
            f"--processes N --process K --coordinator HOST:PORT"
        )
    return (number, count, _address(address)) if count > 1 else ALONE


def distributed() -> None:
    """Starts JAX's coordination service for this process alone. Before anything is computed.

    Orbax's saves signal each other through it. Where several processes train a shard each has one of its own all the
    same; why is said in `cl_jax.fleet.group`.
    """
    import jax

    # The service would take SIGTERM for itself, which a single process hears sooner on its own.
    jax.config.update("jax_enable_preemption_service", False)
    for attempt in range(3):
        try:
            jax.distributed.initialize(
                coordinator_address=f"127.0.0.1:{_free_port()}", num_processes=1, process_id=0,
                cluster_detection_method="deactivate",
                heartbeat_timeout_seconds=3600,  # a machine that was suspended goes on; there is nobody else to miss it
                shutdown_timeout_seconds=10,
            )  # fmt: skip
            return
        except RuntimeError:  # another process took the port in between
            if attempt == 2:
                raise


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
