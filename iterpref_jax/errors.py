"""The one exception that the command line prints without a traceback, and the status of a command that stopped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# sysexits' EX_TEMPFAIL: nothing is wrong with this process, and the same command goes on.
GO_ON = 75


class UserError(Exception):
    """Bad input, configuration or environment that the user can mend.

    The message says what was wanted, what came, where (file, line, field or the name that the user typed) and what
    to do next. Anything else that escapes is a defect of ours and keeps its traceback.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest of `known`, or an empty string.

    >>> did_you_mean("sigmiod", ["sigmoid", "hinge"])
    "; did you mean 'sigmoid'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
