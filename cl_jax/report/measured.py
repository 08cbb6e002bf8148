"""The diagnostics of one stream, as its figures need them: means over seeds, by method."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow
from pyarrow import compute

from cl_jax.report.configurations import Configuration
from cl_jax.report.panels import Spans, shown, spans
from cl_jax.report.streams import Stream


class Measured(NamedTuple):
    """Rows of diagnostics.parquet of one stream, as columns [n]; of every member, shown or not."""

    stream: Stream
    member: np.ndarray  # object
    quantity: np.ndarray  # object
    layer: np.ndarray  # object, "": the whole network
    depth: np.ndarray  # int, -1: the whole network
    after: np.ndarray  # int
    task: np.ndarray  # int, 0: of no task
    at: np.ndarray  # float, NaN: none
    value: np.ndarray  # float

    @property
    def apart(self) -> np.ndarray:
        """int [n]: how many tasks were trained since the row's own."""
        return self.after - self.task

    @property
    def whole(self) -> np.ndarray:
        """bool [n]: of the whole network."""
        return self.depth < 0

    def has(self, quantity: str) -> bool:
        return bool((self.quantity == quantity).any())

    def layers(self, quantity: str) -> list[str]:
        """The layers of a quantity, from input to output."""
        mine = (self.quantity == quantity) & ~self.whole
        places = dict(zip(self.layer[mine].tolist(), self.depth[mine].tolist(), strict=True))
        return sorted(places, key=lambda name: (places[name], name))

    def over(
        self, quantity: str, x: np.ndarray, where: np.ndarray | None = None, *, unit: float = 1.0
    ) -> tuple[np.ndarray, dict[str, Spans]]:
        """A quantity over x: where on the axis [k], and of each method that has any its mean and spread over seeds [k].

        What several rows of a member say of one place is averaged first. Of a method, the configuration that it is
        shown by.

        Args:
            x: float or int [n], each row's place.
            where: bool [n], the rows to take; None: all.
            unit: what 1 is called, 100 for percent.
        """
        mine = np.flatnonzero(
            (self.quantity == quantity) & np.isfinite(self.value) & (True if where is None else where)
        )
        member, x, value = self.member[mine], x[mine], self.value[mine]
        positions, found = np.unique(x), {}
        for method, configuration in self.stream.chosen.items():
            rows = [member == name for name in _members(configuration)]
            means = np.stack([_means(x[each], value[each], positions) for each in rows])
            if np.isfinite(means).any():
                found[method] = spans(means * (unit / 100))
        return positions, found


def _means(x: np.ndarray, value: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Of the values at each position; NaN where there is none."""
    at = np.searchsorted(positions, x)
    count = np.bincount(at, minlength=len(positions))
    sums = np.bincount(at, value, minlength=len(positions))
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def _members(configuration: Configuration) -> list[str]:
    """Those that a figure shows."""
    wanted = shown(configuration)
    return [name for name, yes in zip(configuration.members, wanted, strict=True) if yes] or list(configuration.members)


def read(table: pyarrow.Table | None, streams: Sequence[Stream]) -> list[Measured | None]:
    """Of each stream what was measured; None: nothing."""
    if table is None:
        return [None] * len(streams)
    return [_read(table.filter(compute.field("stream") == stream.label), stream) for stream in streams]


def _read(table: pyarrow.Table, stream: Stream) -> Measured | None:
    if not table.num_rows:
        return None

    def words(name: str) -> np.ndarray:
        return np.array(table[name].fill_null("").to_pylist(), object)

    def whole_numbers(name: str, absent: int) -> np.ndarray:
        return table[name].fill_null(absent).to_numpy().astype(np.int64)

    return Measured(
        stream=stream,
        member=words("member"),
        quantity=words("quantity"),
        layer=words("layer"),
        depth=whole_numbers("depth", -1),
        after=whole_numbers("after_task", 0),
        task=whole_numbers("task", 0),
        at=table["at"].to_numpy().astype(np.float64),
        value=table["value"].to_numpy().astype(np.float64),
    )
