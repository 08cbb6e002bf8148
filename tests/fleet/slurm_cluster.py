"""A SLURM cluster of two nodes, which are both this machine, for as long as a test runs."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
CompleteWait=0
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=short Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str | None:
    """Why there can be no cluster here."""
    for name in ("slurmctld", "slurmd", "sbatch", "munged", "mungekey"):
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            return f"{name} is not installed (Debian: slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "slurmd has to be started by root"


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Starts it, in a folder of its own, and sets SLURM_CONF; at the end nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # the name of a socket must be short
    before, started = dict(os.environ), []
    conf = folder / "slurm.conf"
    os.environ.update(SLURM_CONF=str(conf), PATH=f"{before['PATH']}:/usr/sbin")
    for name in [name for name in os.environ if name.startswith(("SBATCH_", "SLURM_JOB", "SLURM_ARRAY"))]:
        del os.environ[name]
    try:
        with contextlib.ExitStack() as open_:
            sockets = [open_.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in sockets]
        conf.write_text(CONF.format(host=socket.gethostname(), user=getpass.getuser(), folder=folder, ports=ports))
        (folder / "munge").mkdir(mode=0o755)
        munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        subprocess.run(["mungekey", "--create", f"--keyfile={folder}/munge/key"], check=True)
        words = [f"--{name}={folder}/munge/{file}" for name, file in munge.items()]
        for command in (
            ["munged", "--foreground", "--force", *words],
            ["slurmctld", "-D"],
            *(["slurmd", "-D", "-N", f"node{number}"] for number in (1, 2)),
        ):
            with (folder / "log").open("ab") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=log))
            until(lambda: (folder / "munge" / "socket").exists(), folder)
        until(lambda: tell("sinfo", "--noheader", "--format=%t %D") == "idle 2", folder)
        yield folder
    finally:
        with contextlib.suppress(Exception):
            tell("scancel", "--full", "--signal=KILL", "--user", getpass.getuser())
            tell("scancel", "--user", getpass.getuser())
            until(lambda: not tell("squeue", "--noheader"), folder, seconds=10)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _kill_others(conf)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def _kill_others(conf: Path) -> None:
    """Tasks, and what watches over each, are no children of the daemons; they have their environment."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(place.name) != os.getpid() and f"SLURM_CONF={conf}\0".encode() in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)


def tell(*command: str) -> str:
    """What a program of SLURM's says."""
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return said.stdout.strip() or said.stderr.strip()


def until(true: Callable[[], object], folder: Path | None = None, seconds: float = 60.0) -> None:
    """Waits for it, with what happens in the cluster in this folder."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            seen = "" if folder is None else tell("squeue", "--all") + (folder / "log").read_text()[-3000:]
            raise AssertionError(f"it took too long\n{seen}")
        time.sleep(0.1)
