"""Programs as data sets hold them: the inside of a function, blocks in prose, tags of agents."""

from __future__ import annotations

import re

from iterpref_jax.codeflow import focus, sources
from iterpref_jax.codeflow.imports.task_tests import parse

# What an agent runs or hands in; the tags of MINT, CodeAct and their kin.
_TAGGED = re.compile(r"<(execute(?:_ipython)?|solution|code|python)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_MAGIC = re.compile(r"^%%\w.*\n")


def whole_program(head: str, body: str) -> str:
    """Returns `head + body` where the body is the inside of a function, else the body alone.

    The docstring of a head is the question, not the answer, so it is left out.

    >>> whole_program('def f():\\n    "One."\\n', "    return 1\\n")
    'def f():\\n    return 1\\n'
    """
    first = next((line for line in body.splitlines() if line.strip()), "")
    if not head or first[:1] not in (" ", "\t"):
        return body
    whole = head + body
    # Docstrings are found by parsing, so those of broken programs stay.
    return sources.without_docstrings(whole).lstrip("\n") if parse(whole) else whole


def code_blocks(text: str) -> list[str]:
    """Returns the programs that a message holds: what stands in tags, else its fenced blocks."""
    tagged = [match[2] for match in _TAGGED.finditer(text)]
    blocks = []
    for part in tagged or [text]:
        fenced = [part[start:end] for start, end in focus.fenced_spans(part)]
        blocks += fenced or ([part] if tagged else [])
    return [_MAGIC.sub("", block.strip("\n")) + "\n" for block in blocks if block.strip()]


def program_in(text: str) -> str:
    """Returns the longest block of an answer, or all of it where there is none: a sample may be bare code."""
    return max(code_blocks(text), key=len, default=text)
