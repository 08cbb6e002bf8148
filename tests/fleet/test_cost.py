"""What a sweep costs, against values computed by hand."""

import math
from pathlib import Path

import pytest

from cl_jax import cli
from cl_jax.checkpoint import KEPT_STEPS
from cl_jax.errors import UserError
from cl_jax.fleet import cost
from cl_jax.fleet.cost import Kind, Terms
from cl_jax.fleet.worker import SAVE_SECONDS
from tests.fleet.sweeps import failed, write

EXAMPLE = Terms(chips=4, price=1.5, preemptions=0.2, save_seconds=2.0, restart_minutes=6.0)
KINDS = [
    Kind(shards=3, members=20, seconds=7200.0, timed=True, state_bytes=1_000_000, tasks=5),
    Kind(shards=1, members=10, seconds=1800.0, timed=True, state_bytes=500_000, tasks=1),
]


def test_the_formula_by_hand() -> None:
    """2 s in 600 s, and 0.2 an hour of 5 min lost and 6 min of waiting: 1/300 + 0.2 x 11/60 = 4 %."""
    assert SAVE_SECONDS == 600
    assert cost.overhead(EXAMPLE) == pytest.approx(1 / 300 + 0.2 * 11 / 60)
    assert cost.overhead(EXAMPLE) == pytest.approx(0.04)
    assert cost.overhead(Terms(save_seconds=6), every=60) == pytest.approx(0.1)
    assert cost.overhead(Terms(save_seconds=0, preemptions=1, restart_minutes=30), every=3600) == pytest.approx(1.0)


def test_the_best_interval_is_the_best() -> None:
    """sqrt(2 x 2/3600 / 0.2) hours = sqrt(1/180) hours = 268 s."""
    best = cost.best_interval(EXAMPLE)
    assert best == pytest.approx(3600 / math.sqrt(180)) and round(best) == 268
    for other in (0.9 * best, 1.1 * best):
        assert cost.overhead(EXAMPLE, best) < cost.overhead(EXAMPLE, other)
    assert cost.best_interval(Terms(preemptions=0)) == math.inf
    assert cost.best_interval(Terms(preemptions=1, save_seconds=0)) == 0


def test_hours_and_money() -> None:
    """6.5 hours of training on 4 chips, and 4 % more to pay."""
    assert cost.chip_hours(KINDS, chips=4) == pytest.approx(26.0)
    assert cost.money(KINDS, EXAMPLE, 1.5) == pytest.approx(26 * 1.04 * 1.5)


def test_bytes_of_checkpoints() -> None:
    """Two boundaries and a step inside a task; of one task there is one boundary."""
    assert KEPT_STEPS == 2
    assert [cost.checkpoint_bytes(kind) for kind in KINDS] == [3 * 20_000_000, 2 * 5_000_000]
    assert cost.attempts(KINDS[0], EXAMPLE) == pytest.approx(1 + 0.2 * 2 * 1.04)
    assert cost.attempts(KINDS[0], Terms()) == 1


def test_in_words() -> None:
    said = cost.in_words(KINDS, EXAMPLE)
    assert said[0] == "training: 26 chip-hours (as timed here), the longest shard 2.0 h"
    total = 3 * (1 + 0.416) * 60e6 + (1 + 0.104) * 10e6
    assert said[1].startswith(f"checkpoints: up to {total / 1e6:.3g} MB, 60 MB an attempt at the largest shard")
    assert said[2] == "overhead: 4% of saving every 10 min and of pre-emptions; 3.5% if every 4 min, the best"
    assert said[3] == "money: 40.6 at 1.5 a chip-hour"
    guessed = [KINDS[0]._replace(timed=False)]
    assert "a rough guess" in cost.in_words(guessed, EXAMPLE)[0]
    assert "in part a rough guess" in cost.in_words([*guessed, KINDS[1]], EXAMPLE)[0]
    assert len(cost.in_words(KINDS, Terms())) == 3  # no price is built in


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (Terms(chips=0), "--chips: was given 0; allowed are 1 to"),
        (Terms(price=-1.0), "--price: was given -1.0; give a number from 0"),
        (Terms(preemptions=math.inf), "--preemptions: was given inf"),
        (Terms(save_seconds=-2.0), "--save-seconds: was given -2.0"),
        (Terms(restart_minutes=math.nan), "--restart-minutes: was given nan"),
    ],
)
def test_bad_numbers(terms: Terms, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cost.checked(terms)


def test_shards_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A guess where nothing was timed; money as its own figures have it."""
    experiment = write(tmp_path, 40)
    words = ["shards", str(experiment), "--members", "2", "--out", str(tmp_path / "out")]
    cli.main(words)
    said = capsys.readouterr().out
    assert "a rough guess" in said and "money" not in said and "overhead: 0.33% of saving every 10 min" in said
    # The width of 20 in the middle of digits: 64 x 20 + 20 + 20 x 10 + 10 parameters; EWC holds an anchor and a Fisher.
    largest = float(said.split("checkpoints: up to ")[1].split(" kB, ")[1].split(" kB an attempt")[0]) * 1000
    assert 3 * 2 * 3 * 4 * 1510 <= largest < 1.2 * 3 * 2 * 3 * 4 * 1510
    cli.main([*words[:2], "--hours", "1", "--price", "100", "--chips", "8", "--out", str(tmp_path / "timed")])
    timed = capsys.readouterr().out
    hours, money = (float(timed.split(word)[1].split()[0]) for word in ("training: ", "money: "))
    assert "as timed here" in timed and money == pytest.approx(hours * 100 * (1 + 1 / 300), rel=0.01)
    assert "--price: expected a number" in failed(capsys, *words, "--price", "cheap")
