"""The processes that train one shard together: they find each other, and leave together.

    cl-jax worker ... --processes N --process K --coordinator HOST:PORT

Members are independent, so that processes have two things to tell each other: that one is told to go, has failed or is
lost, and that the shard is done. Process 0 listens, the others hold a connection to it; a process that dies is known by
the end of its connection at once, a machine that is gone by its silence.

Not by the coordination service of `jax.distributed`, in which each process stays alone (see `cl_jax.fleet.start`).
With jax 0.10.2 and orbax-checkpoint 0.12.8 a group of it was seen to lose what is trained: Orbax writes no host arrays
but those of process 0, also for a manager of another process alone, and commits empty steps without a word; and where a
process dies the service ends all others by SIGABRT before they can save, at once if it ran there.
"""

import contextlib
import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from cl_jax.errors import UserError
from cl_jax.fleet.start import Placed
from cl_jax.inside import Leaving

JOIN_SECONDS = 300.0  # for all processes to come
BEAT_SECONDS, SILENT_SECONDS = 1.0, 30.0  # between two lines; without any, the other process is gone
POLL_SECONDS, HELLO_SECONDS = 0.2, 5.0
LINE_BYTES = 4096  # no line that is understood is longer
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Group:
    """This process and the others of its shard.

    Args:
        place: number of this process, how many there are, and where process 0 listens: host and port.
        about: what all have to be of, such as the shard.
        told: whether this process was told to go.
        tell: tells this process to go.
    """

    def __init__(self, place: Placed, about: str, told: Callable[[], bool], tell: Callable[[], None]):
        (self.number, self.count, (host, port)), self.id = place, uuid.uuid4().hex[:12]
        self._told, self._tell, self._over = told, tell, False
        self._lines: dict[int, _Line] = {}  # to the others: of process 0 to all, of each other to process 0
        if self.count > 1:
            self._join(host, port, about)
            for other, line in self._lines.items():
                threading.Thread(target=self._hear, args=(other, line), daemon=True).start()
            threading.Thread(target=self._beat, daemon=True).start()

    def wait(self, until: Callable[[], bool]) -> None:
        """Returns once `until()`. Raises Leaving: this process was told to go before that."""
        while not until():
            if self._told():
                raise Leaving
            time.sleep(POLL_SECONDS)

    def leave(self, why: str) -> None:
        """Tells the others to go."""
        if not self._over:
            self._over = True
            self._send({"leave": f"process {self.number} {why}"})

    def end(self) -> None:
        """The shard is done: whoever ends from now on is not missed."""
        if not self._over:
            self._over = True
            if self.number == 0:
                self._send({"over": True})

    def close(self) -> None:
        """Ends the connections."""
        self._over = True
        for line in self._lines.values():
            line.close()

    def _send(self, message: dict[str, Any], but: int | None = None) -> None:
        for other, line in self._lines.items():
            if other != but:
                line.send(message)

    def _beat(self) -> None:
        due = 0.0
        while not self._over:
            if self._told():
                self.leave("was told to go")
                return
            if time.monotonic() >= due:
                self._send({})
                due = time.monotonic() + BEAT_SECONDS
            time.sleep(POLL_SECONDS)

    def _hear(self, other: int, line: "_Line") -> None:
        """What another process says, until either is through."""
        while True:
            try:
                message = line.receive()
            except (OSError, ValueError):
                message = {"leave": f"process {other} is lost"}
            if "over" in message:
                self._over = True
            if self._over:
                return
            if "leave" in message:
                self._over = True
                why = str(message["leave"])[:200]
                print(f"process {self.number} of {self.count}: {why}; leaving too", file=sys.stderr, flush=True)
                self._send(message, but=other)
                self._tell()
                return

    def _join(self, host: str, port: int, about: str) -> None:
        hello = {"process": self.number, "processes": self.count, "about": about}
        try:
            self._lines = self._gather(host, port, hello) if self.number == 0 else {0: self._enter(host, port, hello)}
        except TimeoutError as error:
            print(f"{error}; to be started again, all of them", file=sys.stderr, flush=True)
            raise Leaving from error

    def _gather(self, host: str, port: int, hello: dict[str, Any]) -> dict[int, "_Line"]:
        """Of process 0: the lines to all others, once all are there."""
        found: dict[int, _Line] = {}
        with contextlib.ExitStack() as opened, _listening(host, port) as listener:
            for _ in self._patiently(f"not all of {self.count} processes came to {host}:{port}"):
                with contextlib.suppress(TimeoutError):
                    line, theirs = _Line(listener.accept()[0]), {}
                    opened.callback(line.close)
                    with contextlib.suppress(OSError, ValueError):  # somebody else's
                        theirs = line.receive(HELLO_SECONDS)
                    found = {number: each for number, each in found.items() if each.alive()}  # else it comes again
                    fault = _unlike(hello, theirs, found)
                    mistaken = fault and theirs.get("about") == hello["about"]
                    for each in [line] * bool(fault) + [*found.values()] * bool(mistaken):
                        each.send({"refused": fault})
                    if mistaken:
                        raise UserError(fault)
                    if fault:
                        line.close()
                    else:
                        found[theirs["process"]] = line
                if len(found) == self.count - 1:
                    break
            for line in found.values():
                line.send({"group": self.id})
            opened.pop_all()
        return found

    def _enter(self, host: str, port: int, hello: dict[str, Any]) -> "_Line":
        """Of every other process: the line to process 0, once all are there."""
        for _ in self._patiently(f"process 0 was not found at {host}:{port}, or waited for others"):
            answer: dict[str, Any] = {}
            line: _Line | None = None
            with contextlib.ExitStack() as opened:
                with contextlib.suppress(OSError, ValueError):
                    line = _Line(socket.create_connection((host, port), timeout=POLL_SECONDS + 1))
                    opened.callback(line.close)
                    line.send(hello)
                    answer = self._answer(line)
                if "refused" in answer:
                    raise UserError(str(answer["refused"])[:400])
                if line is not None and "group" in answer:
                    self.id = str(answer["group"])[:40]
                    opened.pop_all()
                    return line
            time.sleep(POLL_SECONDS)  # it has not started yet, or is still the one of the group before
        raise AssertionError("it raises before")

    def _answer(self, line: "_Line") -> dict[str, Any]:
        for _ in self._patiently("not all processes came"):
            with contextlib.suppress(TimeoutError):
                return line.receive(POLL_SECONDS)
        raise AssertionError("it raises before")

    def _patiently(self, what: str) -> Iterator[None]:
        """Tries until it takes too long. Raises Leaving: told to go meanwhile; TimeoutError."""
        until = time.monotonic() + JOIN_SECONDS
        while time.monotonic() < until:
            if self._told():
                raise Leaving
            yield
        raise TimeoutError(f"{what} within {JOIN_SECONDS:.0f} s")


def _unlike(mine: dict[str, Any], theirs: dict[str, Any], there: dict[int, Any]) -> str:
    """What is wrong with a process that comes to process 0, in words."""
    number, count = theirs.get("process"), mine["processes"]
    if theirs.get("about") != mine["about"]:
        return f"--coordinator: process 0 there trains {mine['about']}, not {theirs.get('about')}"
    if theirs.get("processes") != count:
        return f"--processes: process 0 was given {count}, process {number} {theirs.get('processes')}; give the same"
    if number == 0 or number in there:
        return f"--process: two were given {number}; give each its own number, 0 to {count - 1}"
    return "" if isinstance(number, int) and 0 < number < count else "not understood"


def _listening(host: str, port: int) -> socket.socket:
    """Raises UserError: the port is taken, or no port of this machine."""
    local = host in LOOPBACK
    try:
        if not local and socket.has_dualstack_ipv6():
            made = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            kind = socket.AF_INET6 if host == "::1" else socket.AF_INET
            made = socket.create_server((host if local else "", port), family=kind)
    except (OSError, OverflowError) as error:
        raise UserError(f"--coordinator: process 0 cannot listen at port {port} ({error}); give a free one") from error
    made.settimeout(POLL_SECONDS)
    return made


class _Line:
    """Messages over a connection, a line of JSON each; a line without any is a sign of life."""

    def __init__(self, connection: socket.socket):
        self._connection, self._rest, self._lock = connection, b"", threading.Lock()
        connection.settimeout(SILENT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: dict[str, Any]) -> None:
        """What is sent to a process that is gone is lost; whoever receives from it knows."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """The next message. Raises OSError: the other end is gone or silent; ValueError: it says what is no message."""
        self._connection.settimeout(seconds or SILENT_SECONDS)
        while b"\n" not in self._rest:
            more = self._connection.recv(LINE_BYTES)
            if not more or len(self._rest) > LINE_BYTES:
                raise ConnectionError("the connection has ended")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            message = json.loads(line)
        except RecursionError as error:
            raise ValueError("not a message") from error
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message

    def alive(self) -> bool:
        """Whether the other end has not closed it, as far as it is known."""
        self._connection.settimeout(0)
        try:
            return self._connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self._connection.settimeout(SILENT_SECONDS)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # whoever waits for a message gets none
        self._connection.close()
