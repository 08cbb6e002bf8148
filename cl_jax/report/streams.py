"""The results on one stream under a selection protocol: which configuration each method is shown by."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow

from cl_jax.errors import UserError
from cl_jax.report.configurations import BASELINE, UPPER_BOUND, Configuration, Varied, grouped, hashable
from cl_jax.report.measure import Measure
from cl_jax.selection import ALL, Candidates, Choice, Protocol
from cl_jax.wording import Wording


class Stream(NamedTuple):
    """All results on one task stream, as a selection protocol reports them."""

    label: str
    num_tasks: int
    protocol: Protocol
    configurations: list[Configuration]  # by method, then hyper-parameters from small to large
    chosen: dict[str, Configuration]  # method -> what it is shown by, in the order of `by_result`
    choices: dict[str, Choice]  # method -> of which configuration of `of` each row is
    swept: dict[str, list[str]]  # method -> hyper-parameters with more than one value
    all_methods: list[str]  # of every stream in the table, sorted: a method looks the same in each

    def of(self, method: str) -> list[Configuration]:
        """The configurations of one method."""
        return [configuration for configuration in self.configurations if configuration.method == method]

    @property
    def measure(self) -> Measure:
        """What its runs are measured in."""
        return self.configurations[0].measure

    @property
    def wording(self) -> Wording:
        """What its tasks are called."""
        return self.configurations[0].wording

    @property
    def seeds(self) -> np.ndarray:
        """int [S], ascending: those of every method."""
        return np.unique(np.concatenate([each.seeds for each in self.configurations]))


def read(table: pyarrow.Table, num_tasks: Mapping[str, int] | None = None, protocol: Protocol = ALL) -> list[Stream]:
    """Groups the tidy results table by stream and configuration, and chooses for each method.

    Args:
        table: as `configurations.grouped` takes it.
        num_tasks: stream -> T; a stream not named has as many tasks as its largest task number.
        protocol: how to choose.

    Raises:
        UserError: the table is not one of results, or a stream does not allow the protocol.
    """
    all_methods = sorted(table["method"].unique().to_pylist()) if "method" in table.column_names else []
    return [
        _selected(label, configurations, protocol, all_methods)
        for label, configurations in grouped(table, num_tasks).items()
    ]


def reselected(stream: Stream, protocol: Protocol) -> Stream:
    """The same results under another protocol. Raises UserError where the stream does not allow it."""
    return _selected(stream.label, stream.configurations, protocol, stream.all_methods)


def candidates(configurations: Sequence[Configuration], seeds: np.ndarray, split: str = "validation") -> Candidates:
    """What a protocol may see of the configurations of one method, over the seeds [S] of all methods."""
    num_tasks, sign = configurations[0].matrix[split].shape[-1], configurations[0].measure.sign
    seen = np.full((len(configurations), len(seeds), num_tasks + 1, num_tasks), np.nan)
    present, complete, diverged = np.zeros((3, len(configurations), len(seeds)), bool)
    for index, each in enumerate(configurations):
        at = np.searchsorted(seeds, each.seeds)
        seen[index, at] = sign * np.concatenate([each.initial[split][:, None], each.matrix[split]], axis=1)
        present[index, at], complete[index, at], diverged[index, at] = True, each.complete, each.diverged
    stopped = np.array([each.stopped.any() for each in configurations])
    return Candidates(seen, seeds, present, complete, diverged, stopped)


def by_result(chosen: Mapping[str, Configuration]) -> dict[str, Configuration]:
    """Between the bounds, fine-tuning first and joint last: from worst to best at the end, on test, unscored last."""

    def key(method: str) -> tuple[int, float]:
        measure = chosen[method].measure
        scores = measure.sign * chosen[method].scores(measure.end)
        group = 0 if method == BASELINE else 3 if method == UPPER_BOUND else 1 if len(scores) else 2
        return group, float(scores.mean()) if len(scores) else 0.0

    return {method: chosen[method] for method in sorted(chosen, key=key)}


def _selected(
    label: str, configurations: Sequence[Configuration], protocol: Protocol, all_methods: list[str]
) -> Stream:
    seeds = np.unique(np.concatenate([each.seeds for each in configurations]))
    of: dict[str, list[Configuration]] = {}
    for each in configurations:
        of.setdefault(each.method, []).append(each)
    chosen, choices = {}, {}
    for method, mine in of.items():
        try:
            choice = choices[method] = protocol.choose(candidates(mine, seeds))
        except UserError as error:
            raise UserError(f"{label}: {error}") from error
        place = np.argsort(choice.order)
        of[method] = [
            each._replace(
                counted=choice.seeds[np.searchsorted(seeds, each.seeds)],
                first_task=choice.first_task,
                score=float(choice.score[index]),
                place=int(place[index]),
            )
            for index, each in enumerate(mine)
        ]
        chosen[method] = _shown(of[method], choice, seeds)
    chosen = by_result(chosen)
    return Stream(
        label,
        num_tasks=configurations[0].matrix["test"].shape[-1],
        protocol=protocol.said(configurations[0].wording),
        configurations=[each for method in chosen for each in of[method]],
        chosen=chosen,
        choices=choices,
        swept={method: _swept(of[method]) for method in chosen},
        all_methods=all_methods,
    )


def _swept(configurations: list[Configuration]) -> list[str]:
    def values(name: str) -> set:
        return {hashable(configuration.hyper_parameters[name]) for configuration in configurations}

    return [name for name in configurations[0].hyper_parameters if len(values(name)) > 1]


def _shown(configurations: list[Configuration], choice: Choice, seeds: np.ndarray) -> Configuration:
    """The configuration that was chosen; put together where it is not one alone; without numbers where none was."""
    taken = np.unique(choice.configuration[choice.configuration >= 0])
    if len(taken) < 2:
        best = configurations[choice.order[0]]
        return configurations[taken[0]] if len(taken) else best._replace(counted=np.zeros_like(best.counted))
    used = np.flatnonzero((choice.configuration >= 0).all(axis=1))
    rows = choice.configuration[used]  # [S', T]
    seen = {split: candidates(configurations, seeds, split) for split in configurations[0].matrix}
    after, sign = np.arange(rows.shape[1]), configurations[0].measure.sign
    matrix = {split: sign * each.validation[rows, used[:, None], after + 1] for split, each in seen.items()}
    parts = [configurations[index] for index in taken]
    return parts[0]._replace(
        hyper_parameters={name: _values([each.hyper_parameters[name] for each in parts]) for name in _names(parts)},
        members=[configurations[row[-1]].member(seeds[s]) for row, s in zip(rows, used, strict=True)],
        seeds=seeds[used],
        diverged=seen["test"].diverged[rows, used[:, None]].any(axis=1),
        stopped=np.zeros(len(used), bool),
        complete=np.asarray(np.isfinite(matrix["test"][:, -1]).all(axis=-1)),
        matrix=matrix,
        initial={split: sign * each.validation[rows[:, 0], used, 0] for split, each in seen.items()},
        counted=choice.seeds[used],
        score=-np.inf,
        place=0,
    )


def _names(configurations: Sequence[Configuration]) -> list[str]:
    return list(configurations[0].hyper_parameters)


def _values(values: list[Any]) -> Any:
    """The one value, or those that there are, in the order of the configurations."""
    distinct = list({hashable(value): value for value in values}.values())
    return distinct[0] if len(distinct) == 1 else Varied(distinct)
