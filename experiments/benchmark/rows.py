"""What was measured, one row a number: median and quartiles over the rounds, and what exactly was timed."""

import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cl_jax.results import write_atomically
from experiments.benchmark.measure import Spread

TABLE = "benchmark.parquet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number. `None`: does not apply."""

    section: str  # which part of the benchmark
    metric: str  # what the number is, with its unit
    value: float  # median over the rounds
    low: float  # lower quartile
    high: float  # upper quartile
    rounds: int
    who: str = "cl_jax"  # what was timed: cl_jax, PyTorch, by hand, lax.conv, ...
    model: str = ""
    batch_size: int | None = None
    optimizer: str = ""
    method: str = ""  # of continual learning; a kind of Fisher; a program
    tasks: int | None = None
    members: int | None = None  # trained in all
    devices: int | None = None  # that the members are spread over
    width: int | None = None  # members side by side on one device


def row(section: str, metric: str, measured: Spread | float, **about: Any) -> Row:
    """A row of a spread, or of a number that is exact."""
    found = measured if isinstance(measured, Spread) else Spread(measured, measured, measured, 1)
    return Row(section=section, metric=metric, **found._asdict(), **about)


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows whose fields are as wanted."""
    return [one for one in rows if all(getattr(one, name) == value for name, value in wanted.items())]


def write_table(folder: Path, rows: Sequence[Row]) -> None:
    kinds = {"float": pa.float64(), "int": pa.int64(), "int | None": pa.int64(), "str": pa.string()}
    schema = pa.schema([(field.name, kinds[_name(field.type)]) for field in dataclasses.fields(Row)])
    table = pa.Table.from_pylist([dataclasses.asdict(one) for one in rows], schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(folder / TABLE, buffer.getvalue())


def read_table(folder: Path) -> list[Row]:
    return [Row(**one) for one in pq.read_table(folder / TABLE).to_pylist()]


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
