"""Open weights as the base of a sweep: evaluated as they are, known by their digest, refused in time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import cli, job, results, runner, sources, sweep
from cl_jax.base import Weights
from cl_jax.losses import cross_entropy
from cl_jax.open_weights import digest
from cl_jax.tokens import read_rows
from cl_jax.weights import load_weights, save_weights

LLAMA = Path(__file__).parent / "fixtures" / "decoders" / "llama"  # 40 tokens
CONFIG = """
from cl_jax.adapters import Lora
from cl_jax.base import Weights
from cl_jax.config import replace
from cl_jax.experiment import Decoder, Experiment, Mlp, Run, sweep
from cl_jax.methods import SelfReplay
from cl_jax.optimizers import Sgd
from cl_jax.tasks import Domains, Permuted

weights = Weights(path={path!r})
run = Run(
    data={data!r}, stream=Domains(num_tasks=2), model=Decoder(), base=weights, optimizer=Sgd(learning_rate=0.1),
    steps=4, batch_size=4,
)
{more}
methods = {{"s": SelfReplay(share=0.5, capacity=8, windows=2)}}
lora = replace(run, {{"adapter": Lora(rank=2, alpha=2.0, first_task="lora"), "methods": methods}})
entries = (*sweep("finetune", run), *sweep("lora", lora))
experiment = Experiment(name="open", description="", entries=entries, seeds=(0, 1))
"""
RIGHT = "run = replace(run, {'model': weights.decoder()})"
TEST, LOSS = 1, 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The fixture's weights, and a tokenizer of 40 characters beside them."""
    library = pytest.importorskip("tokenizers")
    shutil.copytree(LLAMA, tmp_path / "weights", ignore=shutil.ignore_patterns("adapter", "golden*"))
    vocabulary = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz ,.?'ITHWA0"])
    }
    assert len(vocabulary) == 40
    made = library.Tokenizer(library.models.BPE(vocabulary, [], unk_token="<unk>"))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(tmp_path / "weights" / "tokenizer.json"))
    return tmp_path / "weights"


def data_name(tokenizer: Path | str) -> str:
    return f"text:made_support,made_prose?context=16&bytes=40000&heldout=600&tokenizer={tokenizer}"


def write(folder: Path, tokenizer: Path | str | None = None, more: str = RIGHT, path: str | None = None) -> Path:
    text = CONFIG.format(path=path or str(folder), data=data_name(tokenizer or folder), more=more)
    (folder.parent / "config.py").write_text(text)
    return folder.parent


@pytest.mark.thorough
def test_every_member_starts_from_them(folder: Path) -> None:
    place, out = write(folder), folder.parent / "out"
    prepared = job.prepare(place, out, width=2)
    assert prepared.trunks == [] and prepared.steps_to_do == 2 * 2 * 4  # of the second task alone
    runner.run(prepared, quiet=True)
    rows = [row for row in results.read_table(out).to_pylist() if (row["split"], row["metric"]) == ("test", "loss")]
    source, (decoder, params, num_tokens) = sources.load(data_name(folder)), load_weights(folder)
    assert source.test_images is not None
    model = decoder.build(num_tokens)
    for task in (0, 1):
        tokens, targets = read_rows(jnp.asarray(source.test_images[source.test_labels == task]))
        losses = cross_entropy(model.apply(params, tokens), targets.ids)
        expected = jnp.sum(losses * targets.counted) / jnp.sum(targets.bytes)
        found = [row["value"] for row in rows if (row["after_task"], row["task"]) == (1, task + 1)]
        assert len(found) == 4
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    ends = [row["value"] for row in rows if (row["after_task"], row["task"]) == (2, 2)]
    assert len(set(ends)) == 4 and np.isfinite(ends).all()
    assert {row["config.base.sha256"] for row in rows} == {digest(folder)}


def test_other_weights_are_other_members_and_the_same_ones_are_not(folder: Path) -> None:
    place, out = write(folder), folder.parent / "out"

    def ids() -> set[str]:
        return {member.id for shard in job.prepare(place, out).shards for member in shard.members}

    before = ids()
    (folder / "tokenizer_config.json").write_text("{}")  # no part of the weights
    assert ids() == before and len(before) == 4
    decoder, params, _ = load_weights(folder)
    save_weights(folder, decoder, jax.tree.map(lambda leaf: 1.5 * leaf, params))
    assert not ids() & before
    write(folder, more=f"run = replace(run, {{'model': weights.decoder(), 'base.sha256': {digest(folder)!r}}})")
    assert len(ids()) == 4


def test_ids_that_no_text_has_are_left_out(folder: Path) -> None:
    from cl_jax.open_weights import params_of

    whole, cut = load_weights(folder)[1], params_of(Weights(path=str(folder)), 30)
    np.testing.assert_array_equal(cut["embedding"]["embedding"], whole["embedding"]["embedding"][:30])
    np.testing.assert_array_equal(cut["head"]["kernel"], whole["head"]["kernel"][:, :30])


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 3}))


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "nowhere": (lambda folder: None, {"path": "nowhere", "more": ""}, "nowhere/config.json is not there"),
    "no path": (lambda folder: None, {"more": "run = replace(run, {'base': Weights()})"}, "Weights(path=<folder>)"),
    "truncated": (truncated, {}, "model.safetensors"),
    "a layer less": (without_a_tensor, {}, "do not fit its config.json: they lack"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), {}, "has neither model.safetensors nor"),
    "another model": (lambda folder: None, {"more": ""}, "width is 96, not 16, layers is 3, not 2"),
    "no decoder": (lambda folder: None, {"more": "run = replace(run, {'model': Mlp()})"}, "and the model is Mlp"),
    "more tokens": (lambda folder: None, {"tokenizer": "bytes"}, "know 40 tokens, and the text has 256, of tokenizer"),
    "images": (
        lambda folder: None, {"more": "run = replace(run, {'data': 'digits', 'stream': Permuted(), 'model': Mlp()})"},
        "base: Weights() are of a language model, and the data are images",
    ),
    "another digest": (
        lambda folder: None, {"more": RIGHT + "\nrun = replace(run, {'base.sha256': 'abc'})"},
        "finetune: base.sha256: was given abc, and the files in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_there_or_does_not_fit_is_refused(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "run_shard", lambda *_, **__: pytest.fail("training began"))
    change, settings, message = REFUSED[name]
    place = write(folder, **settings)
    change(folder)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(place), "--out", str(place / "out"), "--quiet"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.count("\n") == 1 and message in err, err
    assert not (place / "out").exists()
