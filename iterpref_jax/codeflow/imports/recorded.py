"""Words of data sets: whether a status is a pass, whether a language is Python 3, and when something was."""

from __future__ import annotations

import datetime
import re
from typing import Any

_PASSES = ("accepted", "ac", "ok", "pass", "passed", "true", "1", "success", "correct", "solved", "yes", "100")
_FAILS = (
    "wrong",
    "wa",
    "fail",
    "false",
    "0",
    "no",
    "error",
    "incorrect",
    "rejected",
    "runtime",
    "re",
    "rte",
    "compil",
    "ce",
    "time",
    "tle",
    "memory",
    "mle",
    "output",
    "ole",
    "presentation",
    "pe",
    "partial",
    "idleness",
    "crashed",
    "internal",
    "unsolved",
)
# What names no 3 may hold a version in parentheses, but not "Python (2.7.3)".
_PYTHON_3 = re.compile(r"(py|python|pypy)[ _-]?(3([ .(_-].*|\d*)?(\s*\(.*\))?|\s*\((?!2).*\))?")
# CodeContests numbers its languages: 1 is Python 2, 3 is Python 3.
_NUMBERED_PYTHON_3 = 3


def passes(status: Any) -> bool | None:
    """Returns whether a status says "passed"; None where it is absent or no word that is known.

    >>> passes("Accepted"), passes("WRONG_ANSWER"), passes("pending")
    (True, False, None)
    """
    if isinstance(status, bool) or status is None:
        return status
    words = re.findall(r"[a-z]+|\d+", str(status).lower())
    if not words:
        return None
    if words[0] in _PASSES:
        return True
    # Short words are abbreviations, which must be whole; long ones begin many statuses.
    is_fail = any(words[0] == word or (len(word) > 3 and words[0].startswith(word)) for word in _FAILS)
    return False if is_fail else None


def is_python_3(language: Any) -> bool:
    """Returns whether a language name, or a number of CodeContests', is Python 3; "python" alone is.

    >>> is_python_3("Python 3.8"), is_python_3("PyPy3"), is_python_3("python2"), is_python_3("cpp"), is_python_3(3)
    (True, True, False, False, True)
    """
    if isinstance(language, int):
        return language == _NUMBERED_PYTHON_3
    return _PYTHON_3.fullmatch(str(language).strip().lower()) is not None


def seconds(time: Any) -> tuple[bool, float]:
    """Returns (whether it is a date, a number that orders times); raises ValueError.

    A date without a time zone is taken as UTC; numbers are what they are.

    >>> seconds("1970-01-01T00:01:00Z"), seconds("17")
    ((True, 60.0), (False, 17.0))
    """
    try:
        number = float(time)
    except (TypeError, ValueError):
        moment = datetime.datetime.fromisoformat(str(time).strip().replace(" UTC", "Z"))
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        return True, zoned.timestamp()
    if number - number != 0:
        raise ValueError(f"{time!r} is no time")
    return False, number
