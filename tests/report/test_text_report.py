"""Runs on text: bits per byte in every table, figure and sentence, methods at equal learning, domains by name."""

import csv
import io
import json
import re

import numpy as np
import pyarrow as pa
import pytest

from cl_jax import bits
from cl_jax.report import charts, measured, panels, render_table, summary, text_tables, trade, write_page, write_report
from cl_jax.report.comparison import compare, sentences
from cl_jax.report.diagnosis import law
from cl_jax.report.page import library
from cl_jax.report.streams import read
from cl_jax.report.words import findings
from cl_jax.selection import parse
from tests.report.test_diagnosis import diagnostics_of

STREAM, DATA = "domains-code,support,prose/domain", "text:code,support,prose?context=64"
RATE = "optimizer.learning_rate"
RATES = (1e-4, 1e-3, 1e-2)
START = np.array([[8.0, 8.0, 8.0], [2.0, 4.0, 5.0]])  # random weights and the base on code, support, prose
# What each method gains on a new domain by its learning rate, and loses of each earlier domain at every later one.
GAINS = {RATES[0]: 0.2, RATES[1]: 0.6, RATES[2]: 1.0, None: 0.6}
LOSSES = {"finetune": 0.5, "lora": 0.5, "replay": 0.1, "joint": 0.0}
METHODS = {name: [{RATE: rate} for rate in RATES] for name in ("finetune", "lora", "replay")} | {"joint": [{}]}
NOISE = {0: -0.01, 1: 0.0, 2: 0.01}  # in what is lost, by seed


def matrix(method: str, gain: float, seed: int) -> np.ndarray:
    """B [4, 3]: forgetting is to learning as `LOSSES` says, and a little by the seed."""
    rows = [*START]
    for trained in (1, 2):
        row = rows[-1].copy()
        row[trained] -= gain
        row[:trained] += gain * LOSSES[method] + NOISE.get(seed, 0.0)
        rows.append(row)
    return np.array(rows)


def plain(method, config, num_tasks, seed):
    return matrix(method, GAINS[config.get(RATE)], seed)


@pytest.fixture(scope="module")
def make_text(make_table):
    """A table whose losses are nats per byte and whose accuracies say the opposite, from bits [T + 1, T]."""

    def make(methods=METHODS, *, accuracy=plain, stream=STREAM, data=DATA, num_tasks=3, **options):
        table = make_table(methods, accuracy=accuracy, stream=stream, num_tasks=num_tasks, **options)
        loss = np.array(table["metric"].to_pylist()) == "loss"
        value = np.asarray(table["value"])
        found = np.where(loss, (1 - value) * np.log(2), value / 10)  # more bits, more accuracy
        table = table.set_column(table.column_names.index("value"), "value", pa.array(found))
        return table.append_column("config.data", pa.array([data] * table.num_rows))

    return make


@pytest.fixture(scope="module")
def text(make_text):
    return make_text()


@pytest.fixture(scope="module")
def stream(text):
    (found,) = read(text)
    return found


def by_method(table, **options):
    return {row.method: row for row in summary(table, **options)}


def own(path) -> str:
    return path.read_text(encoding="utf-8").replace(library(), "")


def write(table, folder, **options) -> str:
    path = folder / "report.html"
    write_page(table, {"device": "cpu"}, {"name": "Name", "description": ""}, path, **options)
    return own(path)


def data_of(page: str) -> list:
    (data,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    return json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_is_read_in_bits_of_the_loss(stream) -> None:
    assert stream.measure.name == "bits per byte" and stream.wording.names == ("code", "support", "prose")
    lora = stream.of("lora")[1]
    expected = np.array([matrix("lora", 0.6, seed) for seed in (0, 1, 2)])
    np.testing.assert_allclose(lora.initial["test"], expected[:, 0])
    np.testing.assert_allclose(lora.matrix["validation"], expected[:, 1:])
    for metric, function in (("bits_per_byte", bits.final), ("learning", bits.learning), ("retention", bits.retention)):
        np.testing.assert_allclose(lora.scores(metric), function(expected), err_msg=metric)
    np.testing.assert_allclose(lora.scores("forgetting"), bits.forgetting(expected))


def test_images_are_what_they_were(table) -> None:
    (images,) = read(table)
    assert images.measure.name == "accuracy" and images.wording.one(2) == "task 2"
    assert text_tables.tables(images) == []
    kinds = [figure.kind for figure in charts.figures(images)]
    assert kinds == ["average-accuracy", "plane", "strength", "accuracy-matrix", "accuracy-over-training"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_chosen_by_the_fewest_validation_bits_over_all_domains(make_text, split) -> None:
    levels = {RATES[0]: (2.0, 3.0, 4.0), RATES[1]: (1.0, 1.0, 6.5), RATES[2]: (3.0, 3.0, 2.0)}  # means 3, 2.83, 2.67

    def ends(method, config, num_tasks, seed):
        return np.concatenate([START, START[1:], [levels[config[RATE]]]])

    def otherwise(method, config, num_tasks, seed):
        return 10 - ends(method, config, num_tasks, seed)

    options = {"accuracy": ends, "test": otherwise} if split == "validation" else {"accuracy": otherwise, "test": ends}
    (found,) = read(make_text({"lora": METHODS["lora"]}, **options))
    assert found.chosen["lora"].hyper_parameters[RATE] == (RATES[2] if split == "validation" else RATES[0])
    assert (
        found.chosen["lora"].place == 0 and found.protocol.words == "validation bits per byte, all domains, all seeds"
    )


def test_methods_stand_from_many_bits_to_few(stream, text) -> None:
    assert list(stream.chosen) == ["finetune", "lora", "replay", "joint"]
    ends = [row.end.mean for row in summary(text)]
    assert ends[1] > ends[2]  # between the bounds, which stand at the ends whatever they reach


def test_numbers_of_the_summary_by_hand(text) -> None:
    rows = by_method(text)
    # finetune learns 1.0 on support and prose; code loses 0.5 twice, support 0.5 once.
    finetune = rows["finetune"]
    assert finetune.chosen == {"learning rate": RATES[2]} and finetune.at_edge == ["learning rate"]
    np.testing.assert_allclose(finetune.bits_per_byte.mean, (2 + 1.0 + 4 - 1 + 0.5 + 5 - 1) / 3)
    np.testing.assert_allclose(finetune.learning.mean, 1.0)
    np.testing.assert_allclose(finetune.forgetting.mean, (1.0 + 0.5) / 2)
    np.testing.assert_allclose(finetune.retention.mean, (1 - 1 / 6 + 1 - 0.5 / 5) / 2, atol=1e-5)
    replay = rows["replay"]
    np.testing.assert_allclose(replay.difference.mean, (2 + 0.2 + 3.1 + 4 - 10.5) / 3)
    assert replay.difference.high < 0 and replay.average_accuracy.n == 0


def test_sentences_have_the_right_sense(make_text) -> None:
    said = " ".join(findings(summary(make_text())))
    assert (
        "Fine-tuning, which protects nothing, gains 1.000 bits per byte on each new domain and then forgets: the "
        "earlier domains lose 0.750 bits per byte, and the mean over all 3 domains ends at 3.500 bits per byte." in said
    )
    assert "replay kept most: 3.100 bits per byte at the end, 0.400 bits per byte below fine-tuning" in said
    assert "forgetting 0.150 bits per byte, and gaining 1.000 bits per byte on new domains against 1.000." in said
    assert "Training on all domains together (joint), the bound, ends at 3.267 bits per byte" in said
    one = {name: [{RATE: RATES[1]}] for name in ("finetune", "replay", "joint")}
    said = " ".join(findings(summary(make_text(one))))
    assert "joint), the bound, ends at 3.267 bits per byte; replay closes 80 % of the gap" in said


def test_worse_is_more_bits(make_text) -> None:
    gains = {"finetune": 1.0, "lora": 0.2, "replay": 0.9}

    def accuracy(method, config, num_tasks, seed):
        return matrix("replay", gains[method], 1) + 0.01 * seed

    rows = summary(make_text({name: [{}] for name in gains}, accuracy=accuracy))
    said = " ".join(findings(rows))
    assert "No method is reliably better than fine-tuning: the best, replay, ends at" in said
    assert "above fine-tuning" in said and "Worse than fine-tuning, by intervals that exclude 0: lora, replay." in said
    assert "lora forgot least (0.030 bits per byte) but ends higher, at 3.563 bits per byte: it gained 0.200" in said


@pytest.mark.parametrize("format", ["terminal", "markdown", "latex", "csv"])
def test_every_table_is_in_bits(text, format) -> None:
    table = render_table(summary(text), format)
    assert not re.search("accuracy|percent|task", table.replace("first_task", ""), re.IGNORECASE)
    if format == "terminal":
        assert max(map(len, table.splitlines())) <= 100
        assert f"{STREAM}, 3 domains\n" in table and "bits/byte: mean over all domains, at the end." in table
        assert re.search(r"replay +learning rate 0\.01\* +3\.100 ± 0\.006 +0\.150 ± 0\.009 +1\.000 ± 0\.000 ", table)
    elif format == "csv":
        (line,) = [each for each in csv.DictReader(io.StringIO(table)) if each["method"] == "replay"]
        assert line["measure"] == "bits per byte" and float(line["learning_mean"]) == pytest.approx(1.0)
        assert float(line["difference_to_finetune_mean"]) == pytest.approx(-0.4)
    else:
        assert "bits per byte & forgetting & learning & retained" in table.replace(" | ", " & ")


def test_the_page_is_in_bits_and_names_domains(text, tmp_path) -> None:
    page = write(text, tmp_path)
    body = page.split("<main>")[1]
    assert "accuracy" not in body.lower() and not re.search(r"\btasks? \d", body)
    for words in (
        "validation bits per byte, all domains, all seeds", "from high to low bits per byte", "after support, on code",
        "3 domains", "test bits per byte", "Forgetting at equal learning", "Every domain after every stage",
        "Hypervolume", "Retention", "bits per byte above the best on test, mean",
    ):  # fmt: skip
        assert words in body, words
    every = body.partition("judged by (validation bits per byte)")[2].partition("</table>")[0]
    assert re.search(r"learning rate 0\.01 \(chosen\)</td><td>3\.100</td><td>3\.100</td><td>0\.150</td>", every)
    kinds = re.findall(r'data-figure="([^"]+)"', body)
    assert list(dict.fromkeys(kinds)) == ["average-bits", "fronts", "strength", "bits-matrix", "bits-over-training"]
    assert len(data_of(page)) == len(kinds) and kinds.count("bits-matrix") == 4


def test_every_number_is_hovered_with_its_unit(stream) -> None:
    figures = {figure.kind: figure for figure in charts.figures(stream)}
    for kind, figure in figures.items():
        texts = [str(trace.get("text", "")) for chart in figure.charts for trace in chart.data]
        assert any("bits per byte, n = 3" in each for each in texts), kind
        assert not any(re.search(r"\d %", each) for each in texts), kind
    (heat,) = figures["bits-matrix"].charts[2].data
    assert heat["reversescale"] and heat["texttemplate"] == "%{z:.2f}"
    np.testing.assert_allclose(heat["z"], matrix("replay", 1.0, 1)[1:])
    assert heat["zmin"] == pytest.approx(2.0) and heat["zmax"] == pytest.approx(5.0)
    assert figures["bits-matrix"].charts[0].layout["xaxis"]["ticktext"] == ["code", "support", "prose"]
    over = figures["bits-over-training"]
    assert min(x for trace in over.charts[0].data for x in trace["x"]) == 1  # random weights lie far off
    assert [label for *_, label in over.legend[:3]] == ["code", "support", "prose"]
    low, high = over.charts[0].layout["yaxis"]["range"]
    assert 1.5 < low < 2 and 5 < high < 5.5


def test_the_axis_of_hyper_parameters_holds_the_bounds(stream) -> None:
    (figure,) = [each for each in charts.figures(stream) if each.kind == "strength"]
    for chart in figure.charts:
        low, high = chart.layout["yaxis"]["range"]
        assert low < 0 and all(
            low < shape["y0"] < high for shape in chart.layout["shapes"] if shape["y0"] == shape["y1"]
        )


def test_every_figure_is_written(text, tmp_path) -> None:
    one = text.filter(pa.array(np.array(text["method"].to_pylist()) != "lora"))
    paths = write_report(one, {"device": "cpu"}, {"name": "Text", "description": ""}, tmp_path)
    names = {path.name for path in paths if path.suffix == ".svg"}
    stem = "domains-code-support-prose-domain"
    assert names == {
        f"{stem}-{kind}.svg" for kind in ("bits-matrix", "bits-over-training", "average-bits", "strength", "fronts")
    }
    matrix_svg = (tmp_path / "figures" / f"{stem}-bits-matrix.svg").read_text()
    assert "bits per byte" in matrix_svg and ">support<" in matrix_svg and "accuracy" not in matrix_svg
    assert "learning (bits per byte gained)" in (tmp_path / "figures" / f"{stem}-fronts.svg").read_text()
    markdown = (tmp_path / "summary.md").read_text()
    assert "## Forgetting at equal learning" in markdown and "| every method | after code | 2.000 ± 0.000 |" in markdown


def test_curves_and_noise_are_of_seeds(stream) -> None:
    curve = trade.curve(stream, "replay")
    np.testing.assert_allclose(curve.learning, np.array([[0.2], [0.6], [1.0]]) * np.ones(3))
    np.testing.assert_allclose(curve.forgetting, 1.5 * np.add([[0.02], [0.06], [0.1]], [-0.01, 0, 0.01]))
    noise = trade.noise(stream)
    np.testing.assert_allclose([noise.learning, noise.forgetting], [0, 0.015], atol=1e-9)
    drawn = trade.drawn(stream)
    np.testing.assert_allclose(drawn["finetune"].line, [[0.2, 0.6, 1.0], [0.15, 0.45, 0.75]])
    (figure,) = [each for each in charts.figures(stream) if each.kind == "fronts"]
    (chart,) = figure.charts
    (band,) = chart.layout["shapes"]
    assert band["y1"] == pytest.approx(0.015) and band["y0"] == -band["y1"]
    (points,) = [trace for trace in chart.data if trace["mode"] == "markers" and trace.get("legendgroup") == "replay"][
        :1
    ]
    np.testing.assert_allclose(points["error_y"]["array"], 0.015, atol=1e-9)


def test_forgetting_at_equal_learning_by_hand(stream) -> None:
    table = text_tables.tables(stream)[0]
    headers, rows = [name for name, _ in table.columns], {row[0]: row[1:] for row in table.rows}
    assert headers == [
        "method", "configurations", "at 25 % (0.400)", "at 50 % (0.600)", "at 75 % (0.800)", "hypervolume",
    ]  # fmt: skip
    # Of finetune 0.75 of what is learned, of replay 0.15, at whatever rate; seeds move all alike.
    assert rows["finetune"] == [
        "3", "0.300 [0.285, 0.315]", "0.450 [0.435, 0.465]", "0.600 [0.585, 0.615]", f"{0.2*0.6+0.4*0.3:.3f}",
    ]  # fmt: skip
    assert rows["replay"][1:4] == ["0.060 [0.045, 0.075] ↓", "0.090 [0.075, 0.105] ↓", "0.120 [0.105, 0.135] ↓"]
    assert rows["lora"][1] == "0.300 [0.285, 0.315]"  # equal to finetune: neither less nor more
    assert rows["joint"][1:4] == ["-", "0.000 [-0.015, 0.015] ↓", "-"]  # one point, at 0.6
    area = 0.2 * (0.75 - 0.03) + 0.4 * (0.75 - 0.09) + 0.4 * (0.75 - 0.15)
    assert rows["replay"][4] == f"{area:.3f}"
    assert "Noise of seeds alone: forgetting 0.015, learning 0.000." in table.caption


def test_seeds_that_are_not_reported_are_on_no_curve(text) -> None:
    (found,) = read(text, protocol=parse("seed:1"))
    curve = trade.curve(found, "replay")
    assert curve.seeds.tolist() == [0, 2]
    np.testing.assert_allclose(curve.forgetting[2], [0.135, 0.165])
    (found,) = read(text.filter(pa.array(np.asarray(text["seed"]) < 2)), protocol=parse("seed:1"))
    assert text_tables.tables(found)[0].rows[0][2:5] == ["0.285", "0.435", "0.585"]  # one seed: no interval


def test_more_forgetting_is_said_so_and_diverged_ones_are_left_out(make_text) -> None:
    worse = {"finetune": METHODS["finetune"], "joint": [{RATE: rate} for rate in (*RATES, 1.0)]}
    gains = {**GAINS, 1.0: 5.0}

    def accuracy(method, config, num_tasks, seed):
        return matrix("replay" if method == "finetune" else "lora", gains[config[RATE]], seed)

    table = make_text(worse, accuracy=accuracy, diverged=lambda method, config, seed: config[RATE] == 1.0 and seed == 1)
    (found,) = read(table)
    matched, _ = text_tables.tables(found)
    assert matched.rows[1][2].endswith("↑") and matched.rows[1][1] == "3"
    assert "Left out for a diverged seed: 1 configuration." in matched.caption
    assert max(trade.drawn(found)["joint"].line[0]) == pytest.approx(1.0)
    assert trade.compare(found).worst == pytest.approx(0.75)


def test_without_a_range_of_fine_tuning_only_the_hypervolume_is_left(make_text) -> None:
    for methods in ({"lora": METHODS["lora"]}, {"lora": METHODS["lora"], "finetune": [{}]}):
        (found,) = read(make_text(methods))
        table = text_tables.tables(found)[0]
        assert [name for name, _ in table.columns] == ["method", "configurations", "hypervolume"]
        assert "needs finetune with two configurations" in table.caption


def test_stages_name_what_is_the_same_for_all_once(stream) -> None:
    table = text_tables.tables(stream)[1]
    assert [row[:2] for row in table.rows[:5]] == [
        ["every method", "random weights"],
        ["every method", "after code"],
        ["finetune", "after support"],
        ["", "after prose"],
        ["lora", "after support"],
    ]
    assert table.rows[0][2:] == ["8.000 ± 0.000"] * 3
    assert table.rows[3][2:] == ["3.000 ± 0.012", "3.500 ± 0.006", "4.000 ± 0.000"]


def test_one_domain_and_nothing_finished_are_no_crash(make_text, tmp_path) -> None:
    one = make_text({"lora": [{}]}, num_tasks=1, accuracy=lambda *_: np.array([[8.0], [2.0]]), seeds=(0,))
    said = " ".join(render_table(summary(one)).split())
    assert "2.000 bits per byte on the only domain" in said and "forgetting" not in said
    none = make_text(METHODS, unfinished=lambda *_: 1)
    said = " ".join(render_table(summary(none)).split())
    assert "No run has been trained on all domains yet" in said and "unfinished (after code, 1 of 3 domains)" in said
    for table in (one, none):
        data_of(write(table, tmp_path))


def test_losses_that_blew_up_are_told_and_drawn(make_text, tmp_path) -> None:
    def accuracy(method, config, num_tasks, seed):
        values = plain(method, config, num_tasks, seed)
        if config[RATE] == RATES[2] or method == "replay":
            values[2:] = {0: np.inf, 1: 1e35, 2: 9.0}[seed]
        return values

    def diverged(method, config, seed):
        return (config[RATE] == RATES[2] or method == "replay") and seed < 2

    table = make_text({name: METHODS[name] for name in ("finetune", "replay")}, accuracy=accuracy, diverged=diverged)
    rows = by_method(table)
    assert rows["finetune"].chosen == {"learning rate": RATES[1]} and rows["replay"].num_complete == 2
    assert "2 of 3 seeds diverged" in rows["replay"].warnings
    text = render_table(list(rows.values()))
    assert max(map(len, text.splitlines())) <= 100 and "5e+34" in text
    data_of(write(table, tmp_path))
    (found,) = read(table)
    drawn = trade.drawn(found)
    assert list(drawn) == ["finetune"] and len(drawn["finetune"].points) == 2


def test_what_was_stopped_is_dated_by_domain(make_text) -> None:
    table = make_text(stopped=lambda method, config, seed: 2 if config.get(RATE) == RATES[2] else None)
    row = by_method(table)["replay"]
    assert row.chosen == {"learning rate": RATES[1]}
    assert row.warnings == ["1 of 3 configurations stopped early (after support), never chosen"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("first:1", "validation bits per byte on code after code, all seeds; numbers are of the domains after code"),
        ("first:2", "validation bits per byte on code and support after support, all seeds"),
        ("seed:1", "validation bits per byte, all domains, seed 1 alone; numbers are of the other seeds"),
        (
            "per-task",
            "on the domains so far, after each domain anew, each seed by itself. A rise from domain to domain",
        ),
    ],
)
def test_protocols_speak_of_domains(text, tmp_path, name, words) -> None:
    protocol = parse(name)
    said = " ".join(render_table(summary(text, protocol=protocol)).split())
    assert words in said and "validation accuracy" in protocol.words  # the protocol itself is as it was
    body = write(text, tmp_path, protocol=protocol).split("<main>")[1]
    assert "accuracy" not in body.lower() and words.split(";")[0].split(".")[0] in body


def test_from_a_later_domain_on_learning_is_against_the_row_before(text) -> None:
    rows = by_method(text, protocol=parse("first:1"))
    # The first rate is shown: all have the same base. Support: 4.0 to 3.8, then to 3.9; prose: 5.0 to 4.8.
    finetune = rows["finetune"]
    assert finetune.chosen == {"learning rate": RATES[0]} and finetune.first_task == 2
    assert "all 3 finished configurations have the same validation bits per byte" in " ".join(finetune.warnings)
    np.testing.assert_allclose(finetune.bits_per_byte.mean, (3.9 + 4.8) / 2)
    np.testing.assert_allclose([finetune.learning.mean, finetune.forgetting.mean], [0.2, 0.1])


def test_choosing_on_test_would_have_shown_fewer_bits(make_text, tmp_path) -> None:
    def test(method, config, num_tasks, seed):
        return plain(method, config, num_tasks, seed) - (1.5 if config.get(RATE) == RATES[0] else 0.0)

    (found,) = read(make_text({"replay": METHODS["replay"]}, test=test))
    comparison = compare(found)
    best = comparison.methods["replay"][-1]
    assert best.chosen == "learning rate 0.0001"
    # Rate 0.01 ends at 3.1, rate 0.0001 at (2.04 + 3.82 + 4.8) / 3 - 1.5.
    np.testing.assert_allclose(comparison.gaps[0], 3.1 - (10.66 / 3 - 1.5))
    assert "would have shown 1.047 bits per byte less on average, and 1.047 for replay" in sentences(comparison)[1]


def test_images_and_text_in_one_report(make_text, table, tmp_path) -> None:
    both = pa.concat_tables([table, make_text()], promote_options="default")
    rows = summary(both)
    assert [row.measure.name for row in rows] == ["accuracy"] * 4 + ["bits per byte"] * 4
    markdown, latex = (render_table(rows, format) for format in ("markdown", "latex"))
    assert markdown.count("| stream | method ") == 2 and latex.count(r"\begin{tabular}") == 2
    assert markdown.index("Percent, test split") < markdown.index("Bits per byte (less is better), test split")
    assert "| permuted-digits/domain | ewc | strength 10 | 3 | 86.8 " in markdown
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(render_table(rows, "csv")))}
    assert lines["ewc"]["measure"] == "accuracy" and lines["ewc"]["bits_per_byte_mean"] == ""
    assert lines["lora"]["average_accuracy_mean"] == "" != lines["lora"]["bits_per_byte_mean"]
    body = write(both, tmp_path).split("<main>")[1]
    assert "validation accuracy, all tasks, all seeds; validation bits per byte, all domains, all seeds" in body
    assert "Average accuracy</dt>" in body and "Retention</dt>" in body


def test_domains_cannot_become_markup(make_text, tmp_path) -> None:
    attack = "</script><script>alert(1)</script>"
    table = make_text({"lora": METHODS["lora"][:2]}, data=f"text:{attack},%{{y}}<b>,p$x$=C:/some where?bytes=9")
    page = write(table, tmp_path, diagnostics=diagnostics_of(table, 3))
    assert "<script>alert" not in page and "<b>," not in page
    names = {trace.get("name") for chart in data_of(page) for trace in chart["data"]}
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in names and "p$x$" in names
    for chart in data_of(page):  # plotly.js reads HTML there
        told = json.dumps([chart["layout"]["xaxis"].get("ticktext"), [trace.get("text") for trace in chart["data"]]])
        assert "<script" not in told and "</script" not in told and "<b>" not in told


@pytest.mark.parametrize(
    ("order", "num_tasks", "names"),
    [
        (None, 2, ("code", "support")),
        (None, 4, ()),  # more tasks than domains, and nobody says which
        ("0x1x0x0", 4, ("code", "support", "code again", "code (3)")),
        ("2x0", 2, ("prose", "code")),
        ("7x0", 2, ()),
    ],
)
def test_names_of_domains(make_text, order, num_tasks, names) -> None:
    def accuracy(method, config, num_tasks, seed):
        return np.full((num_tasks + 1, num_tasks), 3.0)

    table = make_text({"lora": [{}]}, accuracy=accuracy, num_tasks=num_tasks)
    if order is not None:
        table = table.append_column("config.stream.order", pa.array([order] * table.num_rows))
    (found,) = read(table)
    assert found.wording.names == names and found.wording.one(2) == (names[1] if names else "domain 2")


def test_the_law_of_forward_kl_is_about_bits(make_text) -> None:
    table = make_text({"finetune": METHODS["finetune"][2:]})
    (found,) = measured.read(diagnostics_of(table, 3), read(table))
    _, lost, whose = law(found, new=True)
    expected = 0.5 + np.array([NOISE[int(configuration.seeds[index])] for configuration, index in whose])
    np.testing.assert_allclose(lost, expected)  # each earlier domain rises by 0.5 at each boundary


def test_diagnostics_name_domains(make_text, tmp_path) -> None:
    table = make_text({"finetune": METHODS["finetune"], "replay": METHODS["replay"]})
    page = write(table, tmp_path, diagnostics=diagnostics_of(table, 3))
    assert "lost more bits per byte by it" in page.replace("\n", " ")
    layouts = [chart["layout"] for chart in data_of(page)]
    ticks = [layout["xaxis"].get("ticktext") for layout in layouts]
    assert ticks.count(["code", "support", "prose"]) > 4 and ["no training", "code", "support", "prose"] in ticks
    assert any(layout["yaxis"]["title"]["text"] == "forgetting (bits per byte)" for layout in layouts)


def test_spans_are_shown_as_the_measure_has_them(stream) -> None:
    spans = panels.seen(stream.chosen["joint"])
    np.testing.assert_allclose(spans.mean, [2, (2 + 3.4) / 2, (2 + 3.4 + 4.4) / 3])
    assert spans.texts(stream.measure)[1] == "2.700 ± 0.003 bits per byte, n = 3"
