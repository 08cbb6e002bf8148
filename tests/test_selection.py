"""Selection protocols against hand-made records with known answers, and against plain loops over random ones."""

from pathlib import Path

import numpy as np
import pytest

from cl_jax import cli, report, results, selection
from cl_jax.errors import UserError
from cl_jax.selection import ALL, Candidates, Choice, parse

# V[c, t, j] of three configurations on three tasks, row 0 before training: the first is best early, the second at the
# end, the third in the middle.
EARLY = [[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.6, 0.8, 0.1], [0.2, 0.3, 0.7]]
LATE = [[0.1, 0.1, 0.1], [0.5, 0.1, 0.1], [0.5, 0.6, 0.1], [0.6, 0.6, 0.6]]
MIDDLE = [[0.1, 0.1, 0.1], [0.8, 0.1, 0.1], [0.8, 0.8, 0.1], [0.5, 0.5, 0.5]]


def records(*configurations: list[list[float]], seeds: tuple[int, ...] = (3, 5)) -> Candidates:
    """The same accuracies for every seed; all finished."""
    accuracy = np.repeat(np.array(configurations)[:, None], len(seeds), axis=1)
    there, not_there = np.ones((2, *accuracy.shape[:2]), bool), np.zeros((2, *accuracy.shape[:2]), bool)
    return Candidates(accuracy, np.array(seeds), there[0], there[1], not_there[0], not_there[1, :, 0])


def random_records(rng: np.random.Generator) -> Candidates:
    """Any number of configurations, coarse accuracies so that there are ties, some of everything that goes wrong."""
    num, seeds, tasks = rng.integers(1, 5), rng.integers(1, 4), rng.integers(1, 5)
    accuracy = rng.integers(0, 4, (num, seeds, tasks + 1, tasks)) / 4
    present = rng.random((num, seeds)) < 0.9
    complete = present & (rng.random((num, seeds)) < 0.8)
    accuracy[~present] = np.nan
    accuracy[:, :, -1][~complete] = np.nan
    return Candidates(
        accuracy, np.arange(seeds), present, complete, present & (rng.random((num, seeds)) < 0.2), rng.random(num) < 0.2
    )


def by_loops(c: Candidates, judges: list[int], after: int) -> int:
    """The configuration that these seeds choose by the accuracy after some tasks; -1: none may be."""

    def rank(index: int) -> tuple:
        finished = [s for s in judges if c.complete[index, s]]
        accuracies = [sum(c.validation[index, s, after, :after]) / after for s in finished]
        known = bool(accuracies) and not any(map(np.isnan, accuracies))
        return (
            any(c.present[index, s] for s in judges),
            bool(finished),
            not any(c.diverged[index, s] for s in judges),
            all(c.complete[index, s] or not c.present[index, s] for s in judges),
            sum(accuracies) / len(accuracies) if known else -np.inf,
        )

    allowed = [index for index in range(len(c.stopped)) if not c.stopped[index]]
    return max(allowed, key=rank, default=-1)


@pytest.mark.parametrize("start", range(4))
def test_every_protocol_equals_plain_loops(start: int) -> None:
    for number in range(100):
        c = random_records(np.random.default_rng(1000 * start + number))
        everyone, num_tasks = list(range(len(c.seeds))), c.validation.shape[-1]
        assert (ALL.choose(c).configuration == by_loops(c, everyone, num_tasks)).all()
        for count in range(1, num_tasks):
            assert (selection.first_tasks(count).choose(c).configuration == by_loops(c, everyone, count)).all()
        for seed in everyone if len(everyone) > 1 else ():
            assert (selection.one_seed(seed).choose(c).configuration == by_loops(c, [seed], num_tasks)).all()
        # The order below the first: without the best, the next one is best.
        order = ALL.choose(c).order
        for best in order[:-1]:
            c.stopped[best] = True
            following = ALL.choose(c).configuration
            assert (following == by_loops(c, everyone, num_tasks)).all()


def test_per_task_equals_plain_loops() -> None:
    for number in range(200):
        c = random_records(np.random.default_rng(number))
        rows = selection.per_task().choose(c).configuration
        for s, t in np.ndindex(rows.shape):
            whole = c._replace(complete=c.complete & (np.arange(len(c.seeds)) == s))
            mine = by_loops(whole, [s], t + 1)
            if mine >= 0 and c.complete[mine, s]:
                assert rows[s, t] == mine, (number, s, t)
            if not c.present[~c.stopped, s].any():
                assert rows[s, t] == -1


def chosen(choice: Choice) -> list[list[int]]:
    return choice.configuration.tolist()


def test_known_answers() -> None:
    c = records(EARLY, LATE, MIDDLE)
    everything = ALL.choose(c)
    assert chosen(everything) == [[1, 1, 1], [1, 1, 1]] and everything.first_task == 1 and everything.seeds.all()
    np.testing.assert_allclose(everything.score, [0.4, 0.6, 0.5])
    assert everything.order.tolist() == [1, 2, 0]

    one, two = selection.first_tasks(1).choose(c), selection.first_tasks(2).choose(c)
    assert chosen(one) == [[0] * 3] * 2 and one.first_task == 2 and one.seeds.all()
    assert chosen(two) == [[2] * 3] * 2 and two.first_task == 3
    np.testing.assert_allclose(two.score, [0.7, 0.55, 0.8])

    assert chosen(selection.per_task().choose(c)) == [[0, 2, 1], [0, 2, 1]]
    assert selection.per_task().choose(c).first_task == 1


def test_one_seed_sees_that_seed_only() -> None:
    c = records(EARLY, LATE, seeds=(3, 5, 8))
    c.validation[0, 1] += 0.3  # seed 5 finds the first best, and the mean over seeds does not
    assert chosen(ALL.choose(c))[0] == [1, 1, 1]
    choice = selection.one_seed(5).choose(c)
    assert chosen(choice) == [[0, 0, 0]] * 3 and choice.seeds.tolist() == [True, False, True]
    c.diverged[0, 2] = True  # of another seed: that is not known when choosing
    assert chosen(selection.one_seed(5).choose(c))[0][0] == 0
    c.diverged[0, 1] = True
    assert chosen(selection.one_seed(5).choose(c))[0][0] == 1


def test_each_seed_chooses_for_itself_per_task() -> None:
    c = records(EARLY, LATE)
    c.validation[0, 1, 3] = 0.9
    assert chosen(selection.per_task().choose(c)) == [[0, 0, 1], [0, 0, 0]]
    c.diverged[0, 1] = True
    assert chosen(selection.per_task().choose(c)) == [[0, 0, 1], [1, 1, 1]]


def test_ties_go_to_the_first() -> None:
    c = records(LATE, LATE, LATE)
    for protocol in (ALL, selection.first_tasks(2), selection.one_seed(3), selection.per_task()):
        assert set(np.ravel(protocol.choose(c).configuration)) == {0}
        assert protocol.choose(c).order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["all", "first:1", "seed:3", "per-task"])
def test_a_stopped_configuration_is_never_chosen(name: str) -> None:
    c = records(EARLY, LATE, MIDDLE)
    c.stopped[[0, 1]] = True
    c.complete[2] = False  # even where what is left has not finished
    assert set(np.ravel(parse(name).choose(c).configuration)) == {2}
    c.stopped[:] = True
    assert set(np.ravel(parse(name).choose(c).configuration)) == {-1}


def test_the_oracle_looks_at_the_reported_seeds_and_tasks() -> None:
    # On test the first configuration is best over all; the second on tasks 2 and 3, and for seed 5.
    first, second = np.array([0.9, 0.4, 0.4]), np.array([0.1, 0.5, 0.5])
    test = records(EARLY, LATE)
    test.validation[0, :, 3], test.validation[1, :, 3] = first, second
    best = {name: selection.oracle(test, parse(name).choose(test)) for name in ("all", "first:1", "seed:3", "per-task")}
    assert {name: choice.order[0] for name, choice in best.items()} == {
        "all": 0, "first:1": 1, "seed:3": 0, "per-task": 0,
    }  # fmt: skip
    np.testing.assert_allclose(best["first:1"].score, [0.4, 0.5])
    test.validation[1, 1, 3] = 0.8
    assert selection.oracle(test, parse("seed:3").choose(test)).order[0] == 1
    test.validation[1, 0, 3] = 0.0
    assert selection.oracle(test, parse("seed:5").choose(test)).order[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("al", "unknown --select 'al'; known: all, first:K, per-task, seed:S. Did you mean 'all'?"),
        ("", "unknown --select ''"),
        ("First:2", "unknown --select 'First:2'"),
        ("first:two", "--select first:two: 'first' needs a whole number, the number of tasks to choose on, as first:3"),
        ("first:", "'first' needs a whole number"),
        ("first:1.5", "'first' needs a whole number"),
        ("first:-1", "'first' needs a whole number"),
        ("seed", "--select seed: 'seed' needs a whole number, as seed:0"),
        ("seed:9999999999", "'seed' needs a whole number"),
        ("all:2", "--select all:2: 'all' takes no number; give all"),
        ("per-task:1", "'per-task' takes no number"),
    ],
)
def test_names_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse(text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first:3", "--select first:3: tasks must be left to report, and there are 3; K may be 1 to 2"),
        ("first:0", "--select first:0: tasks must be left to report, and there are 3; K may be 1 to 2"),
        ("seed:4", "--select seed:4: no run has seed 4; S may be one of 3, 5"),
    ],
)
def test_numbers_that_the_run_does_not_allow(name: str, message: str) -> None:
    with pytest.raises(UserError, match="^" + message + "$"):
        parse(name).choose(records(EARLY, LATE))


def test_too_few_seeds_or_tasks() -> None:
    with pytest.raises(UserError, match="no other seed is left to report; run the experiment with more seeds"):
        parse("seed:3").choose(records(EARLY, seeds=(3,)))
    with pytest.raises(UserError, match="there are 1; one task cannot be parted"):
        parse("first:1").choose(records([[0.1], [0.5]]))


def test_what_a_run_allows() -> None:
    def names(num_tasks: int, *seeds: int, selected: selection.Protocol = ALL) -> list[str]:
        return [each.name for each in selection.suggested(num_tasks, np.array(seeds), selected)]

    assert names(20, 4, 7) == ["all", "first:3", "seed:4", "per-task"]
    assert names(5, 0, 1) == ["all", "first:2", "seed:0", "per-task"] and names(2, 0) == ["all", "first:1", "per-task"]
    assert names(1, 0) == ["all"]
    assert names(5, 0, 1, selected=parse("first:4")) == ["all", "first:4", "seed:0", "per-task"]
    assert names(5, 0, 1, selected=parse("seed:1")) == ["all", "first:2", "seed:1", "per-task"]


def test_words_say_what_is_looked_at_and_what_is_reported() -> None:
    assert ALL.words == "validation accuracy, all tasks, all seeds"
    assert parse("first:1").words.startswith("validation accuracy on task 1 after task 1, all seeds; numbers are of")
    assert "tasks 1 to 3 after task 3" in parse("first:3").words
    assert parse("seed:7").words == "validation accuracy, all tasks, seed 7 alone; numbers are of the other seeds"
    assert "numbers" not in parse("per-task").words and "may be a change of configuration" in parse("per-task").caution


CONFIG = """
from cl_jax.experiment import Experiment, Mlp, Run, sweep
from cl_jax.methods import L2
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Permuted

base = Run(
    stream=Permuted(num_tasks=3), model=Mlp(hidden=(8,)), optimizer=Sgd(), methods={"l2": L2()}, steps=40
)
entries = sweep("l2", base, {"methods.l2.strength": [0.01, 1.0, 100.0]})
experiment = Experiment(name="tiny", description="", entries=entries, seeds=(0, 1, 2))
"""


@pytest.mark.slow
def test_a_real_run_under_every_protocol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cl_jax.report.figures.write_figures", lambda *arguments: [])  # they have their own tests
    (tmp_path / "config.py").write_text(CONFIG)
    out = tmp_path / "out"
    cli.main(["run", str(tmp_path), "--out", str(out), "--quiet"])
    assert (out / "report" / "report.html").is_file()
    table = results.read_table(out)
    assert table["stopped"].to_pylist() == [False] * table.num_rows
    cli.main(["report", str(out), "--select", "per-task"])
    said = " ".join(capsys.readouterr().out.split())
    assert parse("per-task").words in said and f"report: {out / 'report-per-task' / 'report.html'}" in said
    page = (out / "report-per-task" / "report.html").read_text()
    assert parse("per-task").words in page and "What the choice of selection protocol changes" in page
    for name, seeds in (("first:1", 3), ("seed:2", 2)):
        (row,) = report.summary(table, protocol=parse(name))
        assert row.num_complete == seeds and row.average_accuracy.mean > 0.1
    for name, message in (("first:3", "K may be 1 to 2"), ("seed:3", "S may be one of 0, 1, 2")):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", str(out), "--select", name])
        told = capsys.readouterr()
        assert stopped.value.code == 2 and told.out == "" and message in told.err and told.err.count("\n") == 1
