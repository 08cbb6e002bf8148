"""Which run of an earlier one a member continues: hand-made runs, and the one that is chosen."""

import dataclasses
import json
from pathlib import Path

import pytest

from cl_jax.errors import UserError
from cl_jax.experiment import Entry, Member, Mlp, Run, address, hyper_parameters
from cl_jax.methods import Ewc
from cl_jax.optimizers import Sgd
from cl_jax.parents import Parent, choose
from cl_jax.tasks import Permuted

RUN = Run(stream=Permuted(num_tasks=4), model=Mlp(hidden=(8,)), optimizer=Sgd(learning_rate=0.2))


def parent_of(label: str, run: Run, seed: int = 0) -> Parent:
    id = address(Entry(label=label, run=run), seed, "sha")
    return Parent(id, id, label, seed, json.loads(json.dumps(hyper_parameters(run))), Path(), 0, 1)


def member_of(label: str, run: Run) -> Member:
    return Member(entry=Entry(label=label, run=run), seed=0, id="")


def ewc_run(strength: float, rate: float = 0.2) -> Run:
    return dataclasses.replace(RUN, methods={"ewc": Ewc(strength=strength)}, optimizer=Sgd(learning_rate=rate))


FAST = dataclasses.replace(RUN, optimizer=Sgd(learning_rate=0.5))
PARENTS = [
    parent_of("plain", RUN), parent_of("plain", FAST), parent_of("plain", RUN, seed=1),
    *[parent_of("ewc", ewc_run(strength, rate)) for strength in (1.0, 10.0) for rate in (0.2, 0.5)],
]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "run", "choice", "expected"),
    [
        ("plain", FAST, "", 1),
        ("ewc", ewc_run(10.0, 0.5), "", 6),
        ("ewc", dataclasses.replace(ewc_run(10.0, 0.5), steps=7), "", 6),  # nearer than the others in everything
        ("new", ewc_run(3.0, 0.5), "plain", 1),
        ("new", ewc_run(3.0, 0.5), "ewc,methods.ewc.strength=1", 4),
        ("new", ewc_run(3.0, 0.1), "ewc,methods.ewc.strength=1,optimizer.learning_rate=0.2", 3),
    ],
)
def test_which_parent(label: str, run: Run, choice: str, expected: int) -> None:
    assert choose(member_of(label, run), "sha", PARENTS, choice, "r") is PARENTS[expected]


@pytest.mark.parametrize(
    ("label", "run", "choice", "message"),
    [
        ("ewc", ewc_run(3.0, 0.5), "", "differ in methods.ewc.strength: 1.0, 10.0; optimizer.learning_rate: 0.2, 0.5"),
        ("new", ewc_run(10.0, 0.5), "", "LABEL is one of ewc, plain"),
        ("new", FAST, "ewc,optimizer.learning_rate=0.5", "differ in methods.ewc.strength"),
    ],
)
def test_no_one_parent(label: str, run: Run, choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(member_of(label, run), "sha", PARENTS, choice, "r")
