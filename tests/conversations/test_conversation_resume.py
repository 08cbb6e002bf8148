"""A run that stops anywhere goes on to the same results, bit for bit; and what is not the same run is refused."""

import fcntl
import shutil
from pathlib import Path
from typing import Any

import bigram_stream as toys
import jax
import numpy as np
import pytest

from cl_jax.conversations import POLICIES, Guard, run
from cl_jax.conversations.log import Log
from cl_jax.conversations.progress import Bar
from cl_jax.conversations.standing import Standings
from cl_jax.errors import UserError
from cl_jax.optimizers import Sgd

SETTINGS = {
    "finetune": {"policy": POLICIES["finetune"](), "guard": Guard(budget=0.05), "optimizer": Sgd(learning_rate=10.0)},
    "lora": {"policy": POLICIES["lora"](rank=2), "optimizer": Sgd(learning_rate=0.5)},
    "ewc": {"policy": POLICIES["ewc"](strength=0.3, consolidates=2), "optimizer": Sgd(learning_rate=2.0)},
    "replay": {"policy": POLICIES["replay"](earlier=2, old=2, capacity=10), "guard": Guard(budget=0.02)},
    "frozen": {"policy": POLICIES["frozen"]()},
}
TALKS = toys.talks(9)  # the last round has one
STOPS = ((Log, "add", 1), (Standings, "save", 2), (Bar, "advanced", 2), (Log, "add", 2))


class Stopped(BaseException):
    """As a signal would."""


def go(out: Path, policy: str, documents: Any = TALKS, **given: Any) -> Any:
    old, params = toys.contrary()
    return toys.run(out, documents, SETTINGS[policy], **{"old": old, "params": params} | given)


def tables(out: Path) -> dict[str, bytes]:
    names = ("adapt.parquet", "log.jsonl", "decisions.jsonl")
    return {name: (out / name).read_bytes() for name in names if (out / name).exists()}


def stop_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    """The call of that number, from 1, does not happen."""
    whole, count = getattr(owner, name), 0

    def stops(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            raise Stopped
        return whole(*arguments, **named)

    monkeypatch.setattr(owner, name, stops)


@pytest.mark.parametrize("policy", SETTINGS)
def test_stopped_and_continued_equals_uninterrupted(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(tmp_path / "whole", policy, seed=3)
    for owner, name, calls in STOPS if policy == "finetune" else STOPS[1:3]:
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_in(patch, owner, name, calls)
            go(tmp_path / "parts", policy, seed=3)
    parts = go(tmp_path / "parts", policy, seed=3)
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")
    for one, two in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert len(list((tmp_path / "parts" / "checkpoints").glob("attempt-*"))) == 1
    assert go(tmp_path / "parts", policy, seed=3).params is None, "it was finished"


def test_a_seed_draws_its_own_rows(tmp_path: Path) -> None:
    one, two = (go(tmp_path / str(seed), "lora", TALKS[:4], seed=seed) for seed in (0, 1))
    assert one.lines[0] == two.lines[0] and one.lines[1].scores == two.lines[1].scores
    assert one.lines[2].scores != two.lines[2].scores


def test_conversations_that_come_later_are_learned_from_then(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", "replay", TALKS)
    first = go(tmp_path / "parts", "replay", TALKS[:6])
    second = go(tmp_path / "parts", "replay", TALKS)
    assert first.lines == [line if line.round < 3 else second.lines[3] for line in second.lines[:4]]
    assert [line.scores for line in second.lines] == [line.scores for line in whole.lines]
    with pytest.raises(UserError, match=r"conversations 1 to 2 are not those that .* has learned from; put new ones"):
        go(tmp_path / "parts", "replay", [TALKS[1], TALKS[0], *TALKS[2:], *TALKS])
    with pytest.raises(UserError, match="conversations 9 to 9 are not those"):
        go(tmp_path / "parts", "replay", TALKS[:8])


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    go(tmp_path, "finetune", TALKS[:2])
    old, params = toys.contrary()
    with pytest.raises(
        UserError, match=r"guard.budget \(0.05, now None\), .*optimizer.learning_rate \(10.0, now 2.0\): give"
    ):
        toys.run(tmp_path, TALKS, old=old, params=params)
    with pytest.raises(
        UserError, match=r"differs in seed \(0, now 1\), the model's weights, the old text: give another"
    ):
        go(tmp_path, "finetune", seed=1, params=toys.bigram_params(), old=toys.old_text())
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is at work on it"):
            go(tmp_path, "finetune")


def test_damaged_checkpoints_and_logs(tmp_path: Path) -> None:
    go(tmp_path / "whole", "finetune")
    expected = tables(tmp_path / "whole")
    (attempt,) = (tmp_path / "whole" / "checkpoints").glob("attempt-*")
    assert {step.name for step in attempt.iterdir() if step.name.isdecimal()} == {"4", "5"}
    (tmp_path / "whole" / "DONE.json").unlink()

    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    for file in (tmp_path / "torn" / "checkpoints" / attempt.name / "5").rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            file.write_bytes(file.read_bytes()[:100])
    assert go(tmp_path / "torn", "finetune").params is not None
    assert tables(tmp_path / "torn") == expected  # from round 4

    text = expected["log.jsonl"]
    (tmp_path / "whole" / "log.jsonl").write_bytes(text + text.splitlines()[-1][:50])
    go(tmp_path / "whole", "finetune")
    assert tables(tmp_path / "whole") == expected
    (tmp_path / "whole" / "DONE.json").unlink()
    (tmp_path / "whole" / "log.jsonl").write_bytes(b"".join(text.splitlines(keepends=True)[:3]))
    with pytest.raises(
        UserError, match=r"log.jsonl: ends with round 2, the checkpoint is of round 5; remove the folder"
    ):
        go(tmp_path / "whole", "finetune")


def test_a_rollback_needs_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = go(tmp_path / "whole", "finetune")
    undone = next(line.round for line in expected.lines[1:] if line.decision.scale == 0)
    with monkeypatch.context() as patch:
        restored = Standings.restored
        patch.setattr(Standings, "restored", lambda self: (found := restored(self)) and (found[0] - 1, found[1]))
        with pytest.raises(UserError, match=f"round {undone} is to be rolled back, but the checkpoint of round"):
            go(tmp_path / "parts", "finetune")
    go(tmp_path / "parts", "finetune")
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"every": 0}, {}, "adaptation.every: was given 0; the least allowed is 1"),
        ({"guard": Guard(budget=float("nan"))}, {}, "adaptation.guard.budget: was given nan"),
        ({"guard": Guard(budget=-0.1)}, {}, "adaptation.guard.budget: was given -0.1"),
        ({"policy": POLICIES["lora"](targets="nothing")}, {}, "adapter.targets: 'nothing' matches none of"),
        ({"policy": POLICIES["lora"](rank=300)}, {}, "adapter.rank: was given 300"),
        ({}, {"old": toys.old_text()._replace(test=np.zeros((0, 17, 3), np.uint8))}, "expected some, of 17 tokens"),
        ({}, {"old": toys.old_text()._replace(guard=np.zeros((2, 9, 3), np.uint8))}, r"rows of shape \(2, 9, 3\)"),
        ({}, {"params": {"head": {"kernel": np.zeros((200, 200), np.float32)}}}, "ids up to 255, the model up to 199"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(
    changes: dict[str, Any], given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        toys.run(tmp_path / "out", toys.talks(4), changes, **given)
    assert not (tmp_path / "out").exists()


def test_no_conversations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no conversations"):
        toys.run(tmp_path, [])
    assert run.label(POLICIES["replay"]()) == "replay"
