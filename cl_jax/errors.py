"""The one kind of error that is the user's to mend: one message, no traceback, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave. The message says what was given, what is allowed and what to do."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """`unknown method 'ewk'; known: ewc, l2. Did you mean 'ewc'?`"""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}.{hint}")
