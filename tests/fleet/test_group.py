"""Processes that find each other and leave together, here as threads; and what is wrong with what a worker is given."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cl_jax.errors import UserError
from cl_jax.fleet import group, start
from cl_jax.fleet.group import Group
from cl_jax.inside import Leaving
from tests.fleet.sweeps import failed


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Process:
    """One that joins in a thread."""

    def __init__(self, pool: ThreadPoolExecutor, port: int, number: int, count: int, about: str = "shard 0"):
        self.told = threading.Event()
        place = (number, count, ("127.0.0.1", port))
        self.joined: Future[Group] = pool.submit(lambda: Group(place, about, self.told.is_set, self.told.set))

    @property
    def group(self) -> Group:
        return self.joined.result(20)


@pytest.fixture
def three() -> Any:
    with ThreadPoolExecutor(3) as pool:
        port = free_port()
        made = [Process(pool, port, number, 3) for number in (2, 1, 0)][::-1]
        assert [each.group.number for each in made] == [0, 1, 2]
        yield made
        for each in made:
            each.group.close()


def soon(what: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not what() and time.monotonic() < until:
        time.sleep(0.02)
    return what()


def test_all_are_of_one_group(three: list[Process]) -> None:
    assert len({each.group.id for each in three}) == 1
    assert not any(each.told.is_set() for each in three)


@pytest.mark.parametrize("number", range(3))
def test_whoever_is_told_tells_the_others(
    number: int, three: list[Process], capsys: pytest.CaptureFixture[str]
) -> None:
    three[number].told.set()
    assert soon(lambda: all(each.told.is_set() for each in three))
    assert f"process {number} was told to go; leaving too" in capsys.readouterr().err


@pytest.mark.parametrize("number", range(3))
def test_a_process_that_is_gone(number: int, three: list[Process], capsys: pytest.CaptureFixture[str]) -> None:
    """As a killed one is: its connections end, and nothing is said."""
    three[number].group.close()
    others = [each for each in three if each is not three[number]]
    assert soon(lambda: all(each.told.is_set() for each in others))
    assert f"process {number} is lost; leaving too" in capsys.readouterr().err


def test_a_machine_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "SILENT_SECONDS", 1.0)
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        process = Process(pool, port, 0, 2)
        assert soon(lambda: listens(port))
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(b'{"process": 1, "processes": 2, "about": "shard 0"}\n')
            assert process.group.count == 2 and not process.told.is_set()
            assert soon(process.told.is_set)
            process.group.close()


def test_when_it_is_over_nobody_is_missed(three: list[Process]) -> None:
    three[0].group.end()
    assert soon(lambda: all(each.group._over for each in three))  # pyright: ignore[reportPrivateUsage]
    three[0].group.close()
    time.sleep(0.5)
    assert not any(each.told.is_set() for each in three)


def test_waiting_ends_when_told(three: list[Process]) -> None:
    three[1].group.wait(lambda: True)
    three[2].told.set()
    with pytest.raises(Leaving):
        three[0].group.wait(lambda: False)


@pytest.mark.parametrize(
    ("number", "count", "about", "message"),
    [
        (1, 3, "shard 0", "--processes: process 0 was given 2, process 1 3; give the same"),
        (0, 2, "shard 0", "--coordinator: process 0 cannot listen at port"),
        (1, 2, "shard 1", "--coordinator: process 0 there trains shard 0, not shard 1"),
    ],
)
def test_processes_that_do_not_fit(number: int, count: int, about: str, message: str) -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = Process(pool, port, 0, 2)
        assert soon(lambda: listens(port))
        other = Process(pool, port, number, count, about)
        with pytest.raises(UserError, match=message):
            other.joined.result(20)
        first.told.set()
        with pytest.raises((Leaving, UserError)):
            first.joined.result(20)


def listens(port: int) -> bool:
    """It is a stranger's connection too, which has to be survived."""
    with socket.socket() as line:
        if line.connect_ex(("127.0.0.1", port)):
            return False
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        return True


def test_two_of_one_number() -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        made = [Process(pool, port, 0, 3), Process(pool, port, 1, 3), Process(pool, port, 1, 3)]
        with pytest.raises(UserError, match="--process: two were given 1; give each its own number, 0 to 2"):
            made[0].joined.result(20)
        for each in made[1:]:
            each.told.set()
            with pytest.raises((Leaving, UserError)):
                each.joined.result(20)


def test_nobody_else_comes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(group, "JOIN_SECONDS", 1.0)
    for number in (0, 1):
        with pytest.raises(Leaving):
            Group((number, 2, ("127.0.0.1", free_port())), "shard 0", lambda: False, lambda: None)
    told = capsys.readouterr().err
    assert "not all of 2 processes came to 127.0.0.1" in told and "process 0 was not found at 127.0.0.1" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--processes 2 --process 2 --coordinator a:1",
            "--process: was given 2; with --processes 2 allowed are 0 to 1",
        ),
        ("--processes 2 --coordinator a:1", "--process: give the number of this process, 0 to 1"),
        ("--processes 2 --process 0", "--coordinator: give HOST:PORT of process 0"),
        ("--processes 2 --process 0 --coordinator a", "--coordinator: was given 'a'; give HOST:PORT"),
        ("--processes 2 --process 0 --coordinator a:70000", "--coordinator: was given 'a:70000'; give HOST:PORT"),
        ("--processes 0 --process 0", "--processes: was given '0'; give a number from 1, or auto"),
        ("--processes many", "--processes: was given 'many'"),
        ("--process 1", "--process: is for several processes a shard; give --processes too"),
        ("--coordinator a:1", "--coordinator: is for several processes a shard"),
        ("--processes auto --process 1", "--processes auto: finds --process and --coordinator itself"),
        ("--processes auto", "--processes auto: no cluster is found here"),
        ("--processes 2 --process one", "--process: expected a whole number"),
    ],
)
def test_options_that_do_not_fit(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in failed(capsys, "worker", "--sweep", tmp_path / "s.json", "--shard", 0, *words.split())


def test_what_slurm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"JOB_ID": "7", "STEP_NODELIST": "node[3-5]", "NTASKS": "3", "PROCID": "2", "LOCALID": "0"}
    for name, value in about.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert start.placed("auto", None, None) == (2, 3, ("node3", 61447))
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert start.placed("auto", None, None) == start.ALONE
    assert start.placed("1", 0, None) == start.placed(None, None, None) == start.ALONE
    assert start.placed("2", 1, "[::1]:80") == (1, 2, ("::1", 80))
