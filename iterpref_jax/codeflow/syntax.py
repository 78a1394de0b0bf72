"""Programs as Python reads them: their lines and their syntax trees."""

from __future__ import annotations

import ast
import itertools
import re
import warnings

# Not `str.splitlines`: it also cuts at \x0b, \x0c, \x1c-\x1e, \x85 and U+2028/9, which are inside a line of Python.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")


def line_spans(text: str) -> list[tuple[int, int]]:
    r"""Returns the spans of the lines of `text`, terminators included; lines end at \n, \r\n or \r only."""
    if "\r" in text:
        return [match.span() for match in _LINE.finditer(text)]
    # The same in half of the time.
    *lines, rest = text.split("\n")
    ends = list(itertools.accumulate([len(line) + 1 for line in lines]))
    if rest:
        ends.append(len(text))
    return list(zip([0, *ends], ends, strict=False))


def parses(code: str) -> bool:
    """Returns whether `code` is Python."""
    return tree_of(code) is not None


def tree_of(code: str) -> ast.Module | None:
    """Returns the syntax tree of `code`, None if it is no Python."""
    try:
        return parsed(code)
    except ValueError:
        return None


def parsed(code: str) -> ast.Module:
    """Returns the syntax tree of `code`; raises ValueError with a reason for what is no Python, or too deep."""
    try:
        with warnings.catch_warnings():
            # Of invalid escapes in strings, which are the program's own affair.
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError) as error:
        raise ValueError(str(error)) from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deeply for Python's parser") from error
