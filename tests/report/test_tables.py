"""The summary and the four formats it is written in."""

import csv
import io
import re

import numpy as np
import pyarrow as pa
import pytest

from cl_jax.errors import UserError
from cl_jax.report import render_table, summary
from cl_jax.report.settings import short_names
from cl_jax.report.summary import SPREADS

ODD = r"_odd $x^2$ <script>alert(1)</script> & 100% | \ ~ #{1} [bold]" + "\x1b[31m"


@pytest.fixture(scope="module")
def odd_rows(make_table):
    methods = {"finetune": [{}], ODD: [{"a.strength": 1.0}, {"a.strength": 2.0}], "[x]": [{}]}
    return summary(make_table(methods, stream="odd <b>/ü"))


def by_method(rows):
    return {row.method: row for row in rows}


def test_numbers(table):
    rows = by_method(summary(table))
    assert list(rows) == ["finetune", "ewc", "replay", "joint"]
    ewc, finetune = rows["ewc"], rows["finetune"]
    assert ewc.chosen == {"strength": 10.0} and ewc.tried == {"strength": [0.1, 1.0, 10.0, 100.0, 1000.0]}
    assert ewc.average_accuracy.n == 3 and len(ewc.members) == 3 and ewc.warnings == [] and ewc.num_tasks == 5
    np.testing.assert_allclose(
        ewc.difference.mean, ewc.average_accuracy.mean - finetune.average_accuracy.mean, rtol=1e-12
    )
    assert ewc.difference.low <= ewc.difference.mean <= ewc.difference.high
    assert finetune.difference is None and finetune.chosen == {}


def test_edge_of_grid(make_table):
    rows = by_method(summary(make_table()))
    assert rows["ewc"].at_edge == []
    rows = by_method(summary(make_table({"ewc": [{"methods.ewc.strength": value} for value in (10.0, 100.0, 1000.0)]})))
    assert rows["ewc"].at_edge == ["strength"]
    for format in ("terminal", "markdown", "latex"):
        text = render_table(list(rows.values()), format).replace("\\*", "*")
        assert "strength 10*" in text and "* the smallest or largest value tried" in text
    kinds = make_table({"ewc": [{"methods.ewc.fisher": kind} for kind in ("exact", "sampled", None)]})
    assert summary(kinds)[0].at_edge == []  # words have no edge


def test_difference_pairs_by_seed(make_table):
    def accuracy(method, config, num_tasks, seed):
        return np.full((num_tasks + 1, num_tasks), 0.1 * seed + (0.05 if method == "other" else 0.0))

    def unfinished(method, config, seed):
        return 1 if (method, seed) in (("other", 0), ("finetune", 4)) else None

    methods = {"finetune": [{}], "other": [{}]}
    rows = by_method(summary(make_table(methods, seeds=range(5), accuracy=accuracy, unfinished=unfinished)))
    difference = rows["other"].difference
    assert difference.n == 3  # seeds 1, 2, 3 finished in both
    np.testing.assert_allclose(difference[:3], 0.05, rtol=1e-9)


def test_partly_finished_runs_are_said_to_be(make_table):
    def unfinished(method, config, seed):
        return 2 if method == "replay" or (method == "ewc" and seed == 2) else None

    rows = by_method(summary(make_table(unfinished=unfinished)))
    assert rows["replay"].average_accuracy.n == 0 and rows["replay"].num_unfinished == 3
    assert any("3 of 3 seeds unfinished (after task 2 of 5)" in note for note in rows["replay"].warnings)
    assert rows["ewc"].average_accuracy.n == 2
    text = render_table(list(rows.values()))
    assert "0/3" in text and "2/3" in text


def test_single_seed_has_no_error(make_table):
    (row,) = summary(make_table({"ewc": [{}]}, seeds=(0,), num_tasks=1))
    text = render_table([row])
    assert "±" not in text and "one seed" in text and "forgetting" not in text and row.difference is None
    assert row.forgetting.mean != row.forgetting.mean  # NaN


def test_diverged_is_said(make_table):
    (row,) = summary(make_table({"ewc": [{}]}, diverged=lambda method, config, seed: seed == 1))
    assert row.num_diverged == 1 and "1 of 3 seeds diverged" in row.warnings


@pytest.mark.parametrize("kind", ["normal", "odd", "wide"])
def test_terminal_fits_100_columns(kind, table, odd_rows, make_table):
    grid = [{f"m.{'x' * 40}": value} for value in (1e-9, 123456.0)]
    wide = {"finetune": [{}], "a very long name of a method, number 1": grid, "a-very-long-name-without-a-space": grid}
    rows = odd_rows if kind == "odd" else summary(table if kind == "normal" else make_table(wide, num_tasks=2))
    text = render_table(rows)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text  # a label must not steer the terminal
    if kind == "normal":
        assert re.search(r"ewc +strength 10 +\d\d\.\d ± \d\.\d .* \+\d\d\.\d \[\+\d\d\.\d, \+\d\d\.\d\]\n", text)
        assert "over 3 seeds" in text and "Fine-tuning, which protects nothing" in text


def test_methods_stand_between_the_bounds_from_low_to_high(table):
    rows = summary(table)
    scores = [row.average_accuracy.mean for row in rows[1:-1]]
    assert scores == sorted(scores) and rows[0].method == "finetune" and rows[-1].method == "joint"


def test_undefined_metrics_have_no_column(make_table):
    for label, defined in (("digits/class", False), ("digits/domain", True)):
        rows = summary(make_table(stream=label))
        assert ("FWT" in render_table(rows, "markdown")) == defined
        line = next(csv.DictReader(io.StringIO(render_table(rows, "csv"))))
        assert (line["forward_transfer_mean"] != "") == defined


def test_same_grids_are_noted_once(make_table):
    grid = [{"a.strength": value} for value in (1.0, 2.0)]
    text = render_table(summary(make_table({"b": grid, "c": grid})))
    assert text.count("tried strength 1, 2") == 1


def test_markdown(odd_rows):
    text = render_table(odd_rows, "markdown")
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {11}
    assert "<script" not in text.replace("\\<script", "")


def unescaped(text: str, character: str) -> int:
    return len(re.findall(r"(?<!\\)(?:\\\\)*" + re.escape(character), text))


def test_latex(odd_rows):
    text = render_table(odd_rows, "latex")
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert [line for line in lines if line.startswith(r"\begin")] == [r"\begin{tabular}{llrrrrrrrr}"]
    assert lines[-1] == r"\end{tabular}"
    assert [line for line in lines if re.fullmatch(r"\\\w+rule", line)] == [r"\toprule", r"\midrule", r"\bottomrule"]
    cells = [line for line in lines if line.endswith(r" \\")]
    assert len(cells) == 1 + 3
    for line in cells:
        body = line.removesuffix(r" \\")
        assert unescaped(body, "&") == 9
        assert unescaped(body, "{") == unescaped(body, "}")
        plain = body.replace(r"$\pm$", "").replace("$-$", "")
        assert not any(unescaped(plain, character) for character in "$#_%^~<>|")
        assert not re.search(r"(^|& )\[", body)
    assert r"\textless{}script\textgreater{}" in text


def test_latex_of_plain_numbers(make_table):
    table = pa.concat_tables([make_table(stream="a_b/domain"), make_table(stream="c/domain")])
    lines = render_table(summary(table), "latex").splitlines()
    (finetune,) = [line for line in lines if line.startswith(r"a\_b/domain & finetune & - & 3 & ")]
    assert re.search(r" & \d\d\.\d \$\\pm\$ \d\.\d & ", finetune)
    assert re.search(r" & \$-\$\d\d\.\d & ", finetune)  # backward transfer: a minus sign, not a hyphen
    assert r"vs finetune [95 \%] \\" in lines[lines.index(r"\toprule") + 1]
    assert lines.count(r"\midrule") == 2  # below the header, and between the streams


def test_csv_is_exact(table, odd_rows):
    rows = summary(table)
    read = list(csv.DictReader(io.StringIO(render_table(rows, "csv"))))
    for row, line in zip(rows, read, strict=True):
        assert float(line["average_accuracy_mean"]) == row.average_accuracy.mean
        assert line["members"].split() == row.members
        for name in SPREADS:
            found = [float(line[f"{name}_{part}"]) for part in ("mean", "std", "sem", "n")]
            assert found == list(getattr(row, name))
    assert read[0]["difference_to_finetune_mean"] == ""
    assert ODD in [line["method"] for line in csv.DictReader(io.StringIO(render_table(odd_rows, "csv")))]


def test_several_streams_have_a_column(make_table):
    rows = summary(pa.concat_tables([make_table(stream="a/domain"), make_table(stream="b/domain")]))
    assert len(rows) == 8
    assert render_table(rows, "markdown").startswith("| stream | method ")
    assert render_table(rows, "latex").count("a/domain &") == 4
    assert [line for line in render_table(rows).splitlines() if line.endswith("/domain, 5 tasks")] == [
        "a/domain, 5 tasks",
        "b/domain, 5 tasks",
    ]


def test_unknown_format(table):
    with pytest.raises(UserError, match=r"unknown table format 'latx'.*Did you mean 'latex'"):
        render_table(summary(table), "latx")


def test_short_names():
    assert short_names(["methods.ewc.strength", "optimizer.learning_rate"]) == {
        "methods.ewc.strength": "strength",
        "optimizer.learning_rate": "learning rate",
    }
    assert list(short_names(["methods.ewc.strength", "methods.si.strength", "strength"]).values()) == [
        "ewc.strength",
        "si.strength",
        "strength",
    ]
