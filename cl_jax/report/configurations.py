"""The results table as configurations, members that differ in their seed only; which one each method is shown by."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import compute

from cl_jax import metrics
from cl_jax.errors import UserError

BASELINE = "finetune"  # label of the lower bound
UPPER_BOUND = "joint"  # label of training on all tasks at once
SELECTION_PROTOCOL = "validation accuracy, all tasks, all seeds"
COLUMNS = ("member", "method", "stream", "seed", "diverged", "after_task", "task", "split", "metric", "value")
METRICS = {
    "average_accuracy": lambda matrix, initial: metrics.average_accuracy(matrix),
    "average_incremental_accuracy": lambda matrix, initial: metrics.average_incremental_accuracy(matrix),
    "learning_accuracy": lambda matrix, initial: metrics.learning_accuracy(matrix),
    "forgetting": lambda matrix, initial: metrics.forgetting(matrix),
    "backward_transfer": lambda matrix, initial: metrics.backward_transfer(matrix),
    "forward_transfer": metrics.forward_transfer,
}


class Configuration(NamedTuple):
    """Members equal in everything but their seed, sorted by seed."""

    stream: str
    method: str
    hyper_parameters: dict[str, Any]  # every "config." column but the seed, without that prefix
    members: list[str]  # [S]
    seeds: np.ndarray  # int [S]
    diverged: np.ndarray  # bool [S]
    complete: np.ndarray  # bool [S], every task has a test accuracy after the last task
    accuracy: dict[str, np.ndarray]  # split -> R [S, T, T]
    initial: dict[str, np.ndarray]  # split -> [S, T]

    @property
    def class_incremental(self) -> bool:
        """Whether the classes of a later task have no active outputs yet: nothing is measured on a future task."""
        return self.stream.rsplit("/", 1)[-1] in ("class", "class-incremental")

    @property
    def unfinished(self) -> np.ndarray:
        """bool [S]: neither complete nor diverged."""
        return ~self.complete & ~self.diverged

    def scores(self, metric: str, split: str = "test") -> np.ndarray:
        """float64 [S_complete]: the metric of every complete member."""
        initial = None if self.class_incremental else self.initial[split][self.complete]
        return METRICS[metric](self.accuracy[split][self.complete], initial)


class Stream(NamedTuple):
    """All results on one task stream."""

    label: str
    num_tasks: int
    configurations: list[Configuration]  # by method, then hyper-parameters from small to large
    chosen: dict[str, Configuration]  # method -> the configuration it is shown by, in the order of `by_result`
    swept: dict[str, list[str]]  # method -> hyper-parameters with more than one value
    all_methods: list[str]  # of every stream in the table, sorted: a method looks the same in each

    def of(self, method: str) -> list[Configuration]:
        """The configurations of one method."""
        return [configuration for configuration in self.configurations if configuration.method == method]


def read(table: pyarrow.Table, num_tasks: Mapping[str, int] | None = None) -> list[Stream]:
    """Groups the tidy results table by stream and configuration, and chooses one configuration a method.

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
    all_methods = sorted(table["method"].unique().to_pylist())
    return [
        _read_stream(table.filter(compute.field("stream") == label), label, (num_tasks or {}).get(label), all_methods)
        for label in table["stream"].unique().to_pylist()
    ]


def choose(configurations: list[Configuration]) -> Configuration:
    """The configuration with the best mean validation average accuracy over its complete seeds; ties: the first.

    The test split plays no part. One with a diverged or an unfinished member is taken only if there is no other.
    """

    def rank(configuration: Configuration) -> tuple[bool, bool, bool, float]:
        value = validation_score(configuration)
        sound = not configuration.diverged.any()
        return bool(configuration.complete.any()), sound, bool(configuration.complete.all()), value

    return max(configurations, key=rank)


def validation_score(configuration: Configuration) -> float:
    """Mean validation average accuracy over the complete seeds; -inf where there is none."""
    scores = configuration.scores("average_accuracy", "validation")
    return float(scores.mean()) if len(scores) and not np.isnan(scores).any() else -np.inf


def by_result(chosen: Mapping[str, Configuration]) -> dict[str, Configuration]:
    """Between the bounds, fine-tuning first and joint last: from low to high test average accuracy, unscored last."""

    def key(method: str) -> tuple[int, float]:
        scores = chosen[method].scores("average_accuracy")
        group = 0 if method == BASELINE else 3 if method == UPPER_BOUND else 1 if len(scores) else 2
        return group, float(scores.mean()) if len(scores) else 0.0

    return {method: chosen[method] for method in sorted(chosen, key=key)}


def _read_stream(table: pyarrow.Table, label: str, num_tasks: int | None, all_methods: list[str]) -> Stream:
    names = [name for name in table.column_names if name.startswith("config.") and name != "config.seed"]
    encoded = table["member"].cast("string").combine_chunks().dictionary_encode()
    members, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    facts = table.select(["method", "seed", *names]).take(np.unique(codes, return_index=True)[1]).to_pylist()
    diverged = np.bincount(codes[table["diverged"].to_numpy()], minlength=len(members)) > 0
    num_tasks = num_tasks or int(max(table[name].to_numpy().max() for name in ("task", "after_task")))
    read = {split: metrics.accuracy_matrices(table, members, split, num_tasks) for split in ("test", "validation")}
    groups: dict[tuple, list[int]] = {}
    for index, fact in enumerate(facts):
        groups.setdefault((fact["method"], *(_hashable(fact[name]) for name in names)), []).append(index)

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
                complete=np.asarray(np.isfinite(read["test"][0][group, -1]).all(axis=-1)),
                accuracy={split: matrix[group] for split, (matrix, _) in read.items()},
                initial={split: initial[group] for split, (_, initial) in read.items()},
            )
        )
    # A table is sorted by member, which is a digest: order by what a reader knows, so that ties mean something too.
    configurations.sort(key=lambda each: [_order(value) for value in each.hyper_parameters.values()])
    methods = dict.fromkeys(each.method for each in configurations)
    of = {method: [each for each in configurations if each.method == method] for method in methods}
    chosen = by_result({method: choose(each) for method, each in of.items()})
    return Stream(
        label,
        num_tasks,
        configurations=[each for method in chosen for each in of[method]],
        chosen=chosen,
        swept={method: _swept(of[method]) for method in chosen},
        all_methods=all_methods,
    )


def _swept(configurations: list[Configuration]) -> list[str]:
    def values(name: str) -> set:
        return {_hashable(configuration.hyper_parameters[name]) for configuration in configurations}

    return [name for name in configurations[0].hyper_parameters if len(values(name)) > 1]


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, "" if number else repr(value)


def _hashable(value: Any) -> Any:
    # repr: NaN equals itself, 1 and True differ, lists are allowed.
    return repr(value)
