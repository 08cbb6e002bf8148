"""What a source of text says about its arrays: how ids became of text, and which documents of which domain they are."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Domain:
    """Provenance of one domain. Two equal digests: the same documents, in the same splits."""

    name: str
    documents: int  # distinct ones, within the cap, with something to predict
    bytes: int  # UTF-8 bytes of their text
    counted_bytes: int  # of these, what the loss counts
    rows: tuple[int, int, int]  # train, validation, test
    sha256: str  # of the documents: text and what of it is counted, in order
    left_out: tuple[str, ...]  # files and documents that were not read, with the reason; equal documents are not told


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """How rows [N, context + 1, 3] of tokens are to be read; see `cl_jax.tokens` for the channels."""

    num_tokens: int  # ids lie below it
    context: int  # tokens that a model sees at once
    domains: tuple[str, ...]  # by label
    tokenizer: str  # as the source's name gives it
    tokenizer_sha256: str  # of its file
    start: int | None  # id before every document
    end: int | None  # id after every document
    manifest: tuple[Domain, ...]


@dataclasses.dataclass(frozen=True)
class LabelledFormat:
    """How rows int32 [N, context] of texts with a label each are to be read: ids from the left, then -1."""

    num_tokens: int  # ids lie below it
    context: int  # the longest text, in tokens
    classes: tuple[str, ...]  # by label
    tokenizer: str  # as the source's name gives it
    tokenizer_sha256: str  # of its file
    cut: int  # texts that were longer, and are cut
