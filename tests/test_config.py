"""Configs as pytrees: what is traced, what is static, and what a user is told."""

import dataclasses

import jax
import pytest

from cl_jax.adapters import Lora
from cl_jax.config import check_fields, child, config, flatten, grid, replace, static, traced
from cl_jax.errors import UserError
from cl_jax.experiment import Dropout, Mlp, Run
from cl_jax.methods.ewc import Ewc
from cl_jax.methods.l2 import L2
from cl_jax.methods.replay import Replay
from cl_jax.optimizers import Adam, Sgd
from cl_jax.tasks import Split


@config
class Inner:
    rate: float = traced(0.5, low=0.1, high=1.0)
    kind: str = static("one", choices=("one", "two"))


@config
class Outer:
    size: int = static(3, low=1)
    widths: tuple[int, ...] = static((4, 5), low=1)
    flag: bool = static(False)
    limit: int | None = static(None, low=2)
    inner: Inner = child(Inner)
    parts: dict[str, Inner] = child(dict)


def test_flatten_names_every_hyper_parameter():
    assert flatten(Outer(parts={"a": Inner(rate=0.25)})) == {
        "size": 3,
        "widths": "4x5",
        "flag": False,
        "limit": None,
        "inner": "inner",
        "inner.rate": 0.5,
        "inner.kind": "one",
        "parts.a": "inner",
        "parts.a.rate": 0.25,
        "parts.a.kind": "one",
    }


def test_later_fields_are_named_where_they_are_not_at_their_default():
    """So that a run of before has its address still."""
    assert flatten(Mlp()) == {"hidden": "100x100", "initialization": "uniform"}
    flat = flatten(Mlp(layer_norm=True, dropout=Dropout(rate=0.25)))
    assert flat.keys() - flatten(Mlp()).keys() == {"layer_norm", "dropout", "dropout.rate"}
    assert flat["layer_norm"] is True and (flat["dropout"], flat["dropout.rate"]) == ("dropout", 0.25)


@config
class Grown:
    old: float = traced(1.0)
    rate: float = traced(0.5, later=True)
    kind: str = static("one", later=True)
    part: Inner | None = child(optional=Inner, later=True)


def test_later_fields_of_every_role():
    assert flatten(Grown()) == {"old": 1.0} == flatten(Grown(rate=0.5, kind="one", part=None))
    assert flatten(Grown(rate=1, kind="two")) == {"old": 1.0, "rate": 1.0, "kind": "two"}
    assert flatten(Grown(part=Inner())) == {"old": 1.0, "part": "inner", "part.rate": 0.5, "part.kind": "one"}
    assert replace(Grown(part=Inner()), {"part.rate": 0.75}) == Grown(part=Inner(rate=0.75))
    assert jax.tree.structure(Grown()) != jax.tree.structure(Grown(part=Inner()))


def test_flatten_a_run():
    flat = flatten(Run(optimizer=Sgd(learning_rate=0.2), methods={"ewc": Ewc(strength=3.0)}))
    assert flat["optimizer"] == "sgd" and flat["optimizer.learning_rate"] == 0.2
    assert flat["methods.ewc"] == "ewc" and flat["methods.ewc.strength"] == 3.0
    assert flat["model.hidden"] == "100x100" and flat["steps"] == 500


def test_traced_fields_are_the_leaves():
    run = Run(optimizer=Adam(), methods={"ewc": Ewc(), "replay": Replay()})
    leaves = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(run)}
    flat = {f".{name}" for name, value in flatten(run).items() if isinstance(value, float)} - {".validation"}
    assert {leaf.replace("['", ".").replace("']", "") for leaf in leaves} == flat


def test_traced_differences_share_a_structure_and_static_ones_do_not():
    run = Run(optimizer=Sgd(), adapter=Lora(), methods={"ewc": Ewc(), "replay": Replay()})
    structure = jax.tree.structure(run)
    for path, value in [
        ("optimizer.learning_rate", 0.3), ("optimizer.momentum", 0.9), ("methods.ewc.strength", 1e4),
        ("methods.ewc.decay", 0.5), ("adapter.alpha", 4.0), ("schedule.rate", 0.5),
    ]:  # fmt: skip
        assert jax.tree.structure(replace(run, {path: value})) == structure, path
    for path, value in [
        ("steps", 10), ("batch_size", 8), ("scenario", "class"), ("model", Mlp(hidden=(10,))), ("stream", Split()),
        ("optimizer", Adam()), ("optimizer.reset", True), ("methods", {"ewc": Ewc()}), ("methods.ewc.kind", "argmax"),
        ("methods", {"other": Ewc(), "replay": Replay()}), ("methods.ewc", L2()), ("adapter.rank", 2),
        ("methods.replay.capacity", 5), ("exposure", "all"), ("data", "tfds:mnist"), ("validation", 0.2),
    ]:  # fmt: skip
        assert jax.tree.structure(replace(run, {path: value})) != structure, path


def test_replace_copies():
    outer = Outer(parts={"a": Inner()})
    changed = replace(outer, {"parts.a.rate": 0.75, "size": 9, "inner.kind": "two"})
    assert changed == Outer(size=9, inner=Inner(kind="two"), parts={"a": Inner(rate=0.75)})
    assert outer == Outer(parts={"a": Inner()})
    with pytest.raises(dataclasses.FrozenInstanceError):
        outer.size = 4


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sise", r"unknown hyper-parameter in 'sise': 'sise'; known: .*Did you mean 'size'\?"),
        ("inner.rat", r"unknown hyper-parameter in 'inner.rat': 'rat'; known: kind, rate. Did you mean 'rate'\?"),
        ("parts.b.rate", r"unknown part of 'parts.b.rate' 'b'; known: abc"),
        ("parts.abcd.rate", r"'abcd'; known: abc. Did you mean 'abc'\?"),
        ("size.more", r"unknown hyper-parameter in 'size.more': 'more'"),
    ],
)
def test_replace_names_the_nearest_path(path, message):
    with pytest.raises(UserError, match=message):
        replace(Outer(parts={"abc": Inner()}), {path: 1})


def test_right_fields_pass():
    check_fields(Outer(limit=2, parts={"a": Inner(rate=0.1), "b": Inner(rate=1)}), "here")
    check_fields(Run(methods={"ewc": Ewc(strength=1e13)}, adapter=Lora(), stream=Split()), "here")
    check_fields(Grown(), "here")
    check_fields(Grown(part=Inner()), "here")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Outer(inner=Inner(rate="fast")), r"here.inner.rate: expected a number, was given 'fast' of type str"),
        (Outer(inner=Inner(rate=True)), r"here.inner.rate: expected a number, was given True of type bool"),
        (Outer(inner=Inner(rate=0.05)), r"here.inner.rate: was given 0.05; allowed are finite numbers from 0.1 to 1"),
        (Outer(inner=Inner(rate=1.5)), r"was given 1.5; allowed are finite numbers from 0.1 to 1"),
        (Outer(inner=Inner(rate=float("nan"))), r"here.inner.rate: was given nan; allowed are finite numbers"),
        (Run(optimizer=Sgd(learning_rate=float("inf"))), r"learning_rate: was given inf; allowed are finite numbers"),
        (
            Outer(inner=Inner(kind="tow")),
            r"unknown value of here.inner.kind: 'tow'; known: one, two. Did you mean 'two'",
        ),
        (Outer(parts={"a": Inner(kind="tow")}), r"here.parts.a.kind"),
        (Outer(parts={"a": 3}), r"here.parts.a: expected a config, was given 3 of type int"),
        (Grown(part=3), r"here.part: expected Inner\(\) or None, was given 3"),
        (Grown(part=Inner), r"here.part: expected Inner\(\) or None, was given <class"),
        (Grown(part=Inner(rate=2)), r"here.part.rate: was given 2; allowed are finite numbers from 0.1 to 1"),
        (Outer(inner=Inner), r"here.inner: was given the class Inner; write Inner\(\)"),
        (Outer(size=0), r"here.size: was given 0; the least allowed is 1"),
        (Outer(size=2.0), r"here.size: expected a whole number, was given 2.0"),
        (Outer(size=True), r"here.size: expected a whole number, was given True"),
        (Outer(size=2**31), r"here.size: was given 2147483648; the most allowed is 2147483647"),
        (Outer(widths=4), r"here.widths: expected a tuple of whole numbers such as \(4, 5\), was given 4"),
        (Run(optimizer=Sgd(learning_rate=1e39)), r"learning_rate: was given 1e\+39; allowed are finite numbers"),
        (Outer(widths=(4, 0)), r"here.widths: was given 0; the least allowed is 1"),
        (Outer(limit=1), r"here.limit: was given 1; the least allowed is 2"),
        (Outer(flag=1), r"here.flag: expected True or False, was given 1"),
    ],
)
def test_wrong_fields_are_told(wrong, message):
    with pytest.raises(UserError, match=message):
        check_fields(wrong, "here")


def test_a_misspelt_field_is_told():
    with pytest.raises(
        UserError, match=r"unknown hyper-parameter of Inner: 'rat'; known: kind, rate. Did you mean 'rate'"
    ):
        Inner(rat=0.5)


def test_grid_is_every_combination():
    points = grid(methods__ewc__strength=[1, 2], steps=[5])
    assert points == [{"methods.ewc.strength": 1, "steps": 5}, {"methods.ewc.strength": 2, "steps": 5}]
    assert grid() == [{}]
