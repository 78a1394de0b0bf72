"""What pages hold: their code blocks, and the commands in blocks and in the running text."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(DOCS.glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "EXPERIMENTS.md", "benchmarks/RESULTS.md")),
]

_FENCE = re.compile(r"^(`{3,})(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.*\n?)+", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_PROGRAM = re.compile(r"iterpref [a-z]|bash launch/|python (?:benchmarks|launch|docs)/")


class Block(NamedTuple):
    """A fenced block: its language, the file name that it has as a title, and its text."""

    language: str
    title: str
    text: str


class Command(NamedTuple):
    """A command of a page, as its words; `is_whole` unless it is one of the running text, or has ... in it."""

    page: str
    words: tuple[str, ...]
    is_whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(text: str) -> list[Block]:
    return [Block(found[2], found[3] or "", found[4]) for found in _FENCE.finditer(text)]


def commands(page: Path) -> list[Command]:
    """Returns the commands of this project that a page names."""
    text = page.read_text(encoding="utf-8")
    rest = _FENCE.sub("\n", text)
    shown = [block.text for block in blocks(text) if block.language in ("", "bash", "sh")]
    shown += [found[0] for found in _INDENTED.finditer(rest)]
    lines = [(line.strip(), True) for part in shown for line in re.sub(r"\s*\\\n\s*", " ", part).splitlines()]
    lines += [(" ".join(found[1].split()), False) for found in _INLINE.finditer(_INDENTED.sub("\n", rest))]
    name = page.relative_to(ROOT).as_posix()
    return [_command(name, line, in_block) for line, in_block in lines if _PROGRAM.match(line)]


def _command(page: str, line: str, in_block: bool) -> Command:
    # What follows on the line: a comment, words apart, or where the output goes.
    line = re.split(r"\s#\s|\s{5,}|\s[>|]\s", line)[0]
    # [--step=N]: a word that may be left out.
    words = shlex.split(re.sub(r"\[(--[^]]*)\]", r"\1", line))
    kept = [word for word in words if word not in ("...", "...)")]
    return Command(page, tuple(kept), is_whole=in_block and "..." not in line)
