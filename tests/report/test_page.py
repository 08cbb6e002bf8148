"""The HTML page: complete, offline, safe with any label, and drawn without an error by a real browser."""

import html
import json
import re
import shutil
import subprocess

import pyarrow as pa
import pytest

from cl_jax.report import write_page, write_report
from cl_jax.report.page import file_names, library

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
).split()
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
ENVIRONMENT = {"versions": {"jax": "0.10.2"}, "device": "cpu", "command": f"run {ATTACK}", "width": 16}
EXPERIMENT = {"name": f"Name {ATTACK}", "description": "What is forgotten."}
CHARTS = {  # of the page below: one for each stream, swept number, or method
    "average-accuracy": 1 + 1,
    "plane": 1 + 1,
    "strength": 2 + 1,
    "accuracy-matrix": 4 + 2,
    "accuracy-over-training": 4 + 2,
}


@pytest.fixture(scope="module")
def page(make_table, tmp_path_factory):
    """A page of two streams, one with attacks in its labels and gaps in its results."""
    hostile = make_table(
        {ATTACK: [{f"m.{ATTACK}": value} for value in (1.0, 2.0)], "%{x} <b>": [{"kind": ATTACK}, {"kind": "b"}]},
        stream=f"hostile {ATTACK}",
        num_tasks=3,
        unfinished=lambda method, config, seed: 1 if method != ATTACK else None,
        diverged=lambda method, config, seed: config.get(f"m.{ATTACK}") == 2.0,
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(pa.concat_tables([make_table(), hostile], promote_options="default"), ENVIRONMENT, EXPERIMENT, path)
    return path


def browse(path, profile) -> str:
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome on this machine")
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


def own(path) -> str:
    """The page without the plotly.js library, which must be in it once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(library()) == 1
    return text.replace(library(), "")


def test_loads_nothing(page):
    text = own(page)
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//)""", text, re.IGNORECASE)
    assert "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text


def test_labels_cannot_become_markup(page):
    text = own(page)
    assert "<img" not in text and "<script>alert" not in text
    assert len(re.findall(r"</script", text, re.IGNORECASE)) == 4  # counter, data, library, script


def test_says_what_it_must(page):
    text = own(page)
    for words in ("validation accuracy, all tasks, all seeds", "versions.jax", "0.10.2", "What is forgotten."):
        assert words in text
    assert "6 unfinished" in text and "3 diverged" in text and "edge of the grid" in text


def test_opens_with_the_result_in_words(page):
    body = own(page).split("<main>")[1]
    assert body.index("In short") < body.index("kept most") < body.index("<table>") < body.index('class="chart"')
    assert "Fine-tuning, which protects nothing, learns each task to" in body


def test_numbers_trace_to_runs(page, make_table):
    text = own(page)
    assert all(member in text for member in make_table()["member"].unique().to_pylist())


def test_data_is_json_without_nan(page):
    (data,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', own(page), re.DOTALL)
    charts = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(charts) == sum(CHARTS.values())
    # plotly.js reads HTML in names and texts, and the script element ends at the first "</script".
    names = {trace["name"] for chart in charts for trace in chart["data"] if "name" in trace}
    assert html.escape(ATTACK) in names and "%{x} &lt;b&gt;" in names and ATTACK not in names
    assert "<" not in data


def test_browser_draws_every_figure(page, tmp_path):
    # plotly.js ignores attributes it does not know: ask it which ones those are.
    check = """<script>drawing.then(() => { document.documentElement.dataset.invalid =
      JSON.stringify(charts.flatMap((c) => Plotly.validate(c.data, c.layout) || []).map((e) => e.msg)); })</script>"""
    text = page.read_text(encoding="utf-8")
    checked = tmp_path / "checked.html"
    checked.write_text(text.replace("</body>", f"{check}</body>"), encoding="utf-8")
    dom = browse(checked, tmp_path / "profile")
    opening = dom[: dom.index("<head>")]
    assert 'data-script-errors="0"' in opening, opening
    assert 'data-invalid="[]"' in opening, opening
    # Each chart has its picture, with at least one trace.
    drawn = re.split(r'data-figure="', dom[dom.index("<body>") :])[1:]
    counts: dict[str, int] = {}
    for chart in drawn:
        kind = chart[: chart.index('"')]
        counts[kind] = counts.get(kind, 0) + 1
        assert 'class="main-svg"' in chart, kind
        assert 'class="trace' in chart or 'class="hm"' in chart, kind
    assert counts == CHARTS


def test_browser_counts_errors_and_refuses_requests(make_table, tmp_path):
    page = tmp_path / "report.html"
    write_page(make_table({"ewc": [{}]}, num_tasks=1), ENVIRONMENT, EXPERIMENT, page)
    faults = '<script>throw new Error("on purpose")</script><img src="http://127.0.0.1:9/x.png">'
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text(encoding="utf-8").replace("<main>", f"{faults}<main>"), encoding="utf-8")
    dom = browse(broken, tmp_path / "profile")
    (count,) = re.findall(r'data-script-errors="(\d+)"', dom[: dom.index("<head>")])
    assert int(count) >= 2


def test_write_report(make_table, tmp_path):
    table = make_table({"finetune": [{}], "ewc": [{"strength": value} for value in (1.0, 2.0)]}, num_tasks=2)
    paths = write_report(table, {"device": "cpu"}, {"name": "Digits", "description": ""}, tmp_path / "report")
    files = {path.relative_to(tmp_path / "report").as_posix() for path in paths}
    assert {"report.html", "summary.csv", "summary.md", "figures/permuted-digits-domain-plane.pdf"} <= files
    assert len(files) == 3 + 15
    assert files == {
        path.relative_to(tmp_path / "report").as_posix() for path in (tmp_path / "report").rglob("*") if path.is_file()
    }
    first_bytes = {".html": b"<!DOC", ".svg": b"<?xml", ".pdf": b"%PDF-", ".png": b"\x89PNG"}
    for path in paths:
        assert path.read_bytes().startswith(first_bytes.get(path.suffix, b""))


def test_file_names():
    assert file_names(["Split MNIST/class", "split-mnist class", "../../etc", "\u732b", "<b>"]) == [
        "split-mnist-class",
        "split-mnist-class-2",
        "etc",
        "stream",
        "b",
    ]
