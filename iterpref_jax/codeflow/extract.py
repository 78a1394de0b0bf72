"""Code and JSON in the answers of language models: fenced, fenced and cut off, bare, or with prose around."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import re
import warnings
from typing import Any, Literal, NoReturn

Choose = Literal["longest", "last"]

PYTHON = ("python", "py", "python3", "py3")
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*")
_STARTS = re.compile(r"(?:def|class|import|from|async def)\s+\w|@\w")
# Prose behind bare code is cut off line by line, JSON looked for at so many brackets, and the end of a block at so many
# fences, at most.
_MOST_CUTS, _MOST_BRACKETS, _MOST_ENDS = 40, 200, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extracted:
    """`code` and how it stood there ("fence", "unclosed fence", "bare"), or no code and `how` says why not."""

    code: str
    how: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: `language` is the first word behind the fence in lower case."""

    language: str
    text: str
    closed: bool


def code_of(text: str, *, choose: Choose = "longest") -> Extracted:
    """Returns the Python program of an answer, with `\\n` line ends and one at its end.

    Blocks marked as Python go first, whether they parse or not; then unmarked ones that look like Python; then the
    answer itself, or the part of it that parses. Of several blocks the longest or the last is chosen.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found = blocks(text)
    block = _chosen(found, choose)
    if block is not None:
        return Extracted(code=_ended(block.text), how="fence" if block.closed else "unclosed fence")
    if found:
        return Extracted(code="", how="no block holds Python")
    bare = _bare(text)
    return Extracted(code=_ended(bare), how="bare") if bare else Extracted(code="", how="no code")


def json_of(text: str) -> Any:
    """Returns the JSON object or array of an answer: the whole, a fenced block, or the first that stands in prose.

    Line breaks inside strings, which models like to write, are taken. Raises ValueError with a reason for the model.
    """
    decoder = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)
    for candidate in (text, *(block.text for block in blocks(text.replace("\r\n", "\n")))):
        value = _decoded(decoder, candidate.strip())
        if value is not None:
            return value
    for match, _ in zip(re.finditer(r"[{\[]", text), range(_MOST_BRACKETS), strict=False):
        value = _decoded(decoder, text[match.start() :], whole=False)
        if value is not None:
            return value
    raise ValueError("it holds no complete JSON object or array")


def blocks(text: str) -> list[Block]:
    """Returns the fenced blocks of an answer in order; a fence inside a string of a program does not end its block."""
    found: list[Block] = []
    lines = text.split("\n")
    place = 0
    while place < len(lines):
        opening = _FENCE.fullmatch(lines[place])
        place += 1
        if opening is not None:
            end = _end_of(opening, lines, place)
            # A block in a list is indented as a whole.
            kept = [line.removeprefix(opening[1]) for line in lines[place:end]]
            found.append(Block(language=opening[3].lower(), text="\n".join(kept), closed=end < len(lines)))
            place = end + 1
    return found


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


def _end_of(opening: re.Match[str], lines: list[str], start: int) -> int:
    """Returns the line of the fence that ends a block which begins at `start`, or the number of lines."""
    fences = (number for number in range(start, len(lines)) if _ends(opening, lines[number]))
    ends = list(itertools.islice(fences, _MOST_ENDS))
    language = opening[3].lower()
    if not language or language in PYTHON:
        # The first that leaves a program; a string that holds a fence is open up to its end.
        for end in ends:
            if parses("\n".join(line.removeprefix(opening[1]) for line in lines[start:end])):
                return end
    own = [end for end in ends if len(lines[end]) - len(lines[end].lstrip()) <= len(opening[1])]
    # In a program that is broken, or was cut off, an indented fence belongs to a docstring.
    return next(iter(own or ([] if language in PYTHON else ends)), len(lines))


def _ends(opening: re.Match[str], line: str) -> bool:
    other = _FENCE.fullmatch(line)
    return other is not None and other[2].startswith(opening[2]) and not other[3]


def _chosen(found: list[Block], choose: Choose) -> Block | None:
    marked = [block for block in found if block.language in PYTHON and block.text.strip()]
    unmarked = [block for block in found if not block.language and _is_program(block.text)]
    starting = [block for block in found if not block.language and any(map(_STARTS.match, block.text.split("\n")))]
    for candidates in (marked, unmarked, starting):
        if candidates:
            # Of equally long ones the last: models repeat themselves with corrections.
            return candidates[-1] if choose == "last" else max(reversed(candidates), key=lambda block: len(block.text))
    return None


def _bare(text: str) -> str:
    """Returns the text if it is a program, or the part that is one, from the first line that starts like code."""
    if _is_program(text):
        return text
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if _STARTS.match(line)), len(lines))
    for end in range(len(lines), max(start, len(lines) - _MOST_CUTS), -1):
        part = "\n".join(lines[start:end])
        if _is_program(part):
            return part
    return ""


def _is_program(code: str) -> bool:
    """Returns whether `code` parses and does something: one word of prose is a valid expression too."""
    tree = tree_of(code)
    return tree is not None and any(not isinstance(node, ast.Expr) for node in tree.body)


def _ended(code: str) -> str:
    """Returns code without blank lines around it and with one line end."""
    return code.strip("\n").rstrip() + "\n"


def _decoded(decoder: json.JSONDecoder, text: str, *, whole: bool = True) -> Any:
    try:
        value, end = decoder.raw_decode(text)
        # Half a surrogate pair is JSON, but no text that a file can hold.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) and (end == len(text) or not whole) else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
