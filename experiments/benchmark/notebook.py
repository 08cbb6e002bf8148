"""The README of this experiment, whole: command, what every figure means, and what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmark import targets
from experiments.benchmark.rows import Row, select
from experiments.benchmark.tables import number, packing, pivot, step, table, with_spread

HEAD = """# Benchmark

    bash launch/local.sh benchmark                     # everything: half an hour on two quiet cores
    bash launch/local.sh benchmark --quick             # what the first table needs: five minutes
    bash launch/local.sh benchmark --only mlp,fisher   # some parts
    bash launch/local.sh benchmark --torch-python <python with PyTorch>

Writes to runs/benchmark (or --out): the table of all numbers, benchmark.parquet, this page, and its figures. Needs no
data: images are random, of the shapes of MNIST and CIFAR, and a step costs the same whatever they show.

## How it is measured

Everything that is compared runs in turns within the same seconds, A B C A B C ..., after warming up; a number is the
median over the rounds, with quartiles where there is room, and a ratio is formed within each round: a machine's speed
drifts, ratios stay.

- *member-step*: one training step of one run. A group of many is timed whole and divided by its members.
- *packing* `devices x width`: so many members train at once, `width` side by side (`vmap`) on each device; more members
  follow in waves. *Chosen* is what the engine takes by itself; *best* is the fastest of those raced, by luck too, so
  that chosen / best is a little above 1 even where the choice is right.
- *GFLOP/s*: the operations of the step's matrix products, counted in the traced gradient (formulas: `cl_jax/flops.py`),
  over its time; batch, optimizer and everything elementwise are in the time and not in the count. *Share of peak*: over
  the rate of the fastest large float32 matrix product, timed in the same rounds.
- *PyTorch*: the plain loop of its tutorials, float32 tensors in memory, default optimizers, all cores, eager.
- *scan by hand*: the same step as a bare `jax.lax.scan` with optax: no methods, no member axis, no divergence flag.
- *Fisher*: seconds over examples of `diagonal_fisher`; `vmap(jacrev)` is the textbook's exact one.
"""


def readme(rows: Sequence[Row], environment: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """The notebook; without rows only what they would mean."""
    if not rows:
        return HEAD
    parts = [HEAD, _about(environment), _targets(rows)]
    parts += [f"![{name.replace('_', ' ')}]({name}.png)\n" for name in figures]
    for title, text in (
        ("Peak", _peak(rows)),
        ("Training steps: ms per member-step by packing", _steps(rows)),
        ("Training steps: GFLOP/s and share of peak by packing", _rates(rows)),
        ("What the engine chooses", _chosen(rows)),
        ("Engine and methods", _overhead(rows)),
        ("Fisher: us per example", _fisher(rows)),
        ("Task boundary", _boundary(rows)),
        ("Compiling: seconds", _compiling(rows)),
        ("Scaling and memory", _scaling(rows)),
        ("Language models", _language(rows)),
    ):
        if text.strip():
            parts.append(f"### {title}\n\n{text}")
    return "\n".join(parts)


def _about(environment: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    busy = environment["load"] > 0.5 * environment["cores"]
    warning = f"\nThe machine was busy (load {environment['load']:.1f}): do not quote these numbers.\n" if busy else ""
    return (
        f"## Measured {environment['date']}\n\n{environment['device']}, {environment['cores']} cores, "
        f"Python {environment['python']}, {versions}; cl_jax {environment['code']}; `{environment['command']}`, "
        f"{environment['seconds'] / 60:.1f} minutes.\n{warning}"
    )


def _targets(rows: Sequence[Row]) -> str:
    def line(one: targets.Verdict) -> list[str]:
        target, found = one.target, one.found
        sign, unit = ">=" if target.least else "<=", f" {target.unit}".rstrip()
        wanted = f"{sign} {number(target.bound)}{unit}"
        if found is None:
            return [target.text, wanted, "not measured", "", ""]
        where = step(found) if found.batch_size else found.model
        where += f", {found.members} members" if (found.members or 1) > 1 else ""
        return [target.text, wanted, f"{with_spread(found)}{unit}", where, "yes" if one.met else "**no**"]

    header = ["target", "wanted", "measured", "worst at", "met"]
    return "### Targets\n\n" + table(header, [line(one) for one in targets.verdicts(rows)])


def _peak(rows: Sequence[Row]) -> str:
    found = select(rows, section="peak", metric="GFLOP/s")
    return pivot(found, {"float32 matmul": lambda r: "GFLOP/s"}, lambda r: r.method, with_spread)


def _trained(rows: Sequence[Row], metric: str) -> list[Row]:
    found = [one for one in select(rows, metric=metric) if one.section in ("mlp", "cnn", "resnet18")]
    return sorted(found, key=lambda one: (one.who != "cl_jax", one.devices or 0, one.width or 0))


def _steps(rows: Sequence[Row]) -> str:
    return pivot(_trained(rows, "ms per member-step"), {"step": step}, packing)


def _rates(rows: Sequence[Row]) -> str:
    shares = {(step(one), packing(one)): one.value for one in _trained(rows, "share of peak")}

    def show(one: Row) -> str:
        return f"{number(one.value)} ({100 * shares[step(one), packing(one)]:.0f} %)"

    return pivot(_trained(rows, "GFLOP/s"), {"step": step}, packing, show)


def _chosen(rows: Sequence[Row]) -> str:
    found = [one for metric in ("ms per member-step, chosen", "chosen / best", "PyTorch / cl_jax")
             for one in _trained(rows, metric)]  # fmt: skip
    found.sort(key=lambda r: (r.section != "mlp", r.model, -(r.batch_size or 0), r.optimizer, r.members))
    index = {"step": step, "members": lambda r: r.members, "packing": lambda r: f"{r.devices} x {r.width}"}
    return pivot(found, index, lambda r: r.metric)


def _overhead(rows: Sequence[Row]) -> str:
    found = select(rows, section="overhead")
    hand = [one for one in found if one.metric == "engine / scan by hand"]
    by_hand = pivot(hand, {"engine / scan by hand": lambda r: "one member"}, step, with_spread)
    methods = [one for one in found if one.metric in ("ms per member-step", "overhead %") and one.method != "no method"]
    index = {"step": step, "method": lambda r: r.method}
    return by_hand + "\n" + pivot(methods, index, lambda r: r.metric, with_spread)


def _fisher(rows: Sequence[Row]) -> str:
    found = select(rows, section="fisher", metric="us per example")
    return pivot(found, {"model": lambda r: r.model}, lambda r: r.method if r.who == "cl_jax" else r.who, with_spread)


def _boundary(rows: Sequence[Row]) -> str:
    found = select(rows, section="boundary")
    if not found:
        return ""
    about = f"{step(found[0])}, {found[0].members} members at once, {found[0].tasks} tasks; one boundary.\n\n"
    return about + pivot(found, {"part": lambda r: r.method}, lambda r: r.metric, with_spread)


def _compiling(rows: Sequence[Row]) -> str:
    return pivot(select(rows, section="compile"), {"model": lambda r: r.model}, lambda r: r.method)


def _language(rows: Sequence[Row]) -> str:
    found = select(rows, section="language")
    ours = [one for one in found if one.who == "cl_jax"]
    speeds = [one for one in found if one.metric == "tokens per second"]
    index = {"decoder": lambda r: r.model}
    return (
        pivot(speeds, index, lambda r: r.who, with_spread)
        + "\n"
        + pivot([one for one in ours if one.metric != "tokens per second"], index, lambda r: r.metric, with_spread)
    )


def _scaling(rows: Sequence[Row]) -> str:
    found = select(rows, section="scaling")
    forced = "ms per member-step, forced devices"
    members = [one for one in found if one.tasks is None and one.metric != forced]
    parts = [
        pivot(members, {"members": lambda r: r.members, "packing": packing}, lambda r: r.metric, with_spread),
        pivot([one for one in found if one.tasks is not None], {"tasks": lambda r: r.tasks}, lambda r: r.metric),
        pivot(select(found, metric=forced), {"devices": lambda r: r.devices, "members": lambda r: r.members},
              lambda r: r.metric, with_spread),
        pivot(select(rows, section="memory"), {"members": lambda r: r.members}, lambda r: r.metric),
        _growth(select(rows, section="memory")),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _growth(rows: Sequence[Row]) -> str:
    """What more members take, beside what their state does."""
    found = sorted(rows, key=lambda r: r.members or 0)
    peak, state = select(found, metric="peak MB"), select(found, metric="state MB")
    if len(peak) < 2:
        return ""
    more = (peak[-1].members or 0) - (peak[0].members or 0)
    taken, needed = (number(one[-1].value - one[0].value) for one in (peak, state))
    return f"{step(peak[0])}: {more} more members took {taken} MB; their state is {needed} MB.\n"
