"""What the members of a shard have measured and kept so far: on the host, filled in at every boundary."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax.compiled import Wave
from cl_jax.diagnostics.columns import Columns, layout
from cl_jax.diagnostics.cost import SECONDS
from cl_jax.waves import Crew, Host, muster, on_devices, to_host


class Notes(NamedTuple):
    """The diagnostics of a shard, host arrays."""

    kept: Host  # what was evaluated at every boundary, [members, T + 1, ...]; (): no diagnostic asks for it
    since: np.ndarray  # int32 [members], the first boundary in it, the same for all
    values: np.ndarray  # float32 [members, T + 1, N], NaN where nothing is measured
    columns: Columns  # what the N are

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of them."""
        return {"kept": self.kept, "since": self.since, "values": self.values}

    def copy(self) -> "Notes":
        """One that may be written to: what is being saved must not change."""
        kept, since, values = jax.tree.map(np.copy, self[:3])
        return Notes(kept, since, values, self.columns)


def blank(crew: Crew, since: int = 0) -> Notes | None:
    """Before anything is measured; None where the members are asked for no diagnostics."""
    run, count = crew.members[0].entry.run, len(crew.members)
    if not run.diagnostics:
        return None
    held = layout(run, crew.data)
    kept = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape), leaf.dtype), held.kept)
    values = np.full((count, run.stream.num_tasks + 1, len(held.columns.task)), np.nan, np.float32)
    return Notes(kept, np.full(count, since, np.int32), values, held.columns)


def restored(blank: Notes, saved: Any) -> Notes:
    """From what a checkpoint held."""
    kept, since, values = (jax.tree.map(np.asarray, saved[name]) for name in blank.saved)
    return Notes(kept, since, values, blank.columns)


def write(
    crew: Crew, wave: Wave, notes: Notes | None, state: Any, shown: Any, after: int, seconds: float = math.nan
) -> None:
    """Measures a wave at a boundary, into the notes.

    Args:
        state: as the boundary left it; it stays good.
        shown: what was evaluated there; None: the state is that of a start, or of a run that is continued.
        seconds: that the task took a member; NaN: not known.
    """
    if notes is None:
        return
    if shown is None:
        shown = crew.programs.shown(wave, state, crew.data, max(after - 1, 0))
    if jax.tree.leaves(notes.kept):
        for every, now in zip(jax.tree.leaves(notes.kept), jax.tree.leaves(to_host(wave, shown)), strict=True):
            every[wave.places, after] = now
    held = (on_devices(crew, wave, notes.kept), shown, state)
    values = crew.programs.diagnose(wave, held, crew.data, after, int(notes.since[0]))
    measured = to_host(wave, values)
    notes.values[wave.places, after] = np.where(notes.columns.quantity == SECONDS, np.float32(seconds), measured)


def begun(crew: Crew, state: Host, after: int) -> Notes | None:
    """The notes of members that begin at a boundary of an earlier run, of which alone they know the weights."""
    notes = blank(crew, after)
    if notes is not None:
        for wave in muster(crew, np.flatnonzero(~state.diverged)):
            with crew.programs.busy:
                write(crew, wave, notes, on_devices(crew, wave, state), None, after)
    return notes
