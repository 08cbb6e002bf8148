"""The results table as configurations: members that differ in their seed only."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import compute

from cl_jax import metrics
from cl_jax.errors import UserError
from cl_jax.report.kinds import ACCURACY, of_table
from cl_jax.report.measure import Measure
from cl_jax.wording import TASKS, Wording

BASELINE = "finetune"  # label of the lower bound
UPPER_BOUND = "joint"  # label of training on all tasks at once
COLUMNS = (
    "member",
    "method",
    "stream",
    "seed",
    "diverged",
    "stopped",
    "after_task",
    "task",
    "split",
    "metric",
    "value",
)


class Varied(tuple):
    """The values of a hyper-parameter that is not the same for every task and seed, numbers in order."""


class Configuration(NamedTuple):
    """Members equal in everything but their seed, sorted by seed; and what a selection protocol made of them."""

    stream: str
    method: str
    hyper_parameters: dict[str, Any]  # every "config." column but the seed, without that prefix
    members: list[str]  # [S]
    seeds: np.ndarray  # int [S]
    diverged: np.ndarray  # bool [S]
    stopped: np.ndarray  # bool [S], ended at a boundary on purpose
    complete: np.ndarray  # bool [S], every task has been measured on the test split after the last task
    matrix: dict[str, np.ndarray]  # split -> R [S, T, T], in the stream's measure
    initial: dict[str, np.ndarray]  # split -> [S, T]
    counted: np.ndarray  # bool [S], the seeds that the reported numbers are of, once finished
    first_task: int = 1  # the reported numbers are of the tasks from this one on
    score: float = -np.inf  # mean validation measure it was judged by, times the measure's sign; -inf: none
    place: int = 0  # among its method's configurations as judged, 0 is the best
    measure: Measure = ACCURACY
    wording: Wording = TASKS

    @property
    def class_incremental(self) -> bool:
        """Whether the classes of a later task have no active outputs yet: nothing is measured on a future task."""
        return self.stream.rsplit("/", 1)[-1] in ("class", "class-incremental")

    @property
    def unfinished(self) -> np.ndarray:
        """bool [S]: not complete, and neither diverged nor stopped."""
        return ~self.complete & ~self.diverged & ~self.stopped

    @property
    def reported(self) -> np.ndarray:
        """bool [S]: the complete members whose numbers are reported."""
        return self.complete & self.counted

    def member(self, seed: int) -> str:
        """The member of a seed that there is."""
        return self.members[int(np.flatnonzero(self.seeds == seed)[0])]

    def scores(self, metric: str) -> np.ndarray:
        """float64 [S_reported]: the metric on the test split of every reported member, over the reported tasks."""
        initial = None if self.class_incremental else self.initial["test"][self.reported]
        return self.measure.metrics[metric].score(self.matrix["test"][self.reported], initial, self.first_task)


def tasks_done(configuration: Configuration, members: np.ndarray) -> int:
    """The last task after which every one of these members [S] was evaluated; 0: none."""
    evaluated = ~np.isnan(configuration.matrix["test"][members]).all(axis=-1)
    return int(np.max(np.flatnonzero(evaluated.all(axis=0)) + 1, initial=0))


def grouped(table: pyarrow.Table, num_tasks: Mapping[str, int] | None = None) -> dict[str, list[Configuration]]:
    """The configurations of each stream in the tidy results table, by hyper-parameters from small to large.

    Args:
        table: one row a value; the columns of `COLUMNS` and any number that start with "config.".
        num_tasks: stream -> T; a stream not named has as many tasks as its largest task number.

    Raises:
        UserError: a column is missing, the table is empty, or two members of a configuration share a seed.
    """
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"the results table lacks {', '.join(missing)}; it needs the columns {', '.join(COLUMNS)}.")
    if not table.num_rows:
        raise UserError("the results table is empty: no task has finished yet. Run the experiment, then report.")
    return {
        label: _of_stream(table.filter(compute.field("stream") == label), label, (num_tasks or {}).get(label))
        for label in table["stream"].unique().to_pylist()
    }


def _of_stream(table: pyarrow.Table, label: str, num_tasks: int | None) -> list[Configuration]:
    names = [name for name in table.column_names if name.startswith("config.") and name != "config.seed"]
    encoded = table["member"].cast("string").combine_chunks().dictionary_encode()
    members, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    facts = table.select(["method", "seed", *names]).take(np.unique(codes, return_index=True)[1]).to_pylist()
    diverged, stopped = (
        np.bincount(codes[table[name].to_numpy()], minlength=len(members)) > 0 for name in ("diverged", "stopped")
    )
    num_tasks = num_tasks or int(max(table[name].to_numpy().max() for name in ("task", "after_task")))
    measure, wording = of_table(table, num_tasks)
    read = {
        split: tuple(
            np.where(np.isfinite(each), measure.factor * each, np.nan)  # an infinite loss is no number to report
            for each in metrics.accuracy_matrices(table, members, split, num_tasks, metric=measure.column)
        )
        for split in ("test", "validation")
    }
    groups: dict[tuple, list[int]] = {}
    for index, fact in enumerate(facts):
        groups.setdefault((fact["method"], *(hashable(fact[name]) for name in names)), []).append(index)

    configurations = []
    for group in groups.values():
        group = sorted(group, key=lambda index: facts[index]["seed"])
        fact, seeds = facts[group[0]], [facts[index]["seed"] for index in group]
        if len(set(seeds)) < len(seeds):
            raise UserError(
                f"two members of method {fact['method']!r} on {label!r} have the same seed and hyper-parameters: "
                f"{', '.join(members[index] for index in group)}. Keep one, or add the column in which they differ."
            )
        configurations.append(
            Configuration(
                stream=label,
                method=fact["method"],
                hyper_parameters={name.removeprefix("config."): fact[name] for name in names},
                members=[members[index] for index in group],
                seeds=np.array(seeds),
                diverged=diverged[group],
                stopped=stopped[group],
                complete=np.asarray(np.isfinite(read["test"][0][group, -1]).all(axis=-1)),
                matrix={split: matrix[group] for split, (matrix, _) in read.items()},
                initial={split: initial[group] for split, (_, initial) in read.items()},
                counted=np.ones(len(group), bool),
                measure=measure,
                wording=wording,
            )
        )
    # A table is sorted by member, which is a digest: order by what a reader knows, so that ties mean something too.
    return sorted(configurations, key=lambda each: [_order(value) for value in each.hyper_parameters.values()])


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, "" if number else repr(value)


def hashable(value: Any) -> Any:
    """What tells two hyper-parameters apart: NaN equals itself, 1 and True differ, lists are allowed."""
    return repr(value)
