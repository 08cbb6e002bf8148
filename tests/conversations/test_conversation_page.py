"""What a person reads of a run: sentences, figure and page agree with its table."""

import json
import re
from pathlib import Path

import bigram_stream as toys
import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest

from cl_jax.conversations import POLICIES, Guard, figures, page, summary
from cl_jax.conversations.guard import ACCEPTED, ROLLED_BACK, SCALED
from cl_jax.conversations.log import KINDS
from cl_jax.errors import UserError
from cl_jax.optimizers import Sgd
from cl_jax.report import drawing

TALKS = toys.talks(15)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("guarded")
    old, params = toys.contrary()
    settings = {"guard": Guard(budget=0.05), "optimizer": Sgd(learning_rate=8.0), "longest": 30}
    about = {"conversations": "talks <b>", "old_text": "text:made"}
    toys.run(out, TALKS, settings, old=old, params=params, about=about, seed=7)
    return out


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("free")
    toys.run(out, TALKS[:5], {"policy": POLICIES["frozen"]()})
    return out


def test_the_table_is_tidy_and_adds_up(guarded: Path) -> None:
    table = pq.read_table(guarded / "adapt.parquet")
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == KINDS
    rows = table.to_pylist()
    assert {(row["policy"], row["budget"], row["seed"]) for row in rows} == {("finetune", 0.05, 7)}
    assert len({(row["conversation"], row["metric"]) for row in rows}) == len(rows), "a value has one address"
    of = {metric: {r["conversation"]: r["value"] for r in rows if r["metric"] == metric} for metric in summary.METRICS}
    assert list(of["nats"]) == list(range(1, 16)) and list(of["old_bits_per_byte"]) == [0, 4, 8, 12, 15]
    assert list(of["guard_bits_per_byte"]) == [0, 2, 4, 6, 8, 10, 12, 14, 15] == [0, *of["update_scale"]]
    for upto in (1, 7, 15):
        nats, untaught, size = (
            sum(value for number, value in of[name].items() if number <= upto)
            for name in ("nats", "untaught_nats", "bytes")
        )
        assert of["bits_per_byte"][upto] == pytest.approx(nats / np.log(2) / size, rel=1e-12)
        assert of["gain"][upto] == pytest.approx((untaught - nats) / np.log(2) / size, rel=1e-9)


def test_the_summary_and_its_sentences(guarded: Path, free: Path) -> None:
    found = summary.read(guarded)
    decisions = [json.loads(line) for line in (guarded / "decisions.jsonl").read_text().splitlines()]
    counts = {name: sum(each["decision"] == name for each in decisions) for name in (ACCEPTED, SCALED, ROLLED_BACK)}
    assert found.outcomes() == counts and sum(counts.values()) == 8 and counts[ACCEPTED] and counts[SCALED]
    assert found.over == max(each["bits_per_byte"] - each["base"] for each in decisions) <= 0.05
    assert found.cut == sum(len(talk.text) + 2 > 30 for talk in TALKS) > 0
    said = " ".join(summary.sentences(found, "text:made"))
    learned = found.curves["bits_per_byte"].last
    assert f"15 conversations, {found.bytes} bytes of replies: {learned:.4f} bits per byte" in said
    assert f"Learning by finetune saved {found.gain:.4f} bits per byte" in said and found.gain > 0
    assert f"({found.forgetting:+.4f})" in said and f"{found.cut} conversations were too long" in said
    assert f"{counts[ACCEPTED]} rounds accepted, {counts[SCALED]} scaled back, {counts[ROLLED_BACK]} rolled" in said
    still = summary.read(free)
    assert still.gain == still.forgetting == 0 and np.isnan(still.over)
    assert len(list(summary.sentences(still, "x"))) == 2
    with pytest.raises(UserError, match=r"no adapt.parquet in .*: give the output folder of `cl-jax adapt`"):
        summary.read(free / "elsewhere")


def test_the_figure_shows_every_decision_where_it_was_taken(guarded: Path, free: Path) -> None:
    found = summary.read(guarded)
    with matplotlib.rc_context(drawing.STYLE):
        above, below = figures.draw(found).axes
        names = [text.get_text() for text in figures.draw(summary.read(free)).legends[0].get_texts()]
    assert names == ["never learning", "frozen", "old text, test split"]
    learned = above.lines[1].get_xydata()
    assert np.array_equal(learned[:, 1], found.curves["bits_per_byte"].value) and len(learned) == 15
    budget = next(line for line in below.lines if line.get_linestyle() == "--")
    assert np.ravel(budget.get_ydata())[0] == 0.05
    marked = {line.get_marker(): line.get_xydata() for line in below.lines if line.get_linestyle() == "None"}
    guard = dict(zip(*found.curves["guard_bits_per_byte"].__dict__.values(), strict=True))
    scale = dict(zip(*found.curves["update_scale"].__dict__.values(), strict=True))
    assert {marker: len(points) for marker, points in marked.items()} == {
        marker: count
        for marker, count in (("v", found.outcomes()[SCALED]), ("x", found.outcomes()[ROLLED_BACK]))
        if count
    }
    for marker, points in marked.items():
        for conversation, value in points:
            assert value == guard[conversation] - guard[0] and (scale[conversation] == 0) == (marker == "x")


def test_the_page_is_one_file_that_asks_nobody_for_anything(guarded: Path, free: Path) -> None:
    html = page.write(guarded).read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", html) and "<script" not in html
    assert "talks &lt;b&gt;" in html and "talks <b>" not in html
    assert (
        "Rounds that the guard stopped" in html
        and html.count("scaled back</td>") == summary.read(guarded).outcomes()[SCALED]
    )
    assert "Rounds that the guard stopped" not in page.write(free).read_text()
    names = {path.name for path in (guarded / "report").iterdir()}
    assert names == {"report.html", "adapt.svg", "adapt.pdf", "adapt.png"}
