"""How many bytes of images a device may hold, and the windows that follow from it where a data set is larger."""

import math
import re
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cl_jax import program
from cl_jax.batch import Reference
from cl_jax.data import Data
from cl_jax.devices import memory_bytes
from cl_jax.errors import UserError
from cl_jax.evaluate import EVALUATED, chunks
from cl_jax.experiment import Run
from cl_jax.tasks.boundaries import is_sharp
from cl_jax.tasks.stream import largest_task
from cl_jax.train import TrainState

ACCELERATOR_SHARE = 0.5  # of a device's memory, where no budget is given; the rest is the members'
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def image_budget(given: str | None) -> int | None:
    """Bytes of images that one device may hold; None: as many as there are.

    Args:
        given: such as 64MB, 1.5GiB or 500000. None: half of an accelerator's memory; on a CPU no bound, since the data
            set is in the same memory either way.

    Raises:
        UserError: not a number of bytes.
    """
    if given is None:
        return None if jax.default_backend() == "cpu" else int(memory_bytes() * ACCELERATOR_SHARE)
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([a-zA-Z]*)", given.strip())
    unit = UNITS.get((found[2] or "B").upper()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise UserError(
            f"--data-budget: was given {given!r}; expected a number of bytes of at least 1, such as 64MB, 1.5GiB or "
            f"500000 (units: KB, MB, GB, KiB, MiB, GiB)"
        )
    return math.floor(float(found[1]) * unit)


class Windows(NamedTuple):
    """How much of the data the programs of one group see at a time, in rows; each window is of one shape, so each
    program compiles once. At most two windows are on a device at once: the one in use and the next.
    """

    chunk: int  # steps a call
    training: int  # batches of a chunk, and stored examples
    task: int | None  # a whole task, and stored examples; None: too large, its boundary calls the host
    evaluation: int  # as many examples as fit


def plan_windows(run: Run, num_seeds: int, num_members: int, data: Data, chunk: int) -> Windows:
    """The windows of members that train at once.

    Args:
        run: of any of them; they share all that is static.
        num_seeds: how many different seeds they have; members of one seed see the same batches.
        data: where it is resident, everything is seen.
        chunk: steps a call; for streamed data cut into equal parts, so many that the windows fit the budget.

    Raises:
        UserError: not even the shortest chunk fits; names the least budget that does.
    """
    if data.host is None:
        rows = sum(data.sizes)
        return Windows(chunk, rows, rows, rows)
    stream, rows = program.view_of(run, data).stream, data.sizes[0]
    most = data.host.budget // data.host.row_bytes // 2
    stored = num_members * stored_rows(run, data)
    one_task = run.exposure == "current" and is_sharp(run.boundary)
    open_rows = largest_task(stream, data, "train") if one_task else rows

    def training(steps: int) -> int:
        batches = num_seeds * min(steps * run.batch_size, open_rows)
        # What is stored one chunk later was stored before, or came in with the chunk.
        return min(rows, stored + 2 * batches if stored else batches)

    evaluation = 1
    for split in EVALUATED:
        _, size = chunks(stream, data, split)
        many = size if stream.task_of is None else min(num_seeds * size, data.bounds(split)[1])
        evaluation = max(evaluation, many)
    divisors = [steps for steps in range(1, chunk + 1) if chunk % steps == 0]
    fitting = [steps for steps in divisors if training(steps) <= most]
    if not fitting or evaluation > most:
        raise UserError(
            f"data budget of {data.host.budget} bytes: two windows of images have to fit, of {training(1)} rows for "
            f"one training step ({num_seeds} seeds at once) and of {evaluation} for evaluation, {data.host.row_bytes} "
            f"bytes a row; give --data-budget {2 * max(training(1), evaluation) * data.host.row_bytes} or more"
        )
    task = min(rows, stored + num_seeds * largest_task(stream, data, "train"))
    return Windows(
        chunk=fitting[-1],
        training=training(fitting[-1]),
        task=task if task <= most else None,
        evaluation=min(most, sum(data.bounds(split)[1] for split in EVALUATED)),
    )


def stored_rows(run: Run, data: Data) -> int:
    """How many references to examples one member's state holds."""
    state = jax.eval_shape(partial(program.first_state, run, data=data), jnp.int32(0))
    return sum(reference.row.size for reference in references_in(state))


def references_in(state: TrainState) -> list[Reference]:
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Reference))
    return [leaf for leaf in leaves if isinstance(leaf, Reference)]
