"""Trains all shards of a run, several at once.

Where members stop at boundaries, stage by stage: every shard reaches a boundary before any goes on.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from cl_jax.checkpoint import new_attempt
from cl_jax.halving import Halving
from cl_jax.plan import Shard
from cl_jax.progress import Bar
from cl_jax.sweep import Stage


def train(
    shards: Sequence[Shard], one: Callable[[Shard, Stage], None], halving: Halving | None, bar: Bar, threads: int
) -> None:
    """Trains all shards to their end.

    Args:
        one: trains a shard to the end of a stage.
        halving: which members stop where; None: all go on to the end, in one stage.
        threads: shards at once.
    """
    attempt, since = new_attempt(), 0
    for until in [*(halving.ahead if halving else []), None]:
        stage = Stage(until, since, dict(halving.stopped) if halving else {}, attempt)
        _each([shard for shard in shards if not shard.done], lambda shard, stage=stage: one(shard, stage), bar, threads)
        if halving is not None and until is not None:
            lost = set(halving.decide(until, shards))
            spared = [
                shard.members[0].entry.run.steps * (shard.members[0].entry.run.stream.num_tasks - until)
                for shard in shards
                for member in shard.members
                if member.id in lost
            ]
            bar.spared(sum(spared))
            bar.say(f"after task {until}: {len(lost)} runs stop, by validation accuracy")
            since = until


def _each(shards: Sequence[Shard], one: Callable[[Shard], None], bar: Bar, threads: int) -> None:
    pool = ThreadPoolExecutor(threads)
    futures = [pool.submit(one, shard) for shard in shards]
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        bar.stop()  # the other shards end at their next chunk
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
