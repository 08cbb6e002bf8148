"""The experiment in miniature: a base is trained, every policy runs, and the table and figure come of it."""

import dataclasses
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pyarrow.parquet as pq
import pytest

from cl_jax.conversations import Adaptation
from cl_jax.models.decoder import Decoder
from cl_jax.report import drawing
from cl_jax.weights import load_weights
from experiments.conversation_stream import __main__ as study
from experiments.conversation_stream import outcome
from experiments.conversation_stream.config import SIZES, Base, Study, entries

TINY = Study(
    base=Base(
        model=Decoder(width=8, layers=1, heads=2), text="text:made_prose?bytes=40000", steps=450, batch_size=4
    ),
    talks=("made_support", "made_prose"),
    number=9,
    settings=Adaptation(context=32, longest=256, every=3, rows=4, steps=2, old_every=2, old_rows=8, old_train=16),
    policies=("finetune",),
    learning_rates=(0.01,),
    budgets=(None, 0.01),
    seeds=(0, 1),
)  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setitem(SIZES, "smoke", TINY)
        study.main(["--size", "smoke", "--out", str(folder)])
    return folder


def test_every_run_is_a_row(out: Path) -> None:
    rows = pq.read_table(out / "conversation_stream.parquet").to_pylist()
    assert [(row["policy"], row["budget"], row["seed"]) for row in rows] == [
        (policy, budget, seed)
        for seed in (0, 1)
        for policy, budget in (("frozen", None), ("finetune", None), ("finetune", 0.01))
    ]
    free, guarded = rows[1], rows[2]
    assert rows[0]["gain"] == rows[0]["forgetting"] == 0 and rows[0]["bits_per_byte"] == free["untaught_bits_per_byte"]
    assert free["gain"] > guarded["gain"] >= 0 and free["forgetting"] > guarded["forgetting"]
    assert guarded["over"] <= 0.01 and guarded["accepted"] + guarded["scaled_back"] + guarded["rolled_back"] == 3
    assert rows[1]["untaught_bits_per_byte"] == pytest.approx(rows[4]["untaught_bits_per_byte"], rel=1e-6)
    assert rows[1]["bits_per_byte"] != rows[4]["bits_per_byte"], "each seed has an order of its own"


def test_the_base_is_a_model_that_has_learned(out: Path) -> None:
    decoder, params, num_tokens = load_weights(out / "base" / "model")
    assert decoder.width == 8 and num_tokens == 256
    assert float(np.abs(np.asarray(params["embedding"]["embedding"])).max()) > 0.2
    assert {path.name for path in (out / "frozen" / "seed-0" / "report").iterdir()} >= {"report.html", "adapt.png"}


def test_the_same_again_trains_nothing(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIZES, "smoke", TINY)
    monkeypatch.setattr("cl_jax.conversations.run._Run", lambda *_: pytest.fail("it trained"))
    monkeypatch.setattr("experiments.conversation_stream.base._train", lambda *_: pytest.fail("it trained"))
    before = (out / "conversation_stream.parquet").read_bytes()
    study.main(["--size", "smoke", "--out", str(out)])
    assert (out / "conversation_stream.parquet").read_bytes() == before
    assert "| finetune | 0.01 | 0.01 |" in capsys.readouterr().out
    monkeypatch.setitem(SIZES, "smoke", dataclasses.replace(TINY, base=dataclasses.replace(TINY.base, steps=9)))
    with pytest.raises(SystemExit) as stopped:
        study.main(["--size", "smoke", "--out", str(out)])
    assert stopped.value.code == 2 and "holds a base of another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--size samll", "unknown size 'samll'; known: full, mini, smoke. Did you mean 'small'"),
        ("--size smoke --seeds 0", "--seeds: was given 0"),
        ("--size mini", "needs a data folder that holds sgd/dialogues_*.json"),
    ],
)
def test_mistakes(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        study.main(words.split())
    assert stopped.value.code == 2
    assert message.split(" Did")[0] in capsys.readouterr().err


def test_the_mean_and_the_figure() -> None:
    one = {"policy": "lora", "learning_rate": 1.0, "budget": 0.02, "seed": 0, "diverged": False, "over": 0.01}
    one |= dict.fromkeys(("bits_per_byte", "gain", "forgetting", "accepted", "scaled_back", "rolled_back"), 1.0)
    two = one | {"seed": 1, "gain": 2.0, "over": 0.015, "diverged": True}
    (mean,) = outcome.averaged([one, two])
    assert (mean["seeds"], mean["gain"], mean["over"], mean["diverged"]) == (2, 1.5, 0.015, 1)
    assert mean["gain_std"] == pytest.approx(0.5**0.5)
    assert "| lora (1 of 2 diverged) | 1 | 0.02 | 1.000 | +1.500 ± 0.707 |" in outcome.table([mean])
    with matplotlib.rc_context(drawing.STYLE):
        (axis,) = outcome.plane([mean]).axes
    assert any(np.array_equal(line.get_xydata(), [[1.0, 1.5]]) for line in axis.lines)


def test_sizes_are_what_they_say() -> None:
    assert {name: (each.number, len(entries(each))) for name, each in SIZES.items()} == {
        "smoke": (60, 9), "mini": (400, 17), "full": (2000, 75),
    }  # fmt: skip
    assert len({entry.folder for entry in entries(SIZES["full"])}) == 75
