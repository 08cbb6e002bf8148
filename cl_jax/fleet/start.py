"""Starts JAX in a worker, and hears when it is told to go."""

import signal
import socket
import threading
from types import FrameType

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

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True


def distributed() -> None:
    """Joins the processes of this worker, of which there is one so far. Before anything is computed.

    One process too: what waits for all of them is then the same code with any number, and is used every day.
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
