"""Synthetic results tables, with the shapes and gaps that real runs have."""

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

STREAM = "permuted-digits/domain"
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)


def simulated(num_tasks: int, kept: float, learned: float, noise: float, seed: int) -> np.ndarray:
    """Accuracy [T + 1, T] of a learner that learns a task to `learned` and keeps the share `kept` of it per task."""
    rng = np.random.default_rng(seed)
    after, task = np.arange(num_tasks + 1)[:, None], np.arange(1, num_tasks + 1)[None]
    value = 0.1 + (learned - 0.1) * np.where(after >= task, kept ** np.maximum(after - task, 0), 0)
    return np.clip(value + noise * rng.standard_normal(value.shape), 0, 1)


def default_accuracy(method: str, config: Mapping[str, Any], num_tasks: int, seed: int) -> np.ndarray:
    """Fine-tuning forgets, joint does not, a strength trades one for the other with its optimum at 10."""
    strength = next((value for name, value in config.items() if name.endswith("strength")), None)
    kept, learned = {"finetune": (0.72, 0.97), "joint": (0.999, 0.96), "replay": (0.97, 0.955)}.get(method, (0.8, 0.95))
    if strength is not None:
        x = np.log10(strength)
        kept, learned = 0.72 + 0.27 / (1 + np.exp(-2 * x)), 0.97 - 0.45 / (1 + np.exp(-2.5 * (x - 2)))
    return simulated(num_tasks, kept, learned, 0.012, seed + zlib.crc32(repr((method, strength)).encode()))


def results_table(
    methods: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    *,
    stream: str = STREAM,
    num_tasks: int = 5,
    seeds: Sequence[int] = (0, 1, 2),
    accuracy: Callable[[str, Mapping[str, Any], int, int], np.ndarray] = default_accuracy,
    test: Callable[[str, Mapping[str, Any], int, int], np.ndarray] | None = None,
    unfinished: Callable[[str, Mapping[str, Any], int], int | None] = lambda method, config, seed: None,
    stopped: Callable[[str, Mapping[str, Any], int], int | None] = lambda method, config, seed: None,
    diverged: Callable[[str, Mapping[str, Any], int], bool] = lambda method, config, seed: False,
) -> pa.Table:
    """The tidy table of every configuration x seed.

    Args:
        methods: label -> configurations, each a mapping of hyper-parameters without the prefix "config.".
        accuracy: `(method, config, num_tasks, seed) -> [T + 1, T]`.
        test: the same for the test split, where it differs.
        unfinished: `(method, config, seed)` -> number of tasks done by an unfinished member, None for a finished one.
        stopped: the same for members that were stopped on purpose.
        diverged: which members carry the flag.
    """
    methods = methods or {
        "finetune": [{}],
        "ewc": [{"methods.ewc.strength": strength} for strength in STRENGTHS],
        "replay": [
            {"methods.replay.capacity": capacity, "methods.replay.policy": "reservoir"} for capacity in (50, 200)
        ],
        "joint": [{}],
    }
    names = dict.fromkeys(name for configs in methods.values() for config in configs for name in config)
    columns: dict[str, list] = {}
    for method, configs in methods.items():
        for config in configs:
            for seed in seeds:
                member = hashlib.sha1(repr((stream, method, sorted(config.items()), seed)).encode()).hexdigest()[:12]
                end = stopped(method, config, seed)
                last = unfinished(method, config, seed) if end is None else end
                for split in ("validation", "test"):
                    values = (test if test and split == "test" else accuracy)(method, config, num_tasks, seed)
                    for after, task in np.ndindex(num_tasks + 1, num_tasks):
                        if last is not None and after > last:
                            continue
                        for metric, value in (("accuracy", values[after, task]), ("loss", 1 - values[after, task])):
                            row = {
                                **{"member": member, "method": method, "stream": stream, "seed": seed},
                                **{"diverged": diverged(method, config, seed), "stopped": end is not None},
                                **{"after_task": after, "task": task + 1},
                                **{"split": split, "metric": metric, "value": float(value)},
                                **{f"config.{name}": config.get(name) for name in names},
                            }
                            for name, entry in row.items():
                                columns.setdefault(name, []).append(entry)
    table = pa.table(columns)
    for name in ("seed", "after_task", "task"):
        index = table.column_names.index(name)
        table = table.set_column(index, name, table[name].cast(pa.int32()))
    return table


@pytest.fixture(scope="session")
def make_table() -> Callable[..., pa.Table]:
    return results_table


@pytest.fixture(scope="session")
def table() -> pa.Table:
    return results_table()
