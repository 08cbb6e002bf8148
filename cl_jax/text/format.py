"""What a text source says of itself."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How rows of tokens are to be read."""

    num_tokens: int
    context: int  # tokens that a model reads of a row, L
    domains: tuple[str, ...]  # names, in the order of the labels
    tokenizer: str
    manifest: tuple = ()
