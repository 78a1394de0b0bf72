"""Fenced blocks of Markdown: where the code of an answer stands.

As in CommonMark 0.31 (4.5), but for what models write: a fence may be indented as deep as a list puts it; of several
fences that could end a block of Python, the first that leaves a program does, so one inside a string does not; and a
fence inside a string of bare code opens nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from iterpref_jax.codeflow import syntax

PYTHON = ("python", "py", "python3", "py3")
_RUN = re.compile(r"(`{3,}|~{3,})[ \t]*([^\s`]*)([^\r\n]*)(?:\r\n|\r|\n)?")
# Of Python alone: what a definition, an import, an assignment or a module's docstring begins with.
_CODE_LINE = re.compile(r"""^[ \t]*(?:(?:def|class|import|from|async def)\s+\w|@\w|[\w.]+\s*=[^=]|['"]{3})""", re.M)
# The end of a block is looked for at so many fences, at most.
_MOST_ENDS = 20


class _Fence(NamedTuple):
    """A line [start, end), terminator included, that begins with a run of ` or ~, or what stands for one."""

    start: int
    end: int
    indent: str
    run: str
    language: str
    is_bare: bool

    def may_end(self, opening: _Fence) -> bool:
        return self.is_bare and self.run.startswith(opening.run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: `language` is the first word behind the fence in lower case.

    It begins with its fence at `start`; `inside` is the span between its fences, and `code` what stands there without
    the indentation of the opening one (a list indents its blocks as a whole).
    """

    language: str
    start: int
    inside: tuple[int, int]
    code: str
    closed: bool
    opening: _Fence = dataclasses.field(repr=False)


def blocks(text: str, before: Block | None = None) -> list[Block]:
    """Returns the fenced blocks of a text in order; `before` is one that was left open in front of it.

    That one goes on up to the first fence if nothing stands behind that; a fence with a language begins the answer
    anew.
    """
    fences, found, number = list(_fences(text)), list[Block](), 0
    if before is not None and fences and fences[0].may_end(before.opening):
        opening = before.opening._replace(start=0, end=0)
        end = _end(text, opening, fences, 0)
        found.append(_block(text, opening, fences, end))
        number = end + 1
    while number < len(fences):
        opening = fences[number]
        if _is_in_string(text[found[-1].inside[1] if found else 0 : opening.start]):
            number += 1
            continue
        end = _end(text, opening, fences, number + 1)
        found.append(_block(text, opening, fences, end))
        number = end + 1
    return found


def open_block(text: str) -> Block | None:
    """Returns the block that a text leaves open, if it does."""
    found = blocks(text)
    return found[-1] if found and not found[-1].closed else None


def code_spans(text: str, prompt: str = "") -> list[tuple[int, int]]:
    """Returns the insides of the fenced blocks of a text that follows `prompt`; where it has none, all of it is code.

    >>> code_spans("So:\\n```\\nx\\n```\\n"), code_spans("x\\n```\\nDone.", "Go on:\\n```python\\n"), code_spans("x")
    ([(8, 10)], [(0, 2)], [(0, 1)])
    """
    # An empty block is a block.
    return [block.inside for block in blocks(text, open_block(prompt))] or [(0, len(text))]


def _fences(text: str) -> Iterator[_Fence]:
    for found in _RUN.finditer(text):
        start = max(text.rfind("\n", 0, found.start()), text.rfind("\r", 0, found.start())) + 1
        indent = text[start : found.start()]
        run, language, rest = found.groups()
        is_inline = "`" in run and "`" in rest
        if not indent.strip(" \t") and not is_inline:
            yield _Fence(start, found.end(), indent, run, language.lower(), not language and not rest.strip())


def _end(text: str, opening: _Fence, fences: list[_Fence], first: int) -> int:
    """Returns which fence, from the `first` on, ends the block, or their number if none does."""
    places = (number for number in range(first, len(fences)) if fences[number].may_end(opening))
    ends = list(itertools.islice(places, _MOST_ENDS))
    own = [end for end in ends if len(fences[end].indent) <= len(opening.indent)]
    if ends != own[:1] and opening.language in ("", *PYTHON):
        for end in ends:
            if syntax.parses(_dedented(text[opening.end : fences[end].start], opening.indent)):
                return end
    # In a program that is broken, or was cut off, an indented fence belongs to a docstring.
    return next(iter(own or ([] if opening.language in PYTHON else ends)), len(fences))


def _block(text: str, opening: _Fence, fences: list[_Fence], end: int) -> Block:
    closed = end < len(fences)
    inside = opening.end, fences[end].start if closed else len(text)
    return Block(
        language=opening.language,
        start=opening.start,
        inside=inside,
        code=_dedented(text[slice(*inside)], opening.indent),
        closed=closed,
        opening=opening,
    )


def _dedented(code: str, indent: str) -> str:
    if not indent:
        return code
    return "".join(code[start:end].removeprefix(indent) for start, end in syntax.line_spans(code))


def _is_in_string(before: str) -> bool:
    """Whether a string is open behind `before`, which begins outside of code or with bare code."""
    is_open = any(before.count(quotes) % 2 for quotes in ('"""', "'''"))
    return is_open and _CODE_LINE.search(before) is not None
