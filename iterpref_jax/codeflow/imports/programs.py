"""Programs as data sets hold them: the inside of a function, blocks in prose, tags of agents."""

from __future__ import annotations

import re

from iterpref_jax.codeflow import extract, fences, sources
from iterpref_jax.codeflow.syntax import tree_of

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
    return sources.without_docstrings(whole).lstrip("\n") if tree_of(whole) else whole


def code_blocks(text: str) -> list[str]:
    """Returns the programs that a message holds: what stands in tags, else the fenced blocks of Python."""
    tagged = [match[2] for match in _TAGGED.finditer(text)]
    found = []
    for part in tagged or [text.replace("\r\n", "\n")]:
        fenced = [block.code for block in fences.blocks(part) if block.language in ("", *fences.PYTHON)]
        found += fenced or ([part] if tagged else [])
    return [_MAGIC.sub("", code.strip("\n")) + "\n" for code in found if code.strip()]


def program_in(text: str) -> str:
    """Returns the program of a sample: the fenced one of an answer, else all of it.

    Bare code is left as it is: it may be the inside of a function, or wrong in that it does not parse.
    """
    return extract.code_of(text).code if fences.blocks(text) else text
