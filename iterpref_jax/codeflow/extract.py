"""Code and JSON in the answers of language models: fenced, fenced and cut off, bare, or with prose around."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

Choose = Literal["longest", "last"]

PYTHON = ("python", "py", "python3", "py3")
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*")
_STARTS = re.compile(r"(?:def|class|import|from|async def)\s+\w|@\w")
# Prose behind bare code is cut off line by line, and JSON is looked for at so many brackets, at most.
_MOST_CUTS, _MOST_BRACKETS = 40, 200


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
    found = [_chosen(blocks(text, nested=nested), choose) for nested in (False, True)]
    # A fence inside a docstring ends a block, unless fences nest; what parses was read right.
    block = next((block for block in found if block and parses(block.text)), found[0])
    if block is not None:
        return Extracted(code=_ended(block.text), how="fence" if block.closed else "unclosed fence")
    if blocks(text):
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


def blocks(text: str, *, nested: bool = False) -> list[Block]:
    """Returns the fenced blocks of an answer in order; with `nested`, a fence with a language opens one inside."""
    found: list[Block] = []
    lines = iter(text.split("\n"))
    for line in lines:
        opening = _FENCE.fullmatch(line)
        if opening is not None:
            found.append(_block(opening, lines, nested))
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


def _block(opening: re.Match[str], lines: Iterator[str], nested: bool) -> Block:
    """Reads the lines of a block up to its closing fence."""
    indent, fence, language = opening.groups()
    kept: list[str] = []
    depth = 1
    for line in lines:
        other = _FENCE.fullmatch(line)
        if other is not None and other[2][0] == fence[0] and len(other[2]) >= len(fence):
            depth += (1 if nested else 0) if other[3] else -1
            if not depth:
                break
        # A block in a list is indented as a whole.
        kept.append(line.removeprefix(indent))
    return Block(language=language.lower(), text="\n".join(kept), closed=not depth)


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
