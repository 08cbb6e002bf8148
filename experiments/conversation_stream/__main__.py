"""`bash launch/local.sh conversations`, or `python -m experiments.conversation_stream`. See README.md here."""

import dataclasses
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from cl_jax import cache
from cl_jax.conversations import Conversations, OldText, adapt, old_text, page
from cl_jax.errors import UserError
from cl_jax.text import domains
from cl_jax.text.documents import Document
from cl_jax.text.tokenizer import Bytes
from experiments.conversation_stream import outcome
from experiments.conversation_stream.base import Trained, trained
from experiments.conversation_stream.config import Entry, Study, entries, sized

MADE_BYTES = 400  # of a made conversation, about; more are made than are taken


@dataclasses.dataclass
class Options:
    """Every policy on one stream of conversations: what it gains, and what it forgets."""

    size: Annotated[str, tyro.conf.arg(metavar="smoke|mini|full", help_behavior_hint="")] = "full"
    """smoke: 60 made conversations, no files; mini: 400; full: 2000, the one that is reported."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder that holds the dialogues (sgd); smoke needs none."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where everything goes; left out: runs/conversation_stream-<size>."""
    seeds: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Use the seeds 0 to N-1 instead of the size's."""


def main(words: Sequence[str] | None = None) -> None:
    """Returns when done; exits 2 at a user's mistake, 130 when stopped. The same again goes on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    options = tyro.cli(Options, args=words, prog="conversations", config=markers)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        run(options)
    except (UserError, OSError) as error:
        print(f"conversations: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nconversations: stopped; finished rounds are kept, the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None


def run(options: Options) -> None:
    """The base, then every run, then what they come to."""
    study = sized(options.size)
    if options.seeds is not None:
        if options.seeds < 1:
            raise UserError(f"--seeds: was given {options.seeds}; the least allowed is 1")
        study = dataclasses.replace(study, seeds=tuple(range(options.seeds)))
    out = options.out or Path("runs") / f"conversation_stream-{options.size}"
    talks = conversations(study, options.data_dir)
    settings = study.settings
    old = old_text.load(
        study.base.text, context=settings.context, tokenizer="bytes", most=settings.old_rows, train=settings.old_train
    )
    cache.keep_compiled()
    base = trained(study.base, settings.context, out / "base", say)
    every, done = entries(study), []
    try:
        for number, entry in enumerate(every, 1):
            say(f"{number} of {len(every)}: {entry.folder}")
            _one(study, entry, base, talks, old, out / entry.folder)
            done.append(entry)
    finally:
        if done:
            outcome.write(out, done)
    print(outcome.in_words(out))


def _one(study: Study, entry: Entry, base: Trained, talks: Sequence[Document], old: OldText, folder: Path) -> None:
    settings = entry.settings(study)
    stream = Conversations(
        ordered(talks, entry.seed), Bytes(), context=settings.context, longest=settings.longest, every=settings.every
    )
    about = {"conversations": ", ".join(study.talks), "old_text": study.base.text}
    adapted = adapt(base.model, base.params, stream, old, settings, folder, seed=entry.seed, about=about)
    if adapted.params is not None:
        page.write(folder)


def conversations(study: Study, folder: Path | None) -> list[Document]:
    """The study's conversations, a sample by chance of what there is. Raises UserError: there are too few."""
    found: list[Document] = []
    for domain in study.talks:
        talks = domains.read(domain, None, folder, study.number * 2 * MADE_BYTES).documents
        found += ordered(talks, 0)[: study.number - len(found)]
    if len(found) < study.number:
        raise UserError(
            f"{' and '.join(study.talks)} have {len(found)} conversations, {study.number} are wanted; give a folder "
            "with more of them."
        )
    return found


def ordered(talks: Sequence[Document], seed: int) -> list[Document]:
    """All of them, in an order of the seed's own."""
    return [talks[at] for at in np.random.default_rng(seed).permutation(len(talks))]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
