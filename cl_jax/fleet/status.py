"""`cl-jax status OUT`: where the shards of a sweep stand, in lines that also read well in a log."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cl_jax.estimate import of_seconds
from cl_jax.fleet import sweep_file
from cl_jax.fleet.heartbeat import DONE, FAILED, PREEMPTED, RUNNING, Beat, beats_in
from cl_jax.fleet.sweep_file import Piece
from cl_jax.job import SWEEP

STALE, WAITING = "stale", "waiting"
STATES = (DONE, RUNNING, STALE, FAILED, WAITING)
TOLD = 20  # shards of a state that are told one by one


class Standing(NamedTuple):
    """Of one shard."""

    number: int
    piece: Piece
    state: str  # one of STATES
    beats: list[Beat]  # of its attempts

    @property
    def last(self) -> Beat:
        """Of the processes that tried last, the one to tell of."""
        tried = tries(self.beats)[-1]
        return next((beat for beat in reversed(tried) if beat.state == self.state), tried[-1])

    @property
    def running(self) -> list[Beat]:
        return [beat for beat in self.beats if beat.state == RUNNING and not beat.stale]

    @property
    def share(self) -> float:
        """Of its steps that are behind it, as far as it is known: what the processes of a try have done together."""
        if self.state == DONE:
            return 1.0
        return max((_share(tried, self.piece.member_steps) for tried in tries(self.beats)), default=0.0)


def tries(beats: list[Beat]) -> list[list[Beat]]:
    """The beats of processes that train the shard together, each try in the order in which its last began."""
    found: dict[str, list[Beat]] = {}
    for beat in beats:
        name = beat.group or beat.attempt
        found[name] = [*found.pop(name, []), beat]
    return list(found.values())


def _share(tried: list[Beat], member_steps: int) -> float:
    """A process that has not said yet how much it has to do counts with what is left of the shard."""
    total = max(sum(beat.total for beat in tried), member_steps if len(tried) < tried[0].processes else 1)
    return min(1.0, sum(beat.done for beat in tried) / total)


def standings(out: Path) -> list[Standing]:
    """Of every shard. Raises UserError: no sweep is there."""
    found = []
    for number, piece in enumerate(sweep_file.read(out / SWEEP).shards):
        folder = out / "shards" / piece.folder
        beats = beats_in(folder)
        found.append(Standing(number, piece, _state(folder, beats), beats))
    return found


def _state(folder: Path, beats: list[Beat]) -> str:
    if (folder / "DONE.json").is_file():
        return DONE
    if any(beat.state == RUNNING and not beat.stale for beat in beats):
        return RUNNING
    if not beats:
        return WAITING
    last = {beat.state for beat in tries(beats)[-1]}  # one that failed has told the others to go
    return FAILED if FAILED in last else STALE if RUNNING in last else WAITING


def lines(found: list[Standing], now: float) -> Iterator[str]:
    """What there is to say. `now`: seconds since 1970."""
    of = {state: [each for each in found if each.state == state] for state in STATES}
    preemptions = sum(beat.state == PREEMPTED for each in found for beat in each.beats)
    yield (
        f"{len(found)} shards: "
        + ", ".join(f"{len(of[state])} {state}" for state in STATES)
        + (f"; {preemptions} pre-emptions")
    )
    total = sum(each.piece.member_steps for each in found)
    behind = sum(each.share * each.piece.member_steps for each in found)
    running = [beat for each in of[RUNNING] for beat in each.running]
    rate = sum(beat.trained / max(beat.beat - beat.started, 1.0) for beat in running)
    left = f"; about {of_seconds((total - behind) / rate)} left at {rate:,.0f} member-steps/s" if rate > 0 else ""
    yield f"{100 * behind / total:.0f}% of {total:,} member-steps{left}"
    for each in _few(of[RUNNING]):
        beat = each.running[-1]
        speed = sum(beat.trained / max(beat.beat - beat.started, 1.0) for beat in each.running)
        yield f"{_name(each)} running: {beat.doing}, {100 * each.share:.0f}%, {speed:,.0f} steps/s, on {_where(beat)}"
    for each in _few(of[STALE]):
        beat = next(beat for beat in tries(each.beats)[-1] if beat.state == RUNNING)
        silent = of_seconds(now - beat.beat)
        yield f"{_name(each)} stale: not heard of for {silent}, was on {_where(beat)}; start it again"
    for each in _few(of[FAILED]):
        error = (each.last.error or "").strip().splitlines()
        advice = "mend it, then start it again" if each.last.exit_code == 2 else "see its log"
        yield f"{_name(each)} failed ({each.last.exit_code}): {error[-1] if error else ''}; {advice}"
    for state in (RUNNING, STALE, FAILED):
        if len(of[state]) > TOLD:
            yield f"and {len(of[state]) - TOLD} more {state}"


def _few(found: list[Standing]) -> list[Standing]:
    return found[:TOLD]


def _name(each: Standing) -> str:
    return f"shard {each.number} ({each.piece.folder})"


def _where(beat: Beat) -> str:
    return f"{beat.host}, process {beat.pid}"


def show(out: Path, *, watch: bool = False, seconds: float = 10.0, refresh: Callable[[], None] = lambda: None) -> None:
    """Prints the lines; `watch`: again and again, until every shard is done. `refresh`: called before each time."""
    while True:
        refresh()
        found = standings(out)
        print(time.strftime("%Y-%m-%d %H:%M:%S"))
        print("\n".join(lines(found, time.time())), flush=True)
        if not watch or all(each.state == DONE for each in found):
            return
        time.sleep(seconds)
