"""Focus: the character spans of y+ and y- in which the two differ (D+ and D- of the paper's Algorithm 1).

Spans are found on text, before any tokenizer: `data.tokenize` turns them into token weights by character offsets.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterable
from typing import Literal, get_args

from iterpref_jax.codeflow import lcs
from iterpref_jax.codeflow.draws import draw
from iterpref_jax.errors import UserError, did_you_mean

Span = tuple[int, int]
Mode = Literal["line", "token", "prefix_suffix", "augment"]
Empty = Literal["drop", "keep", "anchor"]
# A stretch of y- and the stretch of y+ that took its place; one of the two may have length zero.
_Edit = tuple[Span, Span]

# Not `str.splitlines`: it also cuts at \x0b, \x0c, \x1c-\x1e, \x85 and U+2028/9, which are inside a line of Python.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
# Strings are not one token: a wrong word in a message is a fault of that word, and broken programs have open quotes.
_TOKEN = re.compile(
    r"""\r\n | [\r\n] | [^\S\r\n]+ | \w+
    | \*\*= | //= | >>= | <<= | \.\.\. | [-+*/%@&|^:=!<>]= | -> | \*\* | // | << | >> | .""",
    re.VERBOSE | re.DOTALL,
)
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})([^\r\n]*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FocusSettings:
    """How the focus is found.

    `mode`: "line", the lines not in the longest common subsequence; "token", inside replaced blocks of lines only the
    differing lexical tokens; "prefix_suffix", all lines between the common first and last lines; "augment", the lines
    of "line" and 1 or 2 lines before and after each run of them, the number fixed per pair by `seed`.
    `empty`: what becomes of a rejected side without focus (the repair only inserts): "drop", it stays empty and the
    filter `empty_focus` drops the pair; "keep", it stays empty and so does the pair; "anchor", zero-length spans where
    the insertions belong.
    """

    mode: Mode
    empty: Empty
    seed: int

    def __post_init__(self) -> None:
        for name, value, known in (("mode", self.mode, get_args(Mode)), ("empty", self.empty, get_args(Empty))):
            if value not in known:
                hint = did_you_mean(str(value), known)
                raise UserError(f"focus {name} must be one of {', '.join(known)}, not {value!r}{hint}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Focus:
    """Rising, disjoint character spans [start, end) of both sides.

    A zero-length span (p, p), on the rejected side only, is an anchor: the first token that ends after p and is not in
    the common token prefix of both sides, or the end-of-sequence token if p is the end of the text.
    """

    chosen: tuple[Span, ...]
    rejected: tuple[Span, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the rejected side has neither a focus nor an anchor."""
        return not self.rejected


def find_focus(chosen: str, rejected: str, settings: FocusSettings, key: str, *, fenced: bool = False) -> Focus:
    """Returns the focus of a pair; `key` (its pair_id) seeds the mode "augment".

    Lines are compared without their terminators and a span runs through its terminator, so line ends alone are never a
    focus. With `fenced` (completions in Markdown), only what lies inside fenced blocks counts in a text that has one;
    an anchor may then be the closing fence: the place where the code should have gone on.
    """
    edits = _edits(chosen, rejected, settings, key)
    inside_chosen, inside_rejected = (_inside(text, fenced) for text in (chosen, rejected))
    spans = _merged(piece for span, _ in edits for piece in _clipped(span, inside_rejected))
    if not spans and settings.empty == "anchor":
        ends = [span[1] for span, other in edits if _clipped(other, inside_chosen)]
        spans = tuple((p, p) for p in ends if any(start <= p <= end for start, end in inside_rejected))
    return Focus(chosen=_merged(piece for _, span in edits for piece in _clipped(span, inside_chosen)), rejected=spans)


def line_spans(text: str) -> list[Span]:
    r"""Returns the spans of the lines of `text`, terminators included; lines end at \n, \r\n or \r only."""
    return [match.span() for match in _LINE.finditer(text)]


def focus_lines(text: str, spans: Iterable[Span]) -> list[str]:
    """Returns the whole lines of `text`, with their terminators, that `spans` touch; anchors touch none."""
    focus = _merged(span for span in spans if span[0] < span[1])
    ends = [end for _, end in focus]
    lines = []
    for start, end in line_spans(text):
        first = bisect.bisect_right(ends, start)
        if first < len(focus) and focus[first][0] < end:
            lines.append(text[start:end])
    return lines


def fenced_spans(text: str) -> list[Span]:
    """Returns the insides of the fenced blocks of a Markdown text, without the fence lines.

    As in CommonMark 0.31 (4.5), but an opening fence may be indented as deep as a list puts it: a closing fence has the
    opening one's character, at least its length, nothing after it and at most 3 columns more indentation (so the
    fences in a docstring close nothing); a block that is never closed runs to the end.
    """
    blocks: list[Span] = []
    opening: re.Match[str] | None = None
    begin = 0
    for start, end in line_spans(text):
        fence = _FENCE.match(text, start, end)
        if fence is None:
            continue
        if opening is None and not ("`" in fence[2] and "`" in fence[3]):
            opening, begin = fence, end
        elif opening is not None and _closes(fence, opening):
            blocks.append((begin, start))
            opening = None
    return blocks if opening is None else [*blocks, (begin, len(text))]


def _closes(fence: re.Match[str], opening: re.Match[str]) -> bool:
    is_bare = fence[2].startswith(opening[2]) and not fence[3].strip()
    return is_bare and len(fence[1]) <= len(opening[1]) + 3


def _edits(chosen: str, rejected: str, settings: FocusSettings, key: str) -> list[_Edit]:
    lines, others = line_spans(rejected), line_spans(chosen)
    a = [rejected[start:end].rstrip("\r\n") for start, end in lines]
    b = [chosen[start:end].rstrip("\r\n") for start, end in others]
    blocks = [between_ends(a, b)] if settings.mode == "prefix_suffix" else _blocks(a, b)
    if settings.mode == "augment":
        blocks = _widened(blocks, 1 + draw(settings.seed, "augment", key) % 2, len(a), len(b))
    edits = [(_stretch(lines, block[0]), _stretch(others, block[1])) for block in blocks]
    if settings.mode == "token":
        return [finer for edit in edits for finer in _token_edits(chosen, rejected, edit)]
    return edits


def _blocks(a: list[str], b: list[str]) -> list[_Edit]:
    """The stretches of both sequences that lie between the matches of their longest common subsequence."""
    blocks = []
    i = j = 0
    for next_i, next_j in [*lcs.matches(a, b), (len(a), len(b))]:
        if i < next_i or j < next_j:
            blocks.append(((i, next_i), (j, next_j)))
        i, j = next_i + 1, next_j + 1
    return blocks


def between_ends(a: list[str], b: list[str]) -> tuple[Span, Span]:
    """Returns the parts of `a` and of `b`, [start, end), that lie between their common first and last lines."""
    shorter = min(len(a), len(b))
    head = next((n for n in range(shorter) if a[n] != b[n]), shorter)
    tail = next((n for n in range(shorter - head) if a[-1 - n] != b[-1 - n]), shorter - head)
    return (head, len(a) - tail), (head, len(b) - tail)


def _widened(blocks: list[_Edit], count: int, *lengths: int) -> list[_Edit]:
    def widen(span: Span, length: int) -> Span:
        # Nothing stays nothing: the context of a focus, not of an insertion on the other side.
        return span if span[0] == span[1] else (max(0, span[0] - count), min(length, span[1] + count))

    return [(widen(one, lengths[0]), widen(other, lengths[1])) for one, other in blocks]


def _stretch(spans: list[Span], indices: Span) -> Span:
    """Characters from the first to the last of `spans[slice(*indices)]`; where there is none, the place between."""
    first, last = indices
    if first < last:
        return spans[first][0], spans[last - 1][1]
    start = spans[first][0] if first < len(spans) else (spans[-1][1] if spans else 0)
    return start, start


def _token_edits(chosen: str, rejected: str, edit: _Edit) -> list[_Edit]:
    (start, end), (other_start, other_end) = edit
    if start == end or other_start == other_end:
        return [edit]
    spans = [match.span() for match in _TOKEN.finditer(rejected, start, end)]
    others = [match.span() for match in _TOKEN.finditer(chosen, other_start, other_end)]
    blocks = _blocks(_lexemes(rejected, spans), _lexemes(chosen, others))
    return [(_stretch(spans, one), _stretch(others, other)) for one, other in blocks]


def _lexemes(text: str, spans: list[Span]) -> list[str]:
    words = (text[start:end] for start, end in spans)
    return ["\n" if word in ("\r\n", "\r") else word for word in words]


def _inside(text: str, fenced: bool) -> list[Span]:
    # No block at all: the whole text is code. An empty block is a block.
    return (fenced_spans(text) if fenced else []) or [(0, len(text))]


def _clipped(span: Span, inside: list[Span]) -> list[Span]:
    pieces = ((max(span[0], start), min(span[1], end)) for start, end in inside)
    return [(start, end) for start, end in pieces if start < end]


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
