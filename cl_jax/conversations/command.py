"""`cl-jax adapt`: everything that a user gives is read and checked before anything compiles."""

import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cl_jax import options
from cl_jax.config import LARGEST_INT, check_fields, replace
from cl_jax.conversations import old_text, page, policies, summary
from cl_jax.conversations.guard import Guard
from cl_jax.conversations.run import adapt
from cl_jax.conversations.settings import Adaptation
from cl_jax.conversations.stream import Conversations
from cl_jax.errors import UserError
from cl_jax.model import Params
from cl_jax.optimizers import Adam
from cl_jax.text import documents, tokenizer
from cl_jax.text.tokenizer import Tokenizer
from cl_jax.weights import load_weights, save_weights

TOKENIZER = "tokenizer.json"
TOLD = 10  # files and conversations left out that are named


class Subject(NamedTuple):
    """A model from a folder."""

    folder: Path
    decoder: Any  # its config
    params: Params
    num_tokens: int
    tokenizer: Tokenizer
    tokenizer_name: str  # as a text source names it


def call(command: options.Adapt) -> None:
    """Runs the command, or says that it has been run; prints the result and writes the report.

    Raises:
        UserError: of whatever the command was given.
    """
    settings = settings_of(command)
    if not 0 <= command.seed <= LARGEST_INT:
        raise UserError(f"--seed: was given {command.seed}; allowed are 0 to {LARGEST_INT}")
    found = documents.read(command.conversations)
    subject = load(command.model)
    stream = Conversations(
        found.documents, subject.tokenizer, context=settings.context, longest=settings.longest, every=settings.every
    )
    old = old_text.load(
        command.old, context=settings.context, tokenizer=subject.tokenizer_name, most=settings.old_rows,
        train=settings.old_train, folder=command.data_dir,
    )  # fmt: skip
    left_out = found.left_out[:TOLD] + [f"{len(found.left_out) - TOLD} more"] * (len(found.left_out) > TOLD)
    if left_out and not command.quiet:
        print(f"left out: {'; '.join(left_out)}", file=sys.stderr)
    out = command.out or Path("runs") / f"adapt-{command.conversations.resolve().stem}-{command.policy}"
    done = adapt(
        subject.decoder.build(subject.num_tokens), subject.params, stream, old, settings, out,
        seed=command.seed, quiet=command.quiet, export=lambda folder, params: export(subject, folder, params),
        about={
            "model": str(command.model), "conversations": str(command.conversations), "old_text": command.old,
            "tokenizer": subject.tokenizer.name, "left_out": left_out,
        },
    )  # fmt: skip
    report = page.write(out)
    if command.quiet:
        return
    if done.params is None:
        print(f"all {len(stream)} conversations were learned from already; put new ones behind them to go on")
    for sentence in summary.sentences(summary.read(out), command.old):
        print(sentence)
    print(f"weights: {out / 'weights'}\nreport: {report}")


def settings_of(command: options.Adapt) -> Adaptation:
    """The settings that the options ask for. Raises UserError: one is out of range."""
    settings = Adaptation(
        policy=policies.named(command.policy),
        guard=None if command.budget is None else Guard(budget=command.budget),
        optimizer=Adam(learning_rate=command.learning_rate),
        steps=command.steps,
        every=command.every,
        rows=command.rows,
        context=command.context,
    )
    check_fields(settings, "adapt")
    return replace(settings, {"longest": max(settings.longest, 8 * settings.context)})


def load(folder: Path) -> Subject:
    """A model's config, weights and tokenizer.

    Raises:
        UserError: see `cl_jax.weights.load_weights`; no tokenizer, or one that does not fit.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is {'no folder' if folder.exists() else 'not there'}; give a model's folder.")
    decoder, params, num_tokens = load_weights(folder)
    name = str((folder / TOKENIZER).resolve()) if (folder / TOKENIZER).is_file() else "bytes"
    if name == "bytes" and num_tokens != tokenizer.Bytes.num_tokens:
        raise UserError(
            f"{folder} has {num_tokens} tokens and no {TOKENIZER}; only a model of 256 tokens can do without, it reads "
            "bytes."
        )
    to_ids = tokenizer.load(name)
    if to_ids.num_tokens > num_tokens:
        raise UserError(
            f"{folder}: {TOKENIZER} has ids up to {to_ids.num_tokens - 1}, the model up to {num_tokens - 1}; give the "
            "model's own."
        )
    return Subject(folder, decoder, params, num_tokens, to_ids, name)


def export(subject: Subject, folder: Path, params: Params) -> None:
    """Writes a folder that is a model again."""
    save_weights(folder, subject.decoder, params, like=subject.folder)
    if subject.tokenizer_name != "bytes":
        shutil.copyfile(subject.tokenizer_name, folder / TOKENIZER)
