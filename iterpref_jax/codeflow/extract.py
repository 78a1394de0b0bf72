"""Code and JSON in the answers of language models: fenced, fenced and cut off, bare, or with prose around."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from typing import Any, Literal, NoReturn

from iterpref_jax.codeflow import fences, syntax

Choose = Literal["longest", "last"]

_STARTS = re.compile(r"(?:def|class|import|from|async def)\s+\w|@\w")
# Prose behind bare code is cut off line by line, and JSON looked for at so many brackets, at most.
_MOST_CUTS, _MOST_BRACKETS = 40, 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extracted:
    """`code` and how it stood there ("fence", "unclosed fence", "bare"), or no code and `how` says why not."""

    code: str
    how: str


def code_of(text: str, *, choose: Choose = "longest") -> Extracted:
    """Returns the Python program of an answer, with `\\n` line ends and one at its end.

    Blocks marked as Python go first, whether they parse or not; then unmarked ones that look like Python; then the
    answer itself, or the part of it that parses. Of several blocks the longest or the last is chosen.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found = fences.blocks(text)
    block = _chosen(found, choose)
    if block is not None:
        return Extracted(code=_ended(block.code), how="fence" if block.closed else "unclosed fence")
    if found:
        return Extracted(code="", how="no block holds Python")
    bare = _bare(text)
    return Extracted(code=_ended(bare), how="bare") if bare else Extracted(code="", how="no code")


def json_of(text: str) -> Any:
    """Returns the JSON object or array of an answer: the whole, a fenced block, or the first that stands in prose.

    Line breaks inside strings, which models like to write, are taken. Raises ValueError with a reason for the model.
    """
    decoder = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)
    for candidate in (text, *(block.code for block in fences.blocks(text))):
        value = _decoded(decoder, candidate.strip())
        if value is not None:
            return value
    for match, _ in zip(re.finditer(r"[{\[]", text), range(_MOST_BRACKETS), strict=False):
        value = _decoded(decoder, text[match.start() :], whole=False)
        if value is not None:
            return value
    raise ValueError("it holds no complete JSON object or array")


def _chosen(found: list[fences.Block], choose: Choose) -> fences.Block | None:
    marked = [block for block in found if block.language in fences.PYTHON and block.code.strip()]
    unmarked = [block for block in found if not block.language and _is_program(block.code)]
    starting = [block for block in found if not block.language and any(map(_STARTS.match, block.code.split("\n")))]
    for candidates in (marked, unmarked, starting):
        if candidates:
            # Of equally long ones the last: models repeat themselves with corrections.
            return candidates[-1] if choose == "last" else max(reversed(candidates), key=lambda block: len(block.code))
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
    tree = syntax.tree_of(code)
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
