"""Data sets larger than the device: each program is given a window, the images of the rows that it will ask for.

Which rows these are is known beforehand: the batches of a chunk of steps are a formula of seed, task and step, and a
method that keeps examples keeps references to them. So the host reads the next window, through Grain in a thread of its
own, while the device trains with the present one; the training step is the same function of the same values.

What has no fixed window calls the host for every batch: the evaluation before any training, once a seed, and the
boundary of a task that is larger than half the budget (its Fisher). A call costs a transfer and a wait of the device,
0.1 ms on a CPU.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax import program
from cl_jax.budget import Windows, references_in
from cl_jax.data import Data
from cl_jax.evaluate import EVALUATED, METRICS, chunks, evaluated_tasks, means
from cl_jax.experiment import Run
from cl_jax.tasks.stream import Curriculum, Segments
from cl_jax.train import TrainState

Rows = np.ndarray  # int [k], rows of the data set


def read_ahead(rows: Sequence[Rows], size: int, data: Data) -> Generator[Data]:
    """A window for each element of `rows` in turn; while one is in use, the next is read and put on the device.

    The device then holds these two and no more: a window is deleted when the next one is asked for.

    Args:
        rows: ascending each, at most `size`. Asking for window i reads rows[i + 1], never more.
        data: streamed.
    """
    import grain  # takes a second to import

    placed: deque[Data] = deque()
    closed = threading.Event()

    def read(wanted: Rows) -> Data:
        window = _window(wanted, size, data)
        placed.append(window)
        if closed.is_set():
            _delete(window)
        return window

    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    windows = iter(grain.MapDataset.source(rows).map(read).to_iter_dataset(ahead))
    try:
        for window in windows:
            yield window
            _delete(placed.popleft())
    finally:
        closed.set()
        windows.close()
        while placed:
            _delete(placed.popleft())


def _window(rows: Rows, size: int, data: Data) -> Data:
    assert data.host is not None
    images = np.empty((size, *data.host.shape), data.host.dtype)
    images[: len(rows)] = data.host.read(rows)
    slots = np.full(len(data.host), -1, np.int32)
    slots[rows] = np.arange(len(rows), dtype=np.int32)
    placed = jax.block_until_ready(jax.device_put((images, slots), data.labels.sharding))
    return Data(
        images=placed[0], slots=placed[1], labels=data.labels, host=data.host, sizes=data.sizes,
        class_counts=data.class_counts, pixel_max=data.pixel_max, sha256=data.sha256, text=data.text,
        labelled=data.labelled,
    )  # fmt: skip


def _delete(window: Data) -> None:
    assert window.slots is not None
    window.images.delete()
    window.slots.delete()


def _union(data: Data, *parts: Rows) -> Rows:
    """Every row of any part, once, ascending."""
    wanted = np.zeros(sum(data.sizes), bool)
    for part in parts:
        wanted[part] = True
    return np.flatnonzero(wanted)


def _stored(state: TrainState) -> list[Rows]:
    """The rows that methods may ask for again. Empty slots of a buffer refer to row 0, which they may render too."""
    return [np.asarray(reference.row) for reference in references_in(state)]


class Feed:
    """What the programs of a wave are given as data; resident data is handed on as it is.

    Args:
        run: of any member of the wave.
        seeds: each member's.
        curricula: each member's, host arrays.
        windows: of the group.
    """

    def __init__(self, run: Run, seeds: Sequence[int], curricula: Sequence[Curriculum], data: Data, windows: Windows):
        self._run, self._data, self._windows = run, data, windows
        self._seeds, first = np.unique(np.asarray(seeds, np.int32), return_index=True)
        self._curricula, self._members = [curricula[i] for i in first], curricula

    def _segments(self, split: str) -> Segments:
        """Of every seed, [S, ...]."""
        return jax.tree.map(
            lambda *each: np.stack(each), *[curriculum.segments[split] for curriculum in self._curricula]
        )

    @contextlib.contextmanager
    def training(self, task: int, begin: int = 0) -> Iterator[Callable[[TrainState], Data]]:
        """Gives what to call before each chunk of a task's steps from `begin` on, in order, with the state before."""
        if self._data.host is None:
            yield lambda state: self._data
            return
        rows = _ChunkRows(
            self._run, self._seeds, self._segments("train"), self._data, task, (begin, self._windows.chunk)
        )
        with contextlib.closing(read_ahead(rows, self._windows.training, self._data)) as windows:

            def window(state: TrainState) -> Data:
                rows.foresee(state)
                return next(windows)

            yield window

    @contextlib.contextmanager
    def boundary(self, state: TrainState, task: int) -> Iterator[Data]:
        """Gives the data of a task's boundary: all of the task, and what `state` refers to."""
        if self._data.host is None or self._windows.task is None:
            yield self._data
            return
        jax.block_until_ready(state)  # the last window of training is in use until then
        task_rows = _task_rows(self._segments("train"), task, np.arange(self._data.sizes[0]))
        rows = _union(self._data, task_rows, *_stored(state))
        with contextlib.closing(read_ahead([rows], self._windows.task, self._data)) as windows:
            yield next(windows)

    def evaluate(self, score: Callable[[Data, str, int, int], jax.Array], after: int) -> np.ndarray:
        """A row of R for each member, as `cl_jax.evaluate.evaluate` gives it: float32 [wave, splits, metrics, T].

        Args:
            score: `(data, split, task, first) -> sums`, those of `cl_jax.evaluate.chunk_sums`, [wave, 2, metrics].
            after: tasks trained so far.
        """
        num_tasks = self._run.stream.num_tasks
        first, end = map(int, evaluated_tasks(num_tasks, after, self._run.recent))
        groups, rows = self._evaluation(range(first, end))
        sums = np.zeros((len(self._members), len(EVALUATED), num_tasks, 2, len(METRICS)), np.float32)
        with contextlib.closing(read_ahead(rows, self._windows.evaluation, self._data)) as windows:
            for group in groups:
                window = next(windows)
                scored = [(split, task, score(window, split, task, first)) for split, task, first in group]
                for split, task, part in scored:
                    sums[:, EVALUATED.index(split), task] += np.asarray(part)
        sums[:, :, np.r_[:first, end:num_tasks]] = np.nan  # not measured
        return np.asarray(means(jnp.asarray(sums))).swapaxes(-1, -2)

    def _evaluation(self, tasks: range) -> tuple[list[list[tuple[str, int, int]]], list[Rows]]:
        """What is evaluated with each window, as (split, task, first position), and the window's rows."""
        stream = program.view_of(self._run, self._data).stream
        groups: list[list[tuple[str, int, int]]] = [[]]
        rows: list[Rows] = [np.zeros(0, np.int32)]
        for split in EVALUATED:
            segments = self._segments(split)
            num_chunks, size = chunks(stream, self._data, split)
            for first in range(0, num_chunks * size, size):
                for task in tasks:
                    wanted = _task_rows(segments, task, first + np.arange(size))
                    joined = _union(self._data, rows[-1], wanted)
                    if len(joined) > self._windows.evaluation:
                        groups.append([])
                        rows.append(wanted)
                        joined = _union(self._data, wanted)
                    groups[-1].append((split, task, first))
                    rows[-1] = joined
        return groups, rows


def _task_rows(segments: Segments, task: int, position: np.ndarray) -> Rows:
    """The rows at given positions of a task, of every seed: as `cl_jax.tasks.stream.task_rows`."""
    order, start, size = map(np.asarray, segments)
    last = np.maximum(size[:, task, None] - 1, 0)
    return np.take_along_axis(order, start[:, task, None] + np.minimum(position[None, :], last), axis=1).ravel()


class _ChunkRows(Sequence[Rows]):
    """The rows of a task's windows, chunk by chunk, each known one chunk before it is trained."""

    def __init__(self, run: Run, seeds: np.ndarray, segments: Segments, data: Data, task: int, chunks: tuple[int, int]):
        begin, chunk = chunks  # the first step, and how many a chunk
        self._data, self._count = data, (run.steps - begin) // chunk
        self._incoming_of = lambda number: _union(
            data,
            np.asarray(
                _batches(run, seeds, segments, np.int32(task), np.int32(begin + number * chunk), num_steps=chunk)
            ),
        )
        self._rows: list[Rows] = []
        self._incoming: Rows = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        return self._rows[number]

    def foresee(self, state: TrainState) -> None:
        """To be called before each chunk: finds the rows of the one after it, and before the first chunk those of both.

        What will be stored by then is stored now or comes in with the chunk in between.
        """
        # The batches are computed on the device, so that they are bit for bit its own: not behind a chunk of steps.
        jax.block_until_ready(state)
        stored = _stored(state)
        if not self._rows:
            self._incoming = self._incoming_of(0)
            self._rows.append(_union(self._data, self._incoming, *stored))
        if len(self._rows) < self._count:
            following = self._incoming_of(len(self._rows))
            self._rows.append(_union(self._data, following, *([self._incoming, *stored] if stored else [])))
            self._incoming = following


@partial(jax.jit, static_argnames="num_steps")
def _batches(
    run: Run, seeds: jax.Array, segments: Segments, task: jax.Array, first_step: jax.Array, *, num_steps: int
) -> jax.Array:
    """The rows of the batches of some steps, of every seed: int32 [S, steps, B]."""
    numbers = first_step + jnp.arange(num_steps, dtype=jnp.int32)

    def of_one(each: tuple[jax.Array, Segments]) -> jax.Array:
        seed, own = each
        return program.references_of(run, seed, own, task, numbers).row

    return jax.lax.map(of_one, (seeds, segments))
