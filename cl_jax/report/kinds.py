"""The two measures: accuracy of images, bits per byte of text; and which of them a stream is in."""

from collections.abc import Callable

import numpy as np
import pyarrow

from cl_jax import bits, metrics
from cl_jax.report.measure import Format, Measure, Metric, Score, Words
from cl_jax.wording import TASKS, Wording

PERCENT, BITS_PER_BYTE = Format(100.0, 1), Format(1.0, 3)
TEXT = "text:"  # what the data of text is called begins so


def _of_tasks(metric: Callable[[np.ndarray], np.ndarray]) -> Score:
    return lambda matrix, initial, first: metric(matrix[:, first - 1 :, first - 1 :])


def _forward_transfer(matrix: np.ndarray, initial: np.ndarray | None, first: int) -> np.ndarray:
    before = None if initial is None else initial[:, first - 1 :]
    return metrics.forward_transfer(matrix[:, first - 1 :, first - 1 :], before)


def _of_domains(metric: Callable[[np.ndarray, int], np.ndarray]) -> Score:
    def score(matrix: np.ndarray, initial: np.ndarray | None, first: int) -> np.ndarray:
        assert initial is not None  # a domain is known to the model from the start
        return metric(np.concatenate([initial[:, None], matrix], axis=1), first)

    return score


ACCURACY = Measure(
    name="accuracy",
    kind="accuracy",
    column="accuracy",
    factor=1.0,
    higher_is_better=True,
    format=PERCENT,
    metrics={
        "average_accuracy": Metric(
            _of_tasks(metrics.average_accuracy), PERCENT, "accuracy", "average accuracy", "over {tasks}, at the end"
        ),
        "average_incremental_accuracy": Metric(
            _of_tasks(metrics.average_incremental_accuracy), PERCENT, "AIA", error=False, brief=False
        ),
        "forgetting": Metric(
            _of_tasks(metrics.forgetting), PERCENT, "forgetting", "", "what the earlier tasks lost since their best"
        ),
        "learning_accuracy": Metric(
            _of_tasks(metrics.learning_accuracy), PERCENT, "learning", "learning accuracy",
            "accuracy on each task just after training on it",
        ),
        "backward_transfer": Metric(
            _of_tasks(metrics.backward_transfer), PERCENT, "BWT", error=False, sign=True, brief=False
        ),
        "forward_transfer": Metric(_forward_transfer, PERCENT, "FWT", error=False, sign=True, brief=False),
    },
    columns=(
        "average_accuracy", "forgetting", "learning_accuracy", "average_incremental_accuracy", "backward_transfer",
        "forward_transfer",
    ),
    end="average_accuracy",
    learning="learning_accuracy",
    words=Words(
        unit=" %",
        step=" points",
        numbers="percent",
        tables="Percent",
        mean="accuracy",
        learns="learns each task to {}",
        learning="learning new tasks to {}",
        against=" against {} %",
        learned="it learned new tasks to {}",
        cost="{} just after learning",
        bound="the upper bound",
    ),
    axis=" (%)",
    learning_axis="learning accuracy (%): learns more →",
    forgetting_axis="forgetting (%): forgets less →",
    range=(0, 100),
    cell_decimals=0,
    first_row=0,
    one_unit=False,
)  # fmt: skip

BITS = Measure(
    name="bits per byte",
    kind="bits",
    column="loss",
    factor=float(bits.PER_NAT),
    higher_is_better=False,
    format=BITS_PER_BYTE,
    metrics={
        "bits_per_byte": Metric(
            _of_domains(bits.final), BITS_PER_BYTE, "bits/byte", "bits per byte", "mean over {tasks}, at the end"
        ),
        "forgetting": Metric(
            _of_domains(bits.forgetting), BITS_PER_BYTE, "forgetting", "",
            "what the earlier domains lost since they were learned",
        ),
        "learning": Metric(
            _of_domains(bits.learning), BITS_PER_BYTE, "learning", "", "what was gained on each domain after the base"
        ),
        "retention": Metric(_of_domains(bits.retention), PERCENT, "retained %", brief=False),
    },
    columns=("bits_per_byte", "forgetting", "learning", "retention"),
    end="bits_per_byte",
    learning="learning",
    words=Words(
        unit=" bits per byte",
        step=" bits per byte",
        numbers="bits per byte",
        tables="Bits per byte (less is better)",
        mean="the mean",
        learns="gains {} on each new domain",
        learning="gaining {} on new domains",
        against=" against {}",
        learned="it gained {} on new domains",
        cost="{} gained on each new domain",
        bound="the bound",
    ),
    axis="",
    learning_axis="learning (bits per byte gained): learns more →",
    forgetting_axis="forgetting (bits per byte lost): forgets less →",
    range=None,
    cell_decimals=2,
    first_row=1,
    one_unit=True,
)  # fmt: skip


def of_table(table: pyarrow.Table, num_tasks: int) -> tuple[Measure, Wording]:
    """The measure and the words of a stream, from the rows of its runs.

    Runs on text are those whose `config.data` begins with "text:"; their tasks go by the names of their domains.
    """
    data = _values(table, "config.data")
    if not data or not all(isinstance(each, str) and each.startswith(TEXT) for each in data):
        return ACCURACY, TASKS
    names = _in_order(domains_of(data[0]), _values(table, "config.stream.order"))
    known = names[:num_tasks] if len(names) >= num_tasks else ()
    return BITS, Wording(score=BITS.name, fall="rise", task="domain", names=known)


def domains_of(data: str) -> tuple[str, ...]:
    """The domains that the name of a text source lists: of `text:code,mine=<folder>?context=128` code and mine."""
    listed = data.removeprefix(TEXT).partition("?")[0].split(",")
    return tuple(each.partition("=")[0].strip() for each in listed)


def _in_order(names: tuple[str, ...], orders: list) -> tuple[str, ...]:
    """The same where a stream repeats its domains, `orders` being such as "0x1x0"; (): not known."""
    if not orders:
        return names
    numbers = str(orders[0]).split("x")
    if len(orders) > 1 or not all(each.isdecimal() and int(each) < len(names) for each in numbers):
        return ()
    visits, shown = dict.fromkeys(names, 0), []
    for number in numbers:
        name = names[int(number)]
        visits[name] += 1
        shown.append(
            name if visits[name] == 1 else f"{name} again" if visits[name] == 2 else f"{name} ({visits[name]})"
        )
    return tuple(shown)


def _values(table: pyarrow.Table, name: str) -> list:
    if name not in table.column_names:
        return []
    return [each for each in table[name].unique().to_pylist() if each is not None]
