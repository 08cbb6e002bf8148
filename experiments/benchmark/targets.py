"""What the benchmark has to show, each beside what was measured in the same run."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.benchmark.rows import Row, select


class Target(NamedTuple):
    """A bound on one kind of row; where several rows match, the worst one counts."""

    text: str
    least: bool  # the value has to be at least the bound; else at most
    bound: float
    unit: str
    wanted: dict[str, Any]


class Verdict(NamedTuple):
    target: Target
    found: Row | None  # the worst row; None: not measured in this run
    met: bool


_LARGE = {"model": "mlp-400", "batch_size": 128}
TARGETS = (
    Target("MLP-400, batch 128, SGD: share of the matmul peak", True, 0.85, "",
           {"section": "mlp", "metric": "share of peak, chosen", **_LARGE, "optimizer": "sgd", "members": 1}),
    Target("the same, 64 members", True, 0.85, "",
           {"section": "mlp", "metric": "share of peak, chosen", **_LARGE, "optimizer": "sgd", "members": 64}),
    Target("MLP-400, batch 128, Adam: PyTorch / cl_jax", True, 2.3, "x",
           {"section": "mlp", "metric": "PyTorch / cl_jax", **_LARGE, "optimizer": "adam", "members": 1}),
    Target("MLP-256, batch 10, SGD, 64 members: PyTorch / cl_jax", True, 2.8, "x",
           {"section": "mlp", "metric": "PyTorch / cl_jax", "model": "mlp-256", "batch_size": 10, "members": 64}),
    Target("engine / bare scan written by hand, one member", False, 1.10, "x",
           {"section": "overhead", "metric": "engine / scan by hand"}),
    Target("chosen packing / best packing, MLPs", False, 1.10, "x", {"section": "mlp", "metric": "chosen / best"}),
    Target("chosen packing / best packing, CNN", False, 1.10, "x", {"section": "cnn", "metric": "chosen / best"}),
    Target("CNN step: lax.conv / cl_jax", True, 10.0, "x", {"section": "cnn", "metric": "lax.conv / cl_jax"}),
    Target("CNN step: cl_jax / PyTorch", False, 1.3, "x",
           {"section": "cnn", "metric": "cl_jax / PyTorch", "members": 1}),
    Target("exact Fisher of MLP-400, an example", False, 60.0, "us",
           {"section": "fisher", "metric": "us per example", "model": "mlp-400", "method": "exact", "who": "cl_jax"}),
    Target("exact Fisher of the CNN: vmap(jacrev) of lax.conv / cl_jax", True, 10.0, "x",
           {"section": "fisher", "metric": "vmap(jacrev) of lax.conv / cl_jax", "model": "cnn"}),
    Target("the same of our patches x matrix", True, 10.0, "x",
           {"section": "fisher", "metric": "vmap(jacrev) / cl_jax", "model": "cnn"}),
    Target("decoder of 0.4 M, batch 16 x 128, Adam: tokens a second", True, 30000, "",
           {"section": "language", "metric": "tokens per second", "model": "decoder-0.4M", "who": "cl_jax"}),
    Target("decoder: engine / bare scan of a decoder written by hand", False, 1.3, "x",
           {"section": "language", "metric": "engine / decoder by hand"}),
    Target("Fisher of 16 sequences / training step", False, 2.0, "x",
           {"section": "language", "metric": "Fisher of 16 sequences / step"}),
)  # fmt: skip


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every target with the worst row that it is about."""

    def judge(target: Target) -> Verdict:
        worst: Callable[..., Row] = min if target.least else max
        meets = operator.ge if target.least else operator.le
        found = select(rows, **target.wanted)
        if not found:
            return Verdict(target, None, False)
        one = worst(found, key=lambda row: row.value)
        return Verdict(target, one, bool(meets(one.value, target.bound)))

    return [judge(target) for target in TARGETS]
