"""`cl-jax adapt`: from a folder of weights and a file of conversations to new weights, a table and a page."""

import json
import shutil
from pathlib import Path

import bigram_stream as toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import cli, options
from cl_jax.conversations import command, summary
from cl_jax.models.decoder import Decoder
from cl_jax.tokens import Tokens
from cl_jax.weights import load_weights, save_weights

DECODER = Decoder(width=8, layers=1, heads=2)
OLD = "text:made_prose?bytes=30000"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), 256)


def save_model(folder: Path, num_tokens: int) -> Path:
    empty = jnp.zeros((1, 4), jnp.int32)
    params = DECODER.build(num_tokens).init(jax.random.key(0), Tokens(empty, empty))
    save_weights(folder, DECODER, params)
    return folder


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    messages = [
        [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"It is {number % 3}, sir."}]
        for number in range(12)
    ]
    messages += [[{"role": "user", "content": "Nobody answers?"}]] * 12
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    return path


def test_from_weights_to_weights(model: Path, talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adapt", str(model), str(talks), "--old", OLD, "--context", "32", "--every", "4", "--rows", "4"]
    words += ["--steps=2", "--learning-rate=0.01", "--policy", "lora", "--budget", "0.5", "--out", str(tmp_path)]
    with jax.numpy_dtype_promotion("standard"):  # Adam of optax takes a float to an integer power
        command.call(options.parse(words))
    out, err = capsys.readouterr()
    found = summary.read(tmp_path)
    assert found.conversations == 12 and found.policy == "lora" and found.budget == 0.5 and found.gain > 0
    assert f"Learning by lora saved {found.gain:.4f} bits per byte" in out and f"Old text ({OLD})" in out
    nothing = [f"talks.jsonl#{number}: nothing to predict" for number in range(13, 23)]
    assert f"left out: {'; '.join(nothing)}; 2 more" in err
    assert "100%  lora  12 of 12 conversations" in err and "/s  0 s left" in err
    assert (tmp_path / "report" / "report.html").is_file() and (tmp_path / "decisions.jsonl").is_file()
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["old_text"] == OLD and environment["last_run"]["conversations"] == 12
    before, after = load_weights(model), load_weights(tmp_path / "weights")
    assert after[0] == before[0] and after[2] == 256
    moved = jax.tree.map(lambda one, two: not np.array_equal(one, two), before[1], after[1])
    assert moved["layers"]["query"]["kernel"] and not moved["embedding"]["embedding"], "LoRA is of kernels"

    command.call(options.parse(words))
    assert "all 12 conversations were learned from already" in capsys.readouterr().out
    command.call(options.parse([*words, "--quiet"]))
    assert capsys.readouterr() == ("", "")


def test_the_new_weights_are_a_model_again(model: Path, talks: Path, tmp_path: Path) -> None:
    words = [str(talks), "--old", OLD, "--context", "32", "--every", "6", "--steps", "1", "--quiet", "--policy"]
    command.call(options.parse(["adapt", str(model), *words, "frozen", "--out", str(tmp_path / "one")]))
    one, two = load_weights(model)[1], load_weights(tmp_path / "one" / "weights")[1]
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    again = ["adapt", str(tmp_path / "one" / "weights"), *words, "frozen", "--out", str(tmp_path / "two")]
    command.call(options.parse(again))
    assert (tmp_path / "one" / "adapt.parquet").read_bytes() == (tmp_path / "two" / "adapt.parquet").read_bytes()


MISTAKES = {
    "MODEL": "adapt: give the conversations, a .jsonl file or a folder of files.",
    "": "adapt: give a model's folder, which holds config.json and model.safetensors.",
    "MODEL TALKS x": "adapt: too many words: x.",
    "MODEL TALKS --polcy lora": "unknown option '--polcy' of adapt; allowed: --old, --data-dir, --policy,",
    "MODEL TALKS --policy lorra": "unknown policy 'lorra'; known: ewc, finetune, frozen, lora, replay. Did",
    "MODEL TALKS --budget a": "--budget: expected a number such as 0.02, was given 'a'.",
    "MODEL TALKS --budget nan": "--budget: expected a number such as 0.02, was given 'nan'.",
    "MODEL TALKS --budget=-1": "adapt.guard.budget: was given -1.0; allowed are finite numbers from 0",
    "MODEL TALKS --learning-rate=-1": "adapt.optimizer.learning_rate: was given -1.0",
    "MODEL TALKS --steps 0": "adapt.steps: was given 0; the least allowed is 1",
    "MODEL TALKS --every 1.5": "--every: expected a whole number, was given '1.5'.",
    "MODEL TALKS --seed -1": "--seed: was given -1; allowed are 0 to",
    "elsewhere TALKS": "elsewhere is not there; give a model's folder.",
    "TALKS TALKS": "talks.jsonl is no folder; give a model's folder.",
    "EMPTY TALKS": "config.json",
    "LARGER TALKS": "has 300 tokens and no tokenizer.json; only a model of 256 tokens can do without, it reads bytes.",
    "BROKEN TALKS": "tokenizer.json",
    "MODEL elsewhere": "elsewhere is not there; give a file or folder.",
    "MODEL EMPTY": "holds no documents (there are none); files are read by suffix:",
    "MODEL NOTHING": "nothing.jsonl holds no documents (nothing.jsonl#1: nothing to predict)",
    "MODEL TALKS --old code": "--old code: the old text is of a text source; give text:<domain>, such as text:code.",
    "MODEL TALKS --old text:cod": "unknown text domain 'cod'",
    "MODEL TALKS --old text:prose": "text domain 'shakespeare' needs a data folder",
    "MODEL TALKS --old text:made_prose?context=9": "context is the model's and the same for all text; leave",
    "MODEL TALKS --old text:made_prose?bytes=9": "has no rows for",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_message_before_anything_compiles(
    words: str, model: Path, talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "adapt", lambda *_, **__: pytest.fail("it went on"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello?"}]}\n')
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    places = {
        "MODEL": model, "TALKS": talks, "EMPTY": "empty", "NOTHING": "nothing.jsonl", "BROKEN": "broken",
        "LARGER": save_model(tmp_path / "larger", 300) if "LARGER" in words else "",
    }  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        cli.main(["adapt", *(str(places.get(word, word)) for word in words.split())])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("cl-jax: ")
    assert MISTAKES[words] in err
    assert not (tmp_path / "runs").exists()


def test_where_results_go_unless_told(
    model: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    def adapt(
        model: object, params: object, conversations: object, old: object, settings: object, out: Path, **_: object
    ) -> None:
        raise Reached(out)

    monkeypatch.setattr(command, "adapt", adapt)
    with pytest.raises(Reached, match="runs/adapt-talks-replay"):
        command.call(options.parse(["adapt", str(model), str(talks), "--old", OLD, "--policy", "replay"]))
    settings = command.settings_of(options.parse(["adapt", "a", "b", "--context", "512"]))
    assert settings.longest == 4096 and settings.guard is None and toys.SETTINGS.longest == 60
