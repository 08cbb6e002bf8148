"""The one kind of error that is the user's to mend: one message, no traceback, exit code 2."""

import difflib
import os
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave. The message says what was given, what is allowed and what to do."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """` Did you mean 'ewc'?`, or nothing where no known name is near."""
    known = list(known)
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    near += [by_lower[one] for one in difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)]
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """`unknown method 'ewk'; known: ewc, l2. Did you mean 'ewc'?`"""
    known = sorted(known)
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}.{did_you_mean(name, known)}")


def disk_error(error: BaseException) -> str | None:
    """What the operating system said, if that is what an error is about; None: it is about something else.

    TensorStore, which writes Orbax's arrays, raises ValueError and gives the system's number in its message.
    """
    if isinstance(error, OSError):
        return str(error)
    came_from: BaseException | None = error
    while came_from is not None:
        if number := re.search(r"os_error_code='(\d+)'", str(came_from)):
            return os.strerror(int(number[1]))
        came_from = came_from.__cause__ or came_from.__context__
    return None
